//! What changes from step to step: the learning rate and the decay of the moving average.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the learning rate does after the linear warm-up of [`super::TrainOptions`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    #[default]
    Constant,
    /// Falls along half a cosine and reaches `final_learning_rate` at the last step, so it depends on the number of steps.
    Cosine {
        /// Learning rate of the last step.
        final_learning_rate: f64,
    },
}

impl Decay {
    /// The learning rate after a share `progress` in 0..=1 of the steps that follow the warm-up.
    pub fn at(self, learning_rate: f64, progress: f64) -> f64 {
        match self {
            Self::Constant => learning_rate,
            Self::Cosine { final_learning_rate } => {
                final_learning_rate + (learning_rate - final_learning_rate) * 0.5 * (1.0 + (PI * progress).cos())
            }
        }
    }
}

/// How the moving average forgets the first, bad weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmaWarmup {
    /// The full decay from the start.
    None,
    /// `(1 + k) / (10 + k)`.
    #[default]
    Rational,
    /// `1 - (1 + k / inv_gamma)^-power`, the form of diffusers.
    Power {
        /// Scale of k.
        inv_gamma: f64,
        /// 2/3 for long runs, 3/4 for shorter ones.
        power: f64,
    },
}

/// Exponential moving average: `ema = d_k ema + (1 - d_k) weights` after update k, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ema {
    /// Largest decay; 0 makes the average equal to the weights.
    pub max_decay: f64,
    /// How the decay gets there.
    pub warmup: EmaWarmup,
}

impl Ema {
    /// d_k, the decay of update `k`, counted from 1.
    pub fn decay_at(&self, k: u64) -> f64 {
        let k = k as f64;
        let decay = match self.warmup {
            EmaWarmup::None => self.max_decay,
            EmaWarmup::Rational => (1.0 + k) / (10.0 + k),
            EmaWarmup::Power { inv_gamma, power } => 1.0 - (1.0 + k / inv_gamma).powf(-power),
        };
        decay.min(self.max_decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainOptions;

    #[test]
    fn the_learning_rate_rises_linearly_and_falls_along_a_cosine() {
        let options = TrainOptions {
            steps: 110,
            warmup_steps: 10,
            learning_rate: 1e-3,
            decay: Decay::Cosine { final_learning_rate: 1e-5 },
            ..TrainOptions::default()
        };
        let close = |k: u64, expected: f64| {
            let lr = options.learning_rate_at(k);
            assert!((lr - expected).abs() < 1e-16, "k {k}: {lr} instead of {expected}");
        };
        close(1, 1e-4);
        close(5, 5e-4);
        close(10, 1e-3);
        // A third, a half and two thirds of pi have cosines 1/2, 0 and -1/2; the steps are where the share is exact.
        close(60, (1e-3 + 1e-5) / 2.0);
        close(110, 1e-5);
        let thirds = TrainOptions { steps: 310, ..options.clone() };
        assert!((thirds.learning_rate_at(110) - (1e-5 + 0.75 * (1e-3 - 1e-5))).abs() < 1e-16);
        assert!((thirds.learning_rate_at(210) - (1e-5 + 0.25 * (1e-3 - 1e-5))).abs() < 1e-16);
        for k in 10..110 {
            assert!(options.learning_rate_at(k + 1) < options.learning_rate_at(k));
        }
    }

    #[test]
    fn a_constant_rate_stays_and_no_warm_up_starts_at_once() {
        let options = TrainOptions { steps: 7, warmup_steps: 0, learning_rate: 3e-4, ..TrainOptions::default() };
        for k in 1..=7 {
            assert_eq!(options.learning_rate_at(k), 3e-4);
        }
        let long = TrainOptions { warmup_steps: 100, ..options };
        assert!((long.learning_rate_at(7) - 3e-4 * 0.07).abs() < 1e-18);
    }

    #[test]
    fn ema_decays_follow_their_closed_forms() {
        let ema = |warmup| Ema { max_decay: 0.9999, warmup };
        assert_eq!(ema(EmaWarmup::None).decay_at(1), 0.9999);
        let rational = ema(EmaWarmup::Rational);
        assert_eq!(rational.decay_at(1), 2.0 / 11.0);
        assert_eq!(rational.decay_at(8), 0.5);
        // (1 + k) / (10 + k) reaches 0.9999 at k = 89,990.
        assert!(rational.decay_at(89_000) < 0.9999);
        assert_eq!(rational.decay_at(90_000), 0.9999);
        let power = ema(EmaWarmup::Power { inv_gamma: 2.0, power: 0.5 });
        assert!((power.decay_at(6) - 0.5).abs() < 1e-15); // 1 - (1 + 3)^(-1/2)
        assert!((power.decay_at(30) - 0.75).abs() < 1e-15); // 1 - 16^(-1/2)
        assert_eq!(power.decay_at(u64::MAX), 0.9999);
        assert_eq!(Ema { max_decay: 0.0, warmup: EmaWarmup::Rational }.decay_at(50), 0.0);
    }
}
