//! The mathematics of denoising diffusion in `f64`: no tensors, no devices.
//!
//! | file | what it holds | paper |
//! |---|---|---|
//! | [`betas`] | beta curves and their configuration | 2006.11239, 2102.09672 |
//! | [`schedule`] | every per-timestep table derived from the betas | 2006.11239 |
//! | [`forward`] | q(x_t given x_0), q(x_t given x_{t-1}) | 2006.11239, eq. 2 and 4 |
//! | [`posterior`] | q(x_s given x_t, x_0) for any s < t | 2006.11239, eq. 6 and 7 |
//! | [`parameterization`] | what the network predicts: eps, x_0 or v | 2202.00512 |
//! | [`variance`] | which variance the reverse step has | 2102.09672, eq. 15 |
//! | [`timesteps`], [`respacing`] | which timesteps a short sampler visits | 2305.08891, 2102.09672 |
//! | [`config`], [`config_json`] | `scheduler_config.json`, read and written | |
//! | [`step_table`] | one row of scalars per sampling step, for every sampler | |
//! | [`ancestral`], [`ddim`], [`dpm_solver`], [`dpm_singlestep`], [`unipc`], [`euler`] | the rows of each sampler | 2006.11239, 2010.02502, 2211.01095, 2302.04867, 2206.00364 |
//! | [`levels`] | the noise levels that the last four visit | 2206.00364 |
//! | [`repaint`] | the walk of RePaint over the levels, for inpainting | 2201.09865 |
//! | [`interpolation`] | between two latents | |
//! | [`score_sde`] | the predictor and the corrector of the variance-exploding SDE | 2011.13456 |
//! | [`guidance`] | classifier-free guidance and its rescaling | 2207.12598, 2305.08891 |
//! | [`clip`] | clipping and dynamic thresholding of the x_0 estimate | 2205.11487 |
//! | [`decoder`], [`vlb`] | the variational bound in bits per dimension, and its gradient | 2006.11239, 2102.09672 |
//! | [`loss`] | training objectives and per-timestep weights | 2102.09672, 2303.09556 |
//!
//! A timestep is an index `t` in `0..T`; `x_t` with `t = 0` is the least noisy latent, and
//! `alpha_bars[t]` is the share of signal variance left in it.

pub mod ancestral;
mod beta_quantile;
pub mod betas;
pub mod clip;
pub mod config;
pub mod config_json;
#[cfg(test)]
mod convergence;
pub mod ddim;
pub mod decoder;
pub mod dpm_singlestep;
pub mod dpm_solver;
pub mod error;
pub mod euler;
pub mod forward;
pub mod guidance;
pub mod interpolation;
pub mod levels;
pub mod loss;
pub mod objective;
pub mod parameterization;
pub mod posterior;
pub mod repaint;
pub mod respacing;
pub mod schedule;
pub mod score_sde;
mod score_sde_json;
pub mod step_table;
pub mod timesteps;
pub mod unipc;
pub mod variance;
pub mod vlb;

pub use betas::{BetaConfig, BetaSchedule};
pub use clip::Clip;
pub use config::{
    Algorithm, Churn, Compat, DpmSolverOptions, FinalSigmas, SamplerKind, SchedulerConfig, SigmaOptions, SigmaSpacing,
    SolverType, UniPcOptions, UniPcType,
};
pub use error::{DiffusionError, Result};
pub use guidance::Guidance;
pub use loss::{LossWeighting, Objective};
pub use objective::{Example, ExampleLoss, LossScalars, Real, TrainingObjective};
pub use parameterization::{Linear2, PredictionType};
pub use posterior::Posterior;
pub use respacing::Respaced;
pub use schedule::Schedule;
pub use score_sde::{DataRange, NormScope, ScoreSdeOptions};
pub use step_table::{History, Keep, LearnedVariance, StepRow, StepTable};
pub use timesteps::TimestepSpacing;
pub use variance::VarianceType;
pub use vlb::{VbTerm, Vlb};
