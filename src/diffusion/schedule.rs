//! The tables of a diffusion process, all derived from its betas.

use super::betas::BetaConfig;
use super::error::{DiffusionError, Result};

/// Per-timestep tables of length T, in `f64`.
///
/// The log tables have their entry at `t = 0` replaced where the variance is 0 there, as the discretised decoder
/// term L_0 needs a finite one (2102.09672, section 3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// beta_t, the variance that forward step t adds.
    pub betas: Vec<f64>,
    /// alpha_t = 1 - beta_t.
    pub alphas: Vec<f64>,
    /// alpha_bar_t, the product of alpha_0..=alpha_t.
    pub alpha_bars: Vec<f64>,
    /// alpha_bar_{t-1}, which is 1 at t = 0.
    pub alpha_bars_prev: Vec<f64>,
    /// Variance of q(x_{t-1} given x_t, x_0): beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t); 0 at t = 0
    /// (2006.11239, eq. 7).
    pub posterior_variance: Vec<f64>,
    /// Log of `posterior_variance`, the entry at t = 0 replaced by that at t = 1 (by log beta_0 if T = 1).
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Factor of x_0 in the posterior mean: beta_t sqrt(alpha_bar_{t-1}) / (1 - alpha_bar_t).
    pub posterior_mean_coef1: Vec<f64>,
    /// Factor of x_t in the posterior mean: (1 - alpha_bar_{t-1}) sqrt(alpha_t) / (1 - alpha_bar_t).
    pub posterior_mean_coef2: Vec<f64>,
    /// Log of beta_t, the entry at t = 0 replaced by that of `posterior_log_variance_clipped`.
    pub fixed_large_log_variance: Vec<f64>,
    /// Log of beta_t.
    pub log_betas: Vec<f64>,
}

impl Schedule {
    /// Builds the tables of `config`.
    ///
    /// # Errors
    /// Those of [`BetaConfig::betas`].
    pub fn new(config: &BetaConfig) -> Result<Self> {
        Ok(Self::from_betas(config.betas()?))
    }

    /// Builds the tables from betas already known to be valid: in (0, 1), only the last may be 1.
    pub(super) fn from_betas(betas: Vec<f64>) -> Self {
        let alphas: Vec<f64> = betas.iter().map(|beta| 1.0 - beta).collect();
        let alpha_bars: Vec<f64> = alphas
            .iter()
            .scan(1.0, |product, alpha| {
                *product *= alpha;
                Some(*product)
            })
            .collect();
        let alpha_bars_prev: Vec<f64> =
            std::iter::once(1.0).chain(alpha_bars.iter().copied()).take(betas.len()).collect();
        let table = |value: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..betas.len()).map(value).collect() };
        let posterior_variance = table(&|t| betas[t] * (1.0 - alpha_bars_prev[t]) / (1.0 - alpha_bars[t]));
        let first_variance = posterior_variance.get(1).or(betas.first()).copied().unwrap_or(1.0);
        let log_with_first = |variance: &[f64]| -> Vec<f64> {
            let at = |t: usize| if t == 0 { first_variance } else { variance[t] };
            (0..variance.len()).map(|t| at(t).ln()).collect()
        };
        Self {
            posterior_log_variance_clipped: log_with_first(&posterior_variance),
            fixed_large_log_variance: log_with_first(&betas),
            posterior_mean_coef1: table(&|t| betas[t] * alpha_bars_prev[t].sqrt() / (1.0 - alpha_bars[t])),
            posterior_mean_coef2: table(&|t| (1.0 - alpha_bars_prev[t]) * alphas[t].sqrt() / (1.0 - alpha_bars[t])),
            log_betas: table(&|t| betas[t].ln()),
            posterior_variance,
            alpha_bars_prev,
            alpha_bars,
            alphas,
            betas,
        }
    }

    /// T, the number of timesteps.
    pub fn num_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t).
    ///
    /// # Errors
    /// `t` outside the schedule.
    pub fn snr(&self, t: usize) -> Result<f64> {
        let alpha_bar = self.alpha_bar(t)?;
        Ok(alpha_bar / (1.0 - alpha_bar))
    }

    /// lambda_t, half the log of the signal-to-noise ratio (2211.01095, section 2).
    ///
    /// # Errors
    /// `t` outside the schedule.
    pub fn half_log_snr(&self, t: usize) -> Result<f64> {
        Ok(half_log_snr(self.alpha_bar(t)?))
    }

    /// alpha_bar_t.
    ///
    /// # Errors
    /// `t` outside the schedule.
    pub fn alpha_bar(&self, t: usize) -> Result<f64> {
        self.alpha_bars
            .get(t)
            .copied()
            .ok_or(DiffusionError::TimestepOutOfRange { timestep: t, num_timesteps: self.num_timesteps() })
    }
}

/// ln sqrt(alpha_bar) - ln sqrt(1 - alpha_bar); -inf at alpha_bar = 0.
pub(super) fn half_log_snr(alpha_bar: f64) -> f64 {
    0.5 * (alpha_bar.ln() - (-alpha_bar).ln_1p())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_match_the_definitions() {
        let schedule = Schedule::new(&BetaConfig::cosine(37)).unwrap();
        assert_eq!(schedule.num_timesteps(), 37);
        let mut product = 1.0;
        for t in 0..37 {
            let previous = product;
            product *= 1.0 - schedule.betas[t];
            assert!((schedule.alpha_bars[t] - product).abs() < 1e-15);
            assert_eq!(schedule.alpha_bars_prev[t], previous);
            let snr = schedule.snr(t).unwrap();
            assert!((snr.ln() / 2.0 - schedule.half_log_snr(t).unwrap()).abs() < 1e-12);
            assert!((schedule.log_betas[t].exp() - schedule.betas[t]).abs() < 1e-15);
        }
    }

    #[test]
    fn first_log_variances_are_replaced() {
        let s = Schedule::new(&BetaConfig::linear(5)).unwrap();
        assert_eq!(s.posterior_variance[0], 0.0);
        assert_eq!(s.posterior_log_variance_clipped[0], s.posterior_variance[1].ln());
        assert_eq!(s.fixed_large_log_variance[0], s.posterior_variance[1].ln());
        assert_eq!(s.fixed_large_log_variance[1], s.betas[1].ln());
        let single = Schedule::new(&BetaConfig::linear(1)).unwrap();
        assert_eq!(single.posterior_log_variance_clipped, vec![1e-4_f64.ln()]);
    }

    #[test]
    fn zero_terminal_snr_leaves_finite_tables() {
        let config = BetaConfig { rescale_zero_terminal_snr: true, ..BetaConfig::linear(20) };
        let s = Schedule::new(&config).unwrap();
        assert_eq!((s.alpha_bars[19], s.snr(19).unwrap(), s.log_betas[19]), (0.0, 0.0, 0.0));
        assert_eq!(s.half_log_snr(19).unwrap(), f64::NEG_INFINITY);
        for table in [&s.posterior_mean_coef1, &s.posterior_mean_coef2, &s.posterior_variance] {
            assert!(table.iter().all(|v| v.is_finite()));
        }
        assert!(matches!(s.alpha_bar(20), Err(DiffusionError::TimestepOutOfRange { timestep: 20, .. })));
    }
}
