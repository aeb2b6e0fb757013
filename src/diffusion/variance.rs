//! The variance of the reverse step p(x_{t-1} given x_t).

use serde::{Deserialize, Serialize};

use super::posterior::Posterior;
use super::schedule::Schedule;

/// Smallest posterior variance; the last step has none, but its log is taken.
pub const MIN_VARIANCE: f64 = 1e-20;

/// Choice of the reverse variance, spelled as in `scheduler_config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// Posterior variance (2006.11239, section 3.2: the optimum for deterministic data).
    #[default]
    FixedSmall,
    /// The same variance, computed through its log.
    FixedSmallLog,
    /// beta_t (the optimum for normal data).
    FixedLarge,
    /// beta_t, computed through its log. The widespread Python implementation returns NaN here.
    FixedLargeLog,
    /// Extra model channels hold the variance itself.
    Learned,
    /// Extra model channels v in [-1, 1] interpolate between the logs of posterior variance and beta_t
    /// (2102.09672, eq. 15).
    LearnedRange,
}

impl VarianceType {
    /// Whether the network outputs twice the image's channels: the prediction, then the variance channels.
    pub fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }

    /// Variance of a sampling step with this posterior, or `None` if the network decides it.
    pub fn fixed_variance(self, posterior: &Posterior) -> Option<f64> {
        match self {
            Self::FixedSmall | Self::FixedSmallLog => Some(posterior.variance.max(MIN_VARIANCE)),
            Self::FixedLarge | Self::FixedLargeLog => Some(posterior.beta),
            Self::Learned | Self::LearnedRange => None,
        }
    }

    /// Log variance of p(x_{t-1} given x_t) in the variational bound, with the entries at t = 0 replaced (see
    /// [`Schedule`]). `v` is the variance channel; fixed types do not read it.
    ///
    /// # Panics
    /// `t` outside the schedule.
    pub fn log_variance(self, schedule: &Schedule, t: usize, v: f64) -> f64 {
        match self {
            Self::FixedSmall | Self::FixedSmallLog => schedule.posterior_log_variance_clipped[t],
            Self::FixedLarge | Self::FixedLargeLog => schedule.fixed_large_log_variance[t],
            Self::Learned => v.ln(),
            Self::LearnedRange => {
                interpolate_log_variance(v, schedule.posterior_log_variance_clipped[t], schedule.log_betas[t])
            }
        }
    }

    /// Derivative of [`log_variance`](Self::log_variance) with respect to `v`; 0 for fixed types.
    ///
    /// # Panics
    /// `t` outside the schedule.
    pub fn log_variance_grad(self, schedule: &Schedule, t: usize, v: f64) -> f64 {
        match self {
            Self::Learned => 1.0 / v,
            Self::LearnedRange => 0.5 * (schedule.log_betas[t] - schedule.posterior_log_variance_clipped[t]),
            _ => 0.0,
        }
    }
}

/// f `log_max` + (1 - f) `log_min` with f = (v + 1) / 2.
pub fn interpolate_log_variance(v: f64, log_min: f64, log_max: f64) -> f64 {
    let f = 0.5 * (v + 1.0);
    f * log_max + (1.0 - f) * log_min
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    #[test]
    fn learned_range_spans_the_fixed_choices() {
        let s = Schedule::new(&BetaConfig::linear(30)).unwrap();
        for t in [1, 7, 29] {
            let at = |kind: VarianceType, v| kind.log_variance(&s, t, v);
            assert_eq!(at(VarianceType::LearnedRange, -1.0), at(VarianceType::FixedSmall, 0.0));
            assert_eq!(at(VarianceType::LearnedRange, 1.0), at(VarianceType::FixedLarge, 0.0));
            let middle = at(VarianceType::LearnedRange, 0.0).exp();
            assert!((middle - (s.betas[t] * s.posterior_variance[t]).sqrt()).abs() < 1e-15);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let s = Schedule::new(&BetaConfig::cosine(30)).unwrap();
        for kind in [VarianceType::Learned, VarianceType::LearnedRange, VarianceType::FixedLarge] {
            let (v, h) = (0.3, 1e-6);
            let numeric = (kind.log_variance(&s, 4, v + h) - kind.log_variance(&s, 4, v - h)) / (2.0 * h);
            assert!((kind.log_variance_grad(&s, 4, v) - numeric).abs() < 1e-8, "{kind:?}");
        }
    }

    #[test]
    fn fixed_variances_are_those_of_the_jump() {
        let p = Posterior::between(0.5, 0.8);
        assert_eq!(VarianceType::FixedLargeLog.fixed_variance(&p), Some(0.375));
        assert!((VarianceType::FixedSmallLog.fixed_variance(&p).unwrap() - 0.15).abs() < 1e-15);
        assert_eq!(VarianceType::LearnedRange.fixed_variance(&p), None);
        let last = Posterior::between(0.5, 1.0);
        assert_eq!(VarianceType::FixedSmall.fixed_variance(&last), Some(MIN_VARIANCE));
    }
}
