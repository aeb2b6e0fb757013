//! The settings of a sampler, as `scheduler_config.json` holds them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::betas::BetaConfig;
use super::clip::Clip;
use super::parameterization::PredictionType;
use super::score_sde::ScoreSdeOptions;
use super::timesteps::TimestepSpacing;
use super::variance::VarianceType;

/// The classes that [`SchedulerConfig`] reads, for messages.
pub const SUPPORTED_CLASSES: &str = "DDPMScheduler, DDIMScheduler, DDIMInverseScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, \
     UniPCMultistepScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, \
     ScoreSdeVeScheduler, \
     GaussianDDPMScheduler (old name of DDPMScheduler)";

/// The samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Ancestral sampling (2006.11239).
    Ddpm,
    /// Deterministic to ancestral, by eta (2010.02502).
    Ddim,
    /// DDIM run backwards: from an image to the latent that DDIM takes back to it.
    DdimInverse,
    /// DPM-Solver++ multistep (2211.01095), and DPM-Solver (2206.00927) by [`Algorithm`].
    DpmSolverPp,
    /// The singlestep form of the same solvers.
    DpmSolverSinglestep,
    /// UniPC (2302.04867): a predictor and a corrector that costs no evaluation.
    UniPc,
    /// Euler's method on the probability-flow ODE in sigma (2206.00364, algorithm 1 without its corrector).
    Euler,
    /// Euler steps to a lower noise level, and noise back up to the next one.
    EulerAncestral,
    /// Heun's method (2206.00364, algorithm 1): two evaluations a step.
    Heun,
    /// Ancestral sampling of the variance-exploding SDE with a Langevin corrector (2011.13456), for models of the score.
    ScoreSde,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Ddpm,
        Self::Ddim,
        Self::DdimInverse,
        Self::DpmSolverPp,
        Self::DpmSolverSinglestep,
        Self::UniPc,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::ScoreSde,
    ];

    /// `_class_name` in `scheduler_config.json`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::DdimInverse => "DDIMInverseScheduler",
            Self::DpmSolverPp => "DPMSolverMultistepScheduler",
            Self::DpmSolverSinglestep => "DPMSolverSinglestepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::ScoreSde => "ScoreSdeVeScheduler",
        }
    }

    /// The spacing a file of this class means when it does not say.
    pub fn default_spacing(self) -> TimestepSpacing {
        match self {
            Self::Ddpm | Self::Ddim | Self::DdimInverse => TimestepSpacing::Leading,
            _ => TimestepSpacing::Linspace,
        }
    }

    /// Whether it is one of the solvers that read [`DpmSolverOptions`] as DPM-Solver++ does.
    pub fn is_dpm_solver(self) -> bool {
        matches!(self, Self::DpmSolverPp | Self::DpmSolverSinglestep)
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ddpm => "DDPM",
            Self::Ddim => "DDIM",
            Self::DdimInverse => "DDIM inversion",
            Self::DpmSolverPp => "DPM-Solver++",
            Self::DpmSolverSinglestep => "DPM-Solver++ singlestep",
            Self::UniPc => "UniPC",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler ancestral",
            Self::Heun => "Heun",
            Self::ScoreSde => "VE predictor-corrector",
        })
    }
}

/// Whose sampling it is, where implementations depart from the method; `docs/samplers.md` lists the places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// The method.
    #[default]
    Paper,
    /// diffusers, number by number.
    Diffusers,
    /// guided-diffusion and improved-diffusion, for DDPM, DDIM and its inversion; the method for the others.
    GuidedDiffusion,
}

/// Which exponential integrator a DPM-Solver is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Of the ODE, on x_0 (2211.01095).
    #[default]
    #[serde(rename = "dpmsolver++")]
    OdeX0,
    /// Of the SDE, on x_0 (2211.01095, section 5).
    #[serde(rename = "sde-dpmsolver++")]
    SdeX0,
    /// Of the ODE, on eps (2206.00927).
    #[serde(rename = "dpmsolver")]
    OdeEps,
    /// Of the SDE, on eps.
    #[serde(rename = "sde-dpmsolver")]
    SdeEps,
}

impl Algorithm {
    /// Whether the solver extrapolates eps and not x_0.
    pub fn on_eps(self) -> bool {
        matches!(self, Self::OdeEps | Self::SdeEps)
    }

    /// Whether it draws noise.
    pub fn is_sde(self) -> bool {
        matches!(self, Self::SdeX0 | Self::SdeEps)
    }
}

/// Second-order update rule of DPM-Solver++, and third-order rule of its singlestep form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// 2211.01095, algorithm 2.
    #[default]
    Midpoint,
    /// The variant that weights the derivative by the exact integral of the linear term.
    Heun,
}

/// Noise level after the last step of DPM-Solver++, UniPC and Euler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// Clean: the last step returns its x_0 estimate.
    #[default]
    Zero,
    /// That of training timestep 0.
    SigmaMin,
}

/// Options of the DPM-Solvers; UniPC reads the order and both keys about the end, Euler the end's noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSolverOptions {
    /// The integrator.
    pub algorithm: Algorithm,
    /// 1, 2 or 3.
    pub solver_order: u8,
    /// Second-order rule.
    pub solver_type: SolverType,
    /// Multistep: last step of first order when fewer than 15 steps are taken. UniPC: the order falls to 1 towards the end.
    /// Singlestep: the last block is cut so that any number of steps fits.
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
            algorithm: Algorithm::OdeX0,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            final_sigmas_type: FinalSigmas::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

