//! The settings of a sampler, as `scheduler_config.json` holds them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::betas::BetaConfig;
use super::clip::Clip;
use super::parameterization::PredictionType;
use super::timesteps::TimestepSpacing;
use super::variance::VarianceType;

/// The classes that [`SchedulerConfig`] reads, for messages.
pub const SUPPORTED_CLASSES: &str =
    "DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, GaussianDDPMScheduler (old name of DDPMScheduler)";

/// The samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Ancestral sampling (2006.11239).
    Ddpm,
    /// Deterministic to ancestral, by eta (2010.02502).
    Ddim,
    /// DPM-Solver++ multistep, data prediction (2211.01095).
    DpmSolverPp,
}

impl SamplerKind {
    /// `_class_name` in `scheduler_config.json`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::DpmSolverPp => "DPMSolverMultistepScheduler",
        }
    }

    /// The spacing a file of this class means when it does not say.
    pub fn default_spacing(self) -> TimestepSpacing {
        match self {
            Self::Ddpm | Self::Ddim => TimestepSpacing::Leading,
            Self::DpmSolverPp => TimestepSpacing::Linspace,
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddpm => "DDPM",
            Self::Ddim => "DDIM",
            Self::DpmSolverPp => "DPM-Solver++",
        })
    }
}

/// Second-order update rule of DPM-Solver++.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// 2211.01095, algorithm 2.
    #[default]
    Midpoint,
    /// The variant that weights the derivative by the exact integral of the linear term.
    Heun,
}

/// Noise level after the last step of DPM-Solver++.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// Clean: the last step returns its x_0 estimate.
    #[default]
    Zero,
    /// That of training timestep 0.
    SigmaMin,
}

/// Options that only DPM-Solver++ reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSolverOptions {
    /// 1 or 2.
    pub solver_order: u8,
    /// Second-order rule.
    pub solver_type: SolverType,
    /// Last step of first order when fewer than 15 steps are taken.
    pub lower_order_final: bool,
    /// Last step of first order always.
    pub euler_at_final: bool,
    /// Where the last step ends.
    pub final_sigmas_type: FinalSigmas,
    /// Timesteps whose half log-SNR lies below this are not visited.
    pub lambda_min_clipped: f64,
}

impl Default for DpmSolverOptions {
    fn default() -> Self {
        Self {
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            final_sigmas_type: FinalSigmas::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

/// A complete sampler configuration: the noise schedule the model was trained with and how to sample from it.
///
/// Options that another sampler reads are carried along unread, so that [`with_sampler`](Self::with_sampler) can be
/// undone.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The sampler.
    pub sampler: SamplerKind,
    /// The noise schedule.
    pub betas: BetaConfig,
    /// What the network outputs.
    pub prediction_type: PredictionType,
    /// Reverse variance; read by DDPM and by the variational bound.
    pub variance_type: VarianceType,
    /// Spacing of the visited timesteps; `None` is the sampler's default.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep of leading spacing.
    pub steps_offset: usize,
    /// Clamp the x_0 estimate; DPM-Solver++ does not read it.
    pub clip_sample: bool,
    /// Limit of the clamp.
    pub clip_sample_range: f64,
    /// Dynamic thresholding of the x_0 estimate, instead of the clamp.
    pub thresholding: bool,
    /// Its quantile.
    pub dynamic_thresholding_ratio: f64,
    /// Its upper limit.
    pub sample_max_value: f64,
    /// DDIM: the last step goes to alpha_bar = 1, else to alpha_bar of timestep 0.
    pub set_alpha_to_one: bool,
    /// DPM-Solver++ options.
    pub dpm_solver: DpmSolverOptions,
}

impl SchedulerConfig {
    /// The defaults of a sampler: linear betas over 1000 timesteps, eps prediction, x_0 clamped to [-1, 1].
    pub fn new(sampler: SamplerKind) -> Self {
        Self {
            sampler,
            betas: BetaConfig::default(),
            prediction_type: PredictionType::Epsilon,
            variance_type: VarianceType::FixedSmall,
            timestep_spacing: None,
            steps_offset: 0,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            set_alpha_to_one: true,
            dpm_solver: DpmSolverOptions::default(),
        }
    }

    /// The same model sampled another way: every option that both samplers have is kept, the others take the value
    /// they had before or their default. A spacing that was not given becomes the new sampler's default.
    pub fn with_sampler(&self, sampler: SamplerKind) -> Self {
        Self { sampler, ..self.clone() }
    }

    /// The spacing in effect.
    pub fn spacing(&self) -> TimestepSpacing {
        self.timestep_spacing.unwrap_or_else(|| self.sampler.default_spacing())
    }

    /// The limit on x_0 in effect: thresholding wins over the clamp, and DPM-Solver++ has no clamp.
    pub fn clip(&self) -> Clip {
        if self.thresholding {
            Clip::Dynamic { ratio: self.dynamic_thresholding_ratio, max_value: self.sample_max_value }
        } else if self.clip_sample && self.sampler != SamplerKind::DpmSolverPp {
            Clip::Range(self.clip_sample_range)
        } else {
            Clip::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_the_sampler_keeps_what_is_shared() {
        let mut ddpm = SchedulerConfig::new(SamplerKind::Ddpm);
        ddpm.betas.num_train_timesteps = 40;
        ddpm.variance_type = VarianceType::LearnedRange;
        let dpm = ddpm.with_sampler(SamplerKind::DpmSolverPp);
        assert_eq!(dpm.betas, ddpm.betas);
        assert_eq!((ddpm.spacing(), dpm.spacing()), (TimestepSpacing::Leading, TimestepSpacing::Linspace));
        assert_eq!((ddpm.clip(), dpm.clip()), (Clip::Range(1.0), Clip::None));
        assert_eq!(dpm.with_sampler(SamplerKind::Ddpm), ddpm);
        ddpm.timestep_spacing = Some(TimestepSpacing::Leading);
        assert_eq!(ddpm.with_sampler(SamplerKind::DpmSolverPp).spacing(), TimestepSpacing::Leading);
    }

    #[test]
    fn thresholding_replaces_the_clamp() {
        let mut config = SchedulerConfig::new(SamplerKind::DpmSolverPp);
        config.thresholding = true;
        assert_eq!(config.clip(), Clip::Dynamic { ratio: 0.995, max_value: 1.0 });
    }
}
