//! Noise levels: the pairs (alpha, sigma) that DPM-Solver, UniPC, Euler and Heun step through, with the network's time at
//! each.
//!
//! Levels are spread by timesteps, or over the ratio sigma / alpha (in files and in the variance-exploding literature just
//! "sigma") by one of the rules of [`SigmaSpacing`].

use super::BetaSchedule;
use super::beta_quantile::beta_quantile;
use super::betas::linspace;
use super::config::{Compat, FinalSigmas, SamplerKind, SchedulerConfig, SigmaSpacing};
use super::error::{DiffusionError, Result};
use super::parameterization::{Linear2, PredictionType};
use super::schedule::{Schedule, half_log_snr};
use super::timesteps::{TimestepSpacing, ddpm_timesteps, dpm_solver_timesteps};

/// alpha_bar that stands for 0 at the last timestep of a zero-terminal-SNR schedule, where lambda would be -inf.
const ZERO_SNR_ALPHA_BAR: f64 = 1.0 / (1u64 << 24) as f64;

/// Both parameters of the distribution in 2407.12173.
const BETA_PARAMETER: f64 = 0.6;

/// rho of 2206.00364, table 1.
const KARRAS_RHO: f64 = 7.0;

/// x_t = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1, and lambda = ln(alpha / sigma) of 2211.01095.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NoiseLevel {
    pub alpha: f64,
    pub sigma: f64,
    pub lambda: f64,
}

impl NoiseLevel {
    /// No noise.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0, lambda: f64::INFINITY };

    pub fn new(alpha_bar: f64) -> Self {
        Self { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt(), lambda: half_log_snr(alpha_bar) }
    }

    /// The level of a ratio sigma / alpha.
    pub fn of_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / ratio.hypot(1.0);
        Self { alpha, sigma: ratio * alpha, lambda: -ratio.ln() }
    }

    /// sigma / alpha.
    pub fn ratio(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// x_0 as a combination of (x_t, model output).
    pub fn x0(&self, prediction: PredictionType) -> Linear2 {
        let (first, second) = match prediction {
            PredictionType::Epsilon => (1.0 / self.alpha, -self.sigma / self.alpha),
            PredictionType::Sample => (0.0, 1.0),
            PredictionType::VPrediction => (self.alpha, -self.sigma),
        };
        Linear2 { first, second }
    }

    /// eps as a combination of (x_t, model output).
    pub fn eps(&self, prediction: PredictionType) -> Linear2 {
        let (first, second) = match prediction {
            PredictionType::Epsilon => (0.0, 1.0),
            PredictionType::Sample => (1.0 / self.sigma, -self.alpha / self.sigma),
            PredictionType::VPrediction => (self.sigma, self.alpha),
        };
        Linear2 { first, second }
    }
}

/// What a run visits: one level and one network time an evaluation, and the level where the last step ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Visits {
    /// What the network is told.
    pub times: Vec<f64>,
    /// Levels, one more than times.
    pub levels: Vec<NoiseLevel>,
}

/// The alpha_bars of a schedule, all above 0.
pub(super) fn positive_alpha_bars(config: &SchedulerConfig) -> Result<Vec<f64>> {
    let mut alpha_bars = Schedule::new(&config.betas)?.alpha_bars;
    if config.betas.rescale_zero_terminal_snr
        && let Some(last) = alpha_bars.last_mut()
    {
        *last = ZERO_SNR_ALPHA_BAR;
    }
    Ok(alpha_bars)
}

