//! Classifier-free guidance (2207.12598) and its rescaling (2305.08891, section 3.4).

/// How the predictions with and without a label become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The guided prediction is `uncond + scale * (cond - uncond)`; 1 is none.
    pub scale: f64,
    /// How far the guided prediction is brought back to the standard deviation of the conditional one, from 0 (not at all) to 1.
    pub rescale: f64,
}

impl From<f64> for Guidance {
    fn from(scale: f64) -> Self {
        Self { scale, rescale: 0.0 }
    }
}

impl Guidance {
    /// One element of the guided prediction, before it is rescaled.
    pub fn combine(self, conditional: f64, unconditional: f64) -> f64 {
        unconditional + self.scale * (conditional - unconditional)
    }

    /// The factor of an image's guided prediction, `rescale * std(cond) / std(guided) + (1 - rescale)`, from the variances of
    /// both; 1 where the guided prediction is the same everywhere.
    pub fn factor(self, variance_conditional: f64, variance_guided: f64) -> f64 {
        if self.rescale == 0.0 || variance_guided == 0.0 {
            return 1.0;
        }
        self.rescale * (variance_conditional / variance_guided).sqrt() + (1.0 - self.rescale)
    }

    /// [`factor`](Self::factor) of the pairs (conditional, unconditional) of one image.
    pub fn factor_of(self, pairs: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
        if self.rescale == 0.0 {
            return 1.0;
        }
        let guided = pairs.clone().map(|(c, u)| self.combine(c, u));
        self.factor(variance(pairs.map(|(c, _)| c)), variance(guided))
    }
}

fn variance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let (count, sum) = values.clone().fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + v));
    let mean = sum / count;
    values.map(|v| (v - mean).powi(2)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_rescale_restores_the_deviation_of_the_conditional_prediction() {
        let pairs = [(1.0, 0.5), (-2.0, 0.25), (0.75, -1.0), (3.0, 2.0)];
        for scale in [2.5, -1.0] {
            let full = Guidance { scale, rescale: 1.0 };
            let factor = full.factor_of(pairs.into_iter());
            let rescaled = pairs.into_iter().map(|(c, u)| factor * full.combine(c, u));
            let expected = variance(pairs.into_iter().map(|(c, _)| c));
            assert!((variance(rescaled) - expected).abs() < 1e-12);
            let part = Guidance { scale, rescale: 0.7 };
            assert!((part.factor_of(pairs.into_iter()) - (0.7 * factor + 0.3)).abs() < 1e-12);
            assert_eq!(Guidance::from(scale).factor_of(pairs.into_iter()), 1.0);
        }
    }

    #[test]
    fn a_constant_prediction_is_left_alone() {
        let guidance = Guidance { scale: 2.0, rescale: 0.5 };
        assert_eq!(guidance.factor_of([(1.0, 1.0), (1.0, 1.0)].into_iter()), 1.0);
    }
}