/// How the noise levels of DPM-Solver, UniPC, Euler and Heun are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Those of the visited timesteps.
    #[default]
    Timesteps,
    /// Evenly in sigma^(1/7) (2206.00364, eq. 5).
    Karras,
    /// Evenly in ln sigma.
    Exponential,
    /// At the quantiles of a beta distribution, close together at both ends (2407.12173).
    Beta,
    /// Evenly in lambda, which is -ln sigma (2206.00927, section 3.4).
    Lu,
}

impl SigmaSpacing {
    /// The switches of `scheduler_config.json` that select a spacing.
    pub const SWITCHES: [(&'static str, Self); 4] = [
        ("use_karras_sigmas", Self::Karras),
        ("use_exponential_sigmas", Self::Exponential),
        ("use_beta_sigmas", Self::Beta),
        ("use_lu_lambdas", Self::Lu),
    ];
}

/// Options about noise levels; Heun reads the spacing only, DPM-Solver not the limits, and the last two are Euler's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SigmaOptions {
    /// The spread.
    pub spacing: SigmaSpacing,
    /// Lowest sigma of a spacing that is not by timesteps; else that of the schedule.
    pub sigma_min: Option<f64>,
    /// Its highest sigma.
    pub sigma_max: Option<f64>,
    /// Sigmas evenly in ln sigma over the whole schedule (`interpolation_type` `log_linear`).
    pub log_linear: bool,
    /// With v prediction the network's time is ln(sigma) / 4 (`timestep_type` `continuous`).
    pub continuous: bool,
}

/// B(h) of UniPC (2302.04867, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniPcType {
    /// B(h) = h.
    Bh1,
    /// B(h) = e^h - 1.
    #[default]
    Bh2,
}

/// Options that only UniPC reads.
#[derive(Clone, Debug, PartialEq)]
pub struct UniPcOptions {
    /// B(h).
    pub solver_type: UniPcType,
    /// Extrapolate x_0, else eps.
    pub predict_x0: bool,
    /// Steps whose result is not corrected.
    pub disable_corrector: Vec<usize>,
}

impl Default for UniPcOptions {
    fn default() -> Self {
        Self { solver_type: UniPcType::Bh2, predict_x0: true, disable_corrector: Vec::new() }
    }
}

/// Noise that Euler adds along the way (2206.00364, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// S_churn: how much, over the whole run.
    pub s_churn: f64,
    /// Lowest sigma at which noise is added.
    pub s_tmin: f64,
    /// Highest sigma at which noise is added.
    pub s_tmax: f64,
    /// Standard deviation of what is drawn.
    pub s_noise: f64,
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
    /// Clamp the x_0 estimate; read by DDPM, DDIM, its inversion and Heun.
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
    /// Options about noise levels.
    pub sigmas: SigmaOptions,
    /// UniPC's options.
    pub unipc: UniPcOptions,
    /// Options of the VE sampler.
    pub score_sde: ScoreSdeOptions,
    /// Euler's churn; no file holds it.
    pub churn: Option<Churn>,
    /// Whose behaviour counts where implementations depart from the method; no file holds it.
    pub compat: Compat,
    /// The timesteps that are kept, as a section string (see [`space_timesteps`](super::respacing::space_timesteps)), instead of
    /// a number of steps; read with [`Compat::GuidedDiffusion`] only, and no file holds it.
    pub respacing: Option<String>,
}

impl SchedulerConfig {
    /// The defaults of a sampler: linear betas over 1000 timesteps, eps prediction, x_0 clamped to [-1, 1]. Heun's class has
    /// betas of its own, and no clamp.
    pub fn new(sampler: SamplerKind) -> Self {
        let heun = sampler == SamplerKind::Heun;
        let betas = BetaConfig::default();
        Self {
            sampler,
            betas: if heun { BetaConfig { beta_start: 0.00085, beta_end: 0.012, ..betas } } else { betas },
            prediction_type: PredictionType::Epsilon,
            variance_type: VarianceType::FixedSmall,
            timestep_spacing: None,
            steps_offset: 0,
            clip_sample: !heun,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            set_alpha_to_one: true,
            dpm_solver: DpmSolverOptions {
                lower_order_final: sampler != SamplerKind::DpmSolverSinglestep,
                ..DpmSolverOptions::default()
            },
            sigmas: SigmaOptions::default(),
            unipc: UniPcOptions::default(),
            score_sde: ScoreSdeOptions::default(),
            churn: None,
            compat: Compat::Paper,
            respacing: None,
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

    /// The limit on x_0 in effect: thresholding wins over the clamp. DPM-Solver++ and UniPC have no clamp, Heun and DDIM
    /// inversion no thresholding, Euler neither.
    pub fn clip(&self) -> Clip {
        use SamplerKind::{Ddim, DdimInverse, Ddpm, DpmSolverPp, DpmSolverSinglestep, Heun, UniPc};
        let has_clamp = matches!(self.sampler, Ddpm | Ddim | DdimInverse | Heun);
        let has_thresholding = matches!(self.sampler, Ddpm | Ddim | DpmSolverPp | DpmSolverSinglestep | UniPc);
        if self.thresholding && has_thresholding {
            Clip::Dynamic { ratio: self.dynamic_thresholding_ratio, max_value: self.sample_max_value }
        } else if self.clip_sample && has_clamp {
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