/// The visits of a DPM-Solver or UniPC.
pub(super) fn solver_visits(config: &SchedulerConfig, steps: usize) -> Result<Visits> {
    let alpha_bars = positive_alpha_bars(config)?;
    let singlestep = config.sampler == SamplerKind::DpmSolverSinglestep;
    let options = config.dpm_solver;
    let lambda_min = if config.sampler.is_dpm_solver() { options.lambda_min_clipped } else { f64::NEG_INFINITY };
    let spacing = match config.compat {
        // The class has no such key.
        Compat::Diffusers if singlestep => TimestepSpacing::Linspace,
        _ => config.spacing(),
    };
    let timesteps = dpm_solver_timesteps(spacing, &alpha_bars, steps, config.steps_offset, lambda_min)?;
    let mut end = match options.final_sigmas_type {
        FinalSigmas::Zero => NoiseLevel::CLEAN,
        FinalSigmas::SigmaMin => NoiseLevel::new(alpha_bars[0]),
    };
    if config.sigmas.spacing == SigmaSpacing::Timesteps {
        let levels = timesteps.iter().map(|&t| NoiseLevel::new(alpha_bars[t])).chain([end]).collect();
        return Ok(Visits { times: timesteps.iter().map(|&t| t as f64).collect(), levels });
    }
    let table = RatioTable::new(&alpha_bars);
    let limits = match config.sampler {
        SamplerKind::UniPc => (config.sigmas.sigma_min, config.sigmas.sigma_max),
        _ => (None, None),
    };
    let ratios = spread(config.sigmas.spacing, table.limits(limits), steps)?;
    let ends_at_last = config.sampler == SamplerKind::UniPc && options.final_sigmas_type == FinalSigmas::SigmaMin;
    if let (true, Some(&last)) = (ends_at_last, ratios.last()) {
        end = NoiseLevel::of_ratio(last);
    }
    // diffusers rounds some and cuts the others down to integers.
    let karras_or_lu = matches!(config.sigmas.spacing, SigmaSpacing::Karras | SigmaSpacing::Lu);
    let cosine = config.betas.schedule == BetaSchedule::SquaredcosCapV2;
    let rounded = karras_or_lu && (config.sampler != SamplerKind::DpmSolverPp || !cosine);
    let whole = |t: f64| {
        if rounded || config.compat != Compat::Diffusers { t.round_ties_even() } else { t.floor() }
    };
    let times = ratios.iter().map(|&ratio| whole(table.time_of(ratio))).collect();
    Ok(Visits { times, levels: ratios.iter().map(|&ratio| NoiseLevel::of_ratio(ratio)).chain([end]).collect() })
}

/// The visits of Euler, Euler ancestral and Heun.
pub(super) fn sigma_visits(config: &SchedulerConfig, steps: usize) -> Result<Visits> {
    let alpha_bars = positive_alpha_bars(config)?;
    let table = RatioTable::new(&alpha_bars);
    let spacing = config.spacing();
    let whole = ddpm_timesteps(spacing, alpha_bars.len(), steps, config.steps_offset)?;
    let mut times: Vec<f64> = match spacing {
        // Not rounded: the network is asked between its training timesteps.
        TimestepSpacing::Linspace => linspace(0.0, alpha_bars.len() as f64 - 1.0, steps).into_iter().rev().collect(),
        _ => whole.iter().map(|&t| t as f64).collect(),
    };
    let euler = config.sampler == SamplerKind::Euler;
    let mut ratios: Vec<f64> = times.iter().map(|&t| table.at(t)).collect();
    if euler && config.sigmas.log_linear {
        // diffusers makes one sigma too many, and leaves the times as they were.
        let compat = config.compat == Compat::Diffusers;
        ratios = spread(SigmaSpacing::Exponential, table.limits((None, None)), steps + usize::from(compat))?;
        if !compat {
            times = ratios.iter().map(|&ratio| table.time_of(ratio)).collect();
        }
    }
    let reads_spacing = config.sampler != SamplerKind::EulerAncestral;
    if reads_spacing && config.sigmas.spacing != SigmaSpacing::Timesteps {
        let limits = if euler { (config.sigmas.sigma_min, config.sigmas.sigma_max) } else { (None, None) };
        let (lowest, highest) = (ratios[ratios.len() - 1], ratios[0]);
        let limits = (limits.0.unwrap_or(lowest), limits.1.unwrap_or(highest));
        ratios = spread(config.sigmas.spacing, limits, steps)?;
        times = ratios.iter().map(|&ratio| table.time_of(ratio)).collect();
    }
    if euler && config.sigmas.continuous && config.prediction_type == PredictionType::VPrediction {
        times = ratios.iter().map(|ratio| 0.25 * ratio.ln()).collect();
    }
    let mut levels: Vec<NoiseLevel> = ratios.into_iter().map(NoiseLevel::of_ratio).collect();
    if levels.len() == times.len() {
        levels.push(match config.dpm_solver.final_sigmas_type {
            FinalSigmas::SigmaMin if euler => NoiseLevel::new(alpha_bars[0]),
            _ => NoiseLevel::CLEAN,
        });
    }
    Ok(Visits { times, levels })
}

