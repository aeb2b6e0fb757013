//! Beta curves: the variance of the noise that each forward step adds.

use serde::{Deserialize, Serialize};

use super::error::{DiffusionError, Result};

/// Largest accepted `num_train_timesteps`; released models use 1000 or 4000.
pub const MAX_TRAIN_TIMESTEPS: usize = 1_000_000;

/// Named beta curves, spelled as in `scheduler_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// beta rises linearly from `beta_start` to `beta_end` (2006.11239, section 4).
    Linear,
    /// sqrt(beta) rises linearly from sqrt(`beta_start`) to sqrt(`beta_end`) (latent diffusion).
    ScaledLinear,
    /// alpha_bar(u) proportional to cos^2((u + 0.008) / 1.008 * pi / 2), beta at most 0.999 (2102.09672, eq. 17).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
    /// beta = sigmoid(-6..6) scaled to `beta_start..beta_end` (GeoDiff, 2203.02923).
    Sigmoid,
    /// The log-SNR of successive timesteps is Laplace distributed (2407.03297), beta at most 0.999.
    Laplace,
}

/// Everything that decides the betas of a diffusion process.
#[derive(Clone, Debug, PartialEq)]
pub struct BetaConfig {
    /// T, the number of forward steps.
    pub num_train_timesteps: usize,
    /// The curve; unused when `trained_betas` is given.
    pub schedule: BetaSchedule,
    /// First beta of the linear, scaled-linear and sigmoid curves.
    pub beta_start: f64,
    /// Last beta of the linear, scaled-linear and sigmoid curves.
    pub beta_end: f64,
    /// Explicit betas, one per timestep; they replace the curve.
    pub trained_betas: Option<Vec<f64>>,
    /// Rescale so that alpha_bar of the last timestep is 0 (2305.08891, algorithm 1).
    pub rescale_zero_terminal_snr: bool,
}

impl Default for BetaConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            schedule: BetaSchedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            trained_betas: None,
            rescale_zero_terminal_snr: false,
        }
    }
}

impl BetaConfig {
    /// The linear schedule of Ho et al. with its published end points 1e-4 and 0.02, whatever T is.
    pub fn linear(num_train_timesteps: usize) -> Self {
        Self { num_train_timesteps, ..Self::default() }
    }

    /// The linear schedule of the guided-diffusion code base: end points scaled by 1000/T, so that alpha_bar of the
    /// last timestep hardly depends on T. Below T = 21 the last beta reaches 1 and [`betas`](Self::betas) refuses it.
    pub fn adm_linear(num_train_timesteps: usize) -> Self {
        let scale = 1000.0 / num_train_timesteps as f64;
        Self { num_train_timesteps, beta_start: scale * 1e-4, beta_end: scale * 0.02, ..Self::default() }
    }

    /// The cosine schedule of Nichol & Dhariwal.
    pub fn cosine(num_train_timesteps: usize) -> Self {
        Self { num_train_timesteps, schedule: BetaSchedule::SquaredcosCapV2, ..Self::default() }
    }

    /// Explicit betas; T is their number.
    pub fn trained(betas: Vec<f64>) -> Self {
        Self { num_train_timesteps: betas.len(), trained_betas: Some(betas), ..Self::default() }
    }

    /// The betas, one per timestep.
    ///
    /// # Errors
    /// T = 0 or absurdly large, `trained_betas` of another length than T, or a beta outside (0, 1). Only the last beta
    /// of a zero-terminal-SNR schedule may be 1.
    pub fn betas(&self) -> Result<Vec<f64>> {
        let num_timesteps = self.num_train_timesteps;
        match num_timesteps {
            0 => return Err(DiffusionError::NoTrainTimesteps),
            n if n > MAX_TRAIN_TIMESTEPS => return Err(DiffusionError::TooManyTrainTimesteps(n)),
            _ => {}
        }
        let betas = match &self.trained_betas {
            Some(given) if given.len() != num_timesteps => {
                return Err(DiffusionError::TrainedBetasLength { expected: num_timesteps, found: given.len() });
            }
            Some(given) => given.clone(),
            None => self.curve(),
        };
        for (index, &value) in betas.iter().enumerate() {
            // Written so that NaN is refused too.
            if !(value > 0.0 && value < 1.0) {
                return Err(DiffusionError::BetaOutOfRange { index, value });
            }
        }
        if self.rescale_zero_terminal_snr { rescale_zero_terminal_snr(&betas) } else { Ok(betas) }
    }

    fn curve(&self) -> Vec<f64> {
        let (start, end, num_timesteps) = (self.beta_start, self.beta_end, self.num_train_timesteps);
        match self.schedule {
            BetaSchedule::Linear => linspace(start, end, num_timesteps),
            BetaSchedule::ScaledLinear => {
                linspace(start.sqrt(), end.sqrt(), num_timesteps).into_iter().map(|root| root * root).collect()
            }
            BetaSchedule::SquaredcosCapV2 => betas_from_alpha_bar(num_timesteps, |u| {
                ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
            }),
            BetaSchedule::Sigmoid => linspace(-6.0, 6.0, num_timesteps)
                .into_iter()
                .map(|z| (end - start) / (1.0 + (-z).exp()) + start)
                .collect(),
            BetaSchedule::Laplace => betas_from_alpha_bar(num_timesteps, |u| {
                let side = if u <= 0.5 { 1.0 } else { -1.0 };
                let log_snr = -0.5 * side * (1.0 - 2.0 * (0.5 - u).abs() + 1e-6).ln();
                let snr = log_snr.exp();
                (snr / (1.0 + snr)).sqrt()
            }),
        }
    }
}

