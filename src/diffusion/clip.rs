//! What is done to the x_0 estimate before it is used.

/// Limits on the x_0 estimate of every step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Used as it is.
    #[default]
    None,
    /// Clamped to `-range..=range`.
    Range(f64),
    /// Dynamic thresholding (2205.11487): with S the `ratio` quantile of |x_0| over one image, limited to
    /// `1..=max_value`, x_0 is clamped to `-S..=S` and divided by S.
    Dynamic {
        /// Quantile, 0 to 1.
        ratio: f64,
        /// Upper limit of S; it wins where it lies below 1.
        max_value: f64,
    },
}

impl Clip {
    /// S of one image, from the magnitudes of its x_0 estimate; 1 unless the clip is [`Dynamic`](Self::Dynamic).
    ///
    /// Reorders `magnitudes`. The quantile interpolates linearly between order statistics. An empty image gives 1.
    pub fn dynamic_scale(&self, magnitudes: &mut [f64]) -> f64 {
        let Self::Dynamic { ratio, max_value } = *self else {
            return 1.0;
        };
        if magnitudes.is_empty() {
            return 1.0;
        }
        let position = ratio * (magnitudes.len() - 1) as f64;
        let lower = position.floor() as usize;
        let (_, &mut at_lower, above) = magnitudes.select_nth_unstable_by(lower, f64::total_cmp);
        let at_upper = above.iter().copied().min_by(f64::total_cmp).unwrap_or(at_lower);
        let quantile = at_lower + (position - lower as f64) * (at_upper - at_lower);
        quantile.max(1.0).min(max_value)
    }

    /// The limited value of `x0`; `scale` is the image's [`dynamic_scale`](Self::dynamic_scale). NaN stays NaN.
    pub fn apply(&self, x0: f64, scale: f64) -> f64 {
        match *self {
            Self::None => x0,
            Self::Range(range) => x0.clamp(-range, range),
            Self::Dynamic { .. } => x0.clamp(-scale, scale) / scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_interpolates_between_order_statistics() {
        let clip = Clip::Dynamic { ratio: 0.6, max_value: 10.0 };
        // Sorted: 0.5, 1, 2, 4; position 1.8.
        let scale = clip.dynamic_scale(&mut [4.0, 0.5, 2.0, 1.0]);
        assert!((scale - 1.8).abs() < 1e-15);
        assert_eq!(clip.apply(-9.0, scale), -1.0);
        assert!((clip.apply(0.9, scale) - 0.5).abs() < 1e-15);
    }

    #[test]
    fn scale_is_limited_on_both_sides() {
        let clip = |max_value| Clip::Dynamic { ratio: 1.0, max_value };
        assert_eq!(clip(3.0).dynamic_scale(&mut [0.1, 0.2]), 1.0);
        assert_eq!(clip(3.0).dynamic_scale(&mut [7.0, 0.2]), 3.0);
        assert_eq!(clip(0.5).dynamic_scale(&mut [7.0, 0.2]), 0.5);
        assert_eq!(clip(3.0).dynamic_scale(&mut []), 1.0);
        assert_eq!(Clip::Range(1.5).dynamic_scale(&mut [7.0]), 1.0);
    }

    #[test]
    fn range_clamps_and_none_does_not() {
        assert_eq!(Clip::Range(1.5).apply(-2.0, 1.0), -1.5);
        assert_eq!(Clip::None.apply(-2.0, 1.0), -2.0);
    }
}