/// The network's time at a ratio sigma / alpha.
pub(super) fn time_at(config: &SchedulerConfig, ratio: f64) -> Result<f64> {
    Ok(RatioTable::new(&positive_alpha_bars(config)?).time_of(ratio))
}

/// `count` ratios from the highest to the lowest.
fn spread(spacing: SigmaSpacing, (lowest, highest): (f64, f64), count: usize) -> Result<Vec<f64>> {
    if !(0.0 < lowest && lowest <= highest && highest < f64::INFINITY) {
        return Err(DiffusionError::Options(format!(
            "sigmas from {highest} down to {lowest}: sigma_min must lie above 0 and not above sigma_max (or, where one of \
             them is not given, the schedule's own limit)"
        )));
    }
    let evenly = |from: f64, to: f64| linspace(from, to, count).into_iter();
    Ok(match spacing {
        SigmaSpacing::Karras => {
            let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
            evenly(root(highest), root(lowest)).map(|root| root.powf(KARRAS_RHO)).collect()
        }
        SigmaSpacing::Beta => {
            let at = |share: f64| lowest + beta_quantile(BETA_PARAMETER, share) * (highest - lowest);
            evenly(1.0, 0.0).map(at).collect()
        }
        _ => evenly(highest.ln(), lowest.ln()).map(f64::exp).collect(),
    })
}

/// sigma / alpha of each timestep, and its inverse by interpolation in ln.
struct RatioTable {
    ratios: Vec<f64>,
}

impl RatioTable {
    fn new(alpha_bars: &[f64]) -> Self {
        Self { ratios: alpha_bars.iter().map(|a| ((1.0 - a) / a).sqrt()).collect() }
    }

    /// The lowest and the highest, where they are not given.
    fn limits(&self, (lowest, highest): (Option<f64>, Option<f64>)) -> (f64, f64) {
        (lowest.unwrap_or(self.ratios[0]), highest.unwrap_or(self.ratios[self.ratios.len() - 1]))
    }

    /// The ratio at a timestep that may lie between two, linearly.
    fn at(&self, t: f64) -> f64 {
        let below = t.floor() as usize;
        let above = (below + 1).min(self.ratios.len() - 1);
        self.ratios[below] + (t - below as f64) * (self.ratios[above] - self.ratios[below])
    }