/// `count` evenly spaced values from `start` to `end`, both included; a single value is `start`.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count)
        .map(|i| match i {
            // The far end is hit exactly, not up to the rounding of `step`.
            i if i > 0 && i + 1 == count => end,
            i => start + i as f64 * step,
        })
        .collect()
}

fn betas_from_alpha_bar(num_timesteps: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f64> {
    let at = |i: usize| alpha_bar(i as f64 / num_timesteps as f64);
    (0..num_timesteps).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999)).collect()
}

/// Shifts and scales sqrt(alpha_bar) so that its last value is 0 and its first is kept.
fn rescale_zero_terminal_snr(betas: &[f64]) -> Result<Vec<f64>> {
    let mut alpha_bar = 1.0;
    let roots: Vec<f64> = betas
        .iter()
        .map(|beta| {
            alpha_bar *= 1.0 - beta;
            f64::sqrt(alpha_bar)
        })
        .collect();
    let (first, last) = match roots[..] {
        [first, .., last] => (first, last),
        _ => return Err(DiffusionError::ZeroSnrTooShort),
    };
    let scale = first / (first - last);
    let mut previous = 1.0;
    Ok(roots
        .iter()
        .map(|root| {
            let alpha_bar = ((root - last) * scale).powi(2);
            let beta = 1.0 - alpha_bar / previous;
            previous = alpha_bar;
            beta
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_matches_its_closed_form() {
        let betas = BetaConfig::linear(1000).betas().unwrap();
        assert_eq!((betas[0], betas[999]), (1e-4, 0.02));
        for (t, beta) in betas.iter().enumerate() {
            assert!((beta - (1e-4 + 0.0199 * t as f64 / 999.0)).abs() < 1e-17);
        }
    }

    #[test]
    fn adm_linear_scales_with_the_number_of_timesteps() {
        let betas = BetaConfig::adm_linear(4000).betas().unwrap();
        assert_eq!((betas[0], betas[3999]), (0.25e-4, 0.005));
        assert!(matches!(
            BetaConfig::adm_linear(20).betas(),
            Err(DiffusionError::BetaOutOfRange { index: 19, value: 1.0 })
        ));
    }

    #[test]
    fn cosine_alpha_bar_telescopes_until_the_cap() {
        let f = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let betas = BetaConfig::cosine(400).betas().unwrap();
        let mut alpha_bar = 1.0;
        for (t, beta) in betas.iter().enumerate() {
            alpha_bar *= 1.0 - beta;
            if *beta < 0.999 {
                let exact = f((t + 1) as f64 / 400.0) / f(0.0);
                assert!((alpha_bar - exact).abs() < 1e-14, "t {t}: {alpha_bar} vs {exact}");
            }
        }
        assert_eq!(betas[399], 0.999);
    }

    #[test]
    fn laplace_alpha_bar_is_the_root_of_a_logistic() {
        let config = BetaConfig { num_train_timesteps: 10, schedule: BetaSchedule::Laplace, ..BetaConfig::default() };
        let betas = config.betas().unwrap();
        // At u = 0.5 the log-SNR is 0 up to the 1e-6 guard; at u = 0 it is half of ln 1e6.
        let middle: f64 = betas[..5].iter().map(|b| 1.0 - b).product();
        let start = (1.0 / (1.0 + (-0.5 * 1e6_f64.ln()).exp())).sqrt();
        assert!((middle - 0.5_f64.sqrt() / start).abs() < 1e-6);
    }

    #[test]
    fn bad_betas_are_refused_with_their_index() {
        let mut config = BetaConfig { beta_end: 1.7, ..BetaConfig::linear(10) };
        let message = config.betas().unwrap_err().to_string();
        assert!(message.contains("beta[6]") && message.contains("1.13"), "{message}");
        config.num_train_timesteps = 0;
        assert!(matches!(config.betas(), Err(DiffusionError::NoTrainTimesteps)));
        config.num_train_timesteps = usize::MAX;
        assert!(matches!(config.betas(), Err(DiffusionError::TooManyTrainTimesteps(_))));
        let mut trained = BetaConfig::trained(vec![0.1, f64::NAN]);
        assert!(matches!(trained.betas(), Err(DiffusionError::BetaOutOfRange { index: 1, .. })));
        trained.num_train_timesteps = 3;
        assert!(matches!(trained.betas(), Err(DiffusionError::TrainedBetasLength { expected: 3, found: 2 })));
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_and_zeroes_the_last_alpha_bar() {
        let mut config = BetaConfig::linear(50);
        config.rescale_zero_terminal_snr = true;
        let betas = config.betas().unwrap();
        assert!((betas[0] - 1e-4).abs() < 1e-15);
        assert_eq!(betas[49], 1.0);
        assert!(betas[..49].iter().all(|&b| b > 0.0 && b < 1.0));
        config.num_train_timesteps = 1;
        assert!(matches!(config.betas(), Err(DiffusionError::ZeroSnrTooShort)));
    }
}
