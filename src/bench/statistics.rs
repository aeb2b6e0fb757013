//! Medians and spreads.

use serde::{Deserialize, Serialize};

/// The middle of some measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the values are no larger.
    pub median: f64,
    /// A quarter of the values is no larger.
    pub lower_quartile: f64,
    /// Three quarters of the values are no larger.
    pub upper_quartile: f64,
    /// How many values.
    pub samples: usize,
}

impl Spread {
    /// The spread of some values; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&values, 0.5),
            lower_quartile: quantile(&values, 0.25),
            upper_quartile: quantile(&values, 0.75),
            samples: values.len(),
        })
    }

    /// The interquartile range.
    pub fn range(&self) -> f64 {
        self.upper_quartile - self.lower_quartile
    }
}

/// Between the two neighbours of rank `q (len - 1)`, linearly.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

/// The geometric mean of positive values, each counted by its weight; `None` of none.
pub fn geometric_mean(values: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let (logs, weights) = values.into_iter().fold((0.0, 0.0), |(l, w), (v, weight)| (l + weight * v.ln(), w + weight));
    (weights > 0.0).then(|| (logs / weights).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.lower_quartile, spread.median, spread.upper_quartile), (1.75, 2.5, 3.25));
        assert_eq!((spread.range(), spread.samples), (1.5, 4));
        let spread = Spread::of(vec![9.0, 1.0, 5.0]).unwrap();
        assert_eq!((spread.lower_quartile, spread.median, spread.upper_quartile), (3.0, 5.0, 7.0));
        assert_eq!(Spread::of(vec![7.0]).unwrap().range(), 0.0);
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let spread = Spread::of(vec![1.0, 1.0, 1.0, 1.0, 1e9]).unwrap();
        assert_eq!((spread.median, spread.range()), (1.0, 0.0));
    }

    #[test]
    fn means_of_ratios_are_geometric() {
        let mean = |values: &[(f64, f64)]| geometric_mean(values.iter().copied());
        assert!((mean(&[(2.0, 1.0), (0.5, 1.0)]).unwrap() - 1.0).abs() < 1e-15);
        assert!((mean(&[(8.0, 1.0), (1.0, 2.0)]).unwrap() - 2.0).abs() < 1e-15);
        assert_eq!(mean(&[]), None);
    }
}