    /// The timestep, a fraction too, of a ratio; at the ends of the table for a ratio beyond.
    fn time_of(&self, ratio: f64) -> f64 {
        let last = self.ratios.len() - 1;
        if last == 0 {
            return 0.0;
        }
        let below = self.ratios.partition_point(|&r| r <= ratio).saturating_sub(1).min(last - 1);
        let (low, high) = (self.ratios[below].ln(), self.ratios[below + 1].ln());
        below as f64 + ((ratio.ln() - low) / (high - low)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaConfig, SigmaOptions};

    fn config(sampler: SamplerKind, spacing: SigmaSpacing) -> SchedulerConfig {
        SchedulerConfig {
            betas: BetaConfig::linear(1000),
            sigmas: SigmaOptions { spacing, ..SigmaOptions::default() },
            ..SchedulerConfig::new(sampler)
        }
    }

    #[test]
    fn a_ratio_and_its_level_agree() {
        for alpha_bar in [1e-7_f64, 0.1, 0.5, 0.9999] {
            let level = NoiseLevel::new(alpha_bar);
            let again = NoiseLevel::of_ratio(level.ratio());
            assert!((again.alpha / level.alpha - 1.0).abs() < 1e-12);
            assert!((again.sigma / level.sigma - 1.0).abs() < 1e-10);
            assert!((again.lambda - level.lambda).abs() < 1e-10);
            for prediction in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
                let model = prediction.target(alpha_bar).apply(0.3, -1.2);
                let x_t = level.alpha * 0.3 - level.sigma * 1.2;
                assert!((level.x0(prediction).apply(x_t, model) - 0.3).abs() < 1e-9);
                assert!((level.eps(prediction).apply(x_t, model) + 1.2).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn spreads_are_even_in_what_they_say() {
        let even = |f: &dyn Fn(f64) -> f64, spacing: SigmaSpacing| {
            let ratios = spread(spacing, (0.02, 80.0), 9).unwrap();
            assert!((ratios[0] - 80.0).abs() < 1e-9 && (ratios[8] - 0.02).abs() < 1e-12);
            let steps: Vec<f64> = ratios.windows(2).map(|w| f(w[0]) - f(w[1])).collect();
            assert!(steps.iter().all(|step| (step / steps[0] - 1.0).abs() < 1e-9), "{spacing:?}");
        };
        even(&|s| s.powf(1.0 / 7.0), SigmaSpacing::Karras);
        even(&f64::ln, SigmaSpacing::Exponential);
        even(&f64::ln, SigmaSpacing::Lu);
        let beta = spread(SigmaSpacing::Beta, (0.02, 80.0), 5).unwrap();
        let expected = [80.0, 0.02 + 79.98 * 0.824_319_621_347_305, 40.01, 0.02 + 79.98 * 0.175_680_378_652_695, 0.02];
        assert!(beta.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-9), "{beta:?}");
        for limits in [(0.0, 1.0), (2.0, 1.0), (1.0, f64::INFINITY), (f64::NAN, 1.0)] {
            assert!(spread(SigmaSpacing::Karras, limits, 3).is_err());
        }
    }

    #[test]
    fn times_and_ratios_are_inverse() {
        let table = RatioTable::new(&Schedule::new(&BetaConfig::linear(100)).unwrap().alpha_bars);
        for t in 0..100 {
            assert!((table.time_of(table.at(t as f64)) - t as f64).abs() < 1e-9);
        }
        assert_eq!((table.time_of(1e-9), table.time_of(1e9)), (0.0, 99.0));
        let between = table.time_of((table.ratios[10] * table.ratios[11]).sqrt());
        assert!((between - 10.5).abs() < 1e-9);
        assert!((table.at(10.25) - (0.75 * table.ratios[10] + 0.25 * table.ratios[11])).abs() < 1e-15);
        assert_eq!(RatioTable::new(&[0.5]).time_of(3.0), 0.0);
    }

    #[test]
    fn every_spacing_descends_to_its_end() {
        for sampler in [SamplerKind::DpmSolverPp, SamplerKind::DpmSolverSinglestep, SamplerKind::UniPc] {
            for spacing in [
                SigmaSpacing::Timesteps,
                SigmaSpacing::Karras,
                SigmaSpacing::Exponential,
                SigmaSpacing::Beta,
                SigmaSpacing::Lu,
            ] {
                let visits = solver_visits(&config(sampler, spacing), 12).unwrap();
                assert_eq!((visits.times.len(), visits.levels.len()), (12, 13));
                assert!(visits.levels.windows(2).all(|w| w[0].lambda < w[1].lambda), "{sampler} {spacing:?}");
                assert!(visits.times.iter().all(|t| t.fract() == 0.0));
            }
        }
        for sampler in [SamplerKind::Euler, SamplerKind::EulerAncestral, SamplerKind::Heun] {
            for spacing in
                [SigmaSpacing::Timesteps, SigmaSpacing::Karras, SigmaSpacing::Exponential, SigmaSpacing::Beta]
            {
                let visits = sigma_visits(&config(sampler, spacing), 12).unwrap();
                assert_eq!((visits.times.len(), visits.levels.len()), (12, 13));
                assert!(visits.levels.windows(2).all(|w| w[0].lambda < w[1].lambda), "{sampler} {spacing:?}");
            }
        }
    }

    #[test]
    fn log_linear_asks_the_network_at_the_time_of_its_sigma_unless_diffusers_counts() {
        let mut config = config(SamplerKind::Euler, SigmaSpacing::Timesteps);
        config.sigmas.log_linear = true;
        let visits = sigma_visits(&config, 8).unwrap();
        let table = RatioTable::new(&positive_alpha_bars(&config).unwrap());
        for (time, level) in visits.times.iter().zip(&visits.levels) {
            assert!((table.at(*time) / level.ratio() - 1.0).abs() < 0.05);
        }
        assert_eq!(visits.levels[8], NoiseLevel::CLEAN);
        config.compat = Compat::Diffusers;
        let visits = sigma_visits(&config, 8).unwrap();
        assert!((visits.levels[8].ratio() - table.ratios[0]).abs() < 1e-9, "it never gets to the clean image");
        assert!((visits.times[1] - 856.285_714_285).abs() < 1e-6);
    }
}
