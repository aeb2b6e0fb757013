//! The one error type of the diffusion mathematics.

use thiserror::Error;

/// `Result` with [`DiffusionError`].
pub type Result<T> = std::result::Result<T, DiffusionError>;

/// Why a schedule, a scheduler file or a sampler request was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// A diffusion process needs at least one timestep.
    #[error("num_train_timesteps is 0: a diffusion process needs at least one timestep (1000 is usual)")]
    NoTrainTimesteps,
    /// More timesteps than any model has; refused before the tables are allocated.
    #[error("num_train_timesteps is {0}, above the limit of {limit}: check the value", limit = super::betas::MAX_TRAIN_TIMESTEPS)]
    TooManyTrainTimesteps(usize),
    /// A beta is not a variance between 0 and 1.
    #[error(
        "beta[{index}] = {value} lies outside (0, 1), so alpha_bar would not decrease from 1 to 0: \
         check beta_start, beta_end and trained_betas"
    )]
    BetaOutOfRange {
        /// Timestep of the offending beta.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// `trained_betas` and `num_train_timesteps` contradict each other.
    #[error(
        "trained_betas has {found} values but num_train_timesteps is {expected}: set num_train_timesteps to {found}, \
         or give one beta per timestep"
    )]
    TrainedBetasLength {
        /// `num_train_timesteps`.
        expected: usize,
        /// Length of `trained_betas`.
        found: usize,
    },
    /// Zero-terminal-SNR rescaling keeps the first and zeroes the last alpha_bar, so they must differ.
    #[error("rescale_betas_zero_snr needs at least 2 training timesteps")]
    ZeroSnrTooShort,
    /// x_0 cannot be recovered from an eps prediction where alpha_bar is 0.
    #[error(
        "at timestep {timestep} alpha_bar is 0 (rescale_betas_zero_snr), where x_0 cannot be computed from an epsilon \
         prediction: use prediction_type v_prediction or sample, or timesteps that leave out the last one"
    )]
    EpsilonAtZeroSnr {
        /// The timestep.
        timestep: usize,
    },
    /// eps cannot be recovered from an x_0 prediction where there is no noise.
    #[error(
        "the first step of DDIM inversion starts from a clean image, where eps cannot be computed from a sample \
         prediction: set set_alpha_to_one to false, or use trailing spacing"
    )]
    SampleAtCleanLevel,
    /// RePaint that never moves.
    #[error("a jump length or a number of resamplings of 0 is no walk; both are at least 1")]
    EmptyWalk,
    /// Options that exclude one another.
    #[error("{0}")]
    Options(String),
    /// The file is not JSON.
    #[error("scheduler config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON is not an object, or a required key is absent.
    #[error("scheduler config: {0}")]
    Malformed(String),
    /// A scheduler class outside the supported set.
    #[error("scheduler class `{class}` is not supported; supported: {supported}", supported = super::config::SUPPORTED_CLASSES)]
    UnsupportedScheduler {
        /// `_class_name` as found.
        class: String,
    },
    /// A key holds a value of the wrong type or outside its range.
    #[error("scheduler config: `{key}` is {value}, expected {expected}")]
    InvalidValue {
        /// The key.
        key: String,
        /// The value as JSON.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A key that changes the result holds a value that is not implemented.
    #[error("scheduler config: `{key}` = {value} is not supported; {remedy}")]
    UnsupportedValue {
        /// The key.
        key: String,
        /// The value as JSON.
        value: String,
        /// What to do.
        remedy: String,
    },
    /// A key no supported scheduler has; it might change the result, so it is not ignored.
    #[error("scheduler config: unknown key `{key}` = {value}: it may change the result; remove it if it does not")]
    UnknownKey {
        /// The key.
        key: String,
        /// The value as JSON.
        value: String,
    },
    /// No sampling steps were asked for.
    #[error("the number of inference steps is 0: ask for at least 1")]
    NoSteps,
    /// The schedule has too few distinct timesteps.
    #[error("{steps} inference steps do not fit: {spacing} spacing over {available} timesteps allows at most {max}")]
    TooManySteps {
        /// What was asked for.
        steps: usize,
        /// Spacing rule.
        spacing: super::timesteps::TimestepSpacing,
        /// Timesteps that can be visited.
        available: usize,
        /// The largest number of steps.
        max: usize,
    },
    /// `steps_offset` pushes the first timestep past the end of the schedule.
    #[error(
        "steps_offset {offset} moves the first timestep to {timestep}, past the last training timestep {last}: \
         lower steps_offset or change the number of steps"
    )]
    OffsetPastEnd {
        /// `steps_offset`.
        offset: usize,
        /// The first timestep with the offset applied.
        timestep: usize,
        /// `num_train_timesteps - 1`.
        last: usize,
    },
    /// A respacing string that does not fit the schedule.
    #[error("timestep respacing `{spec}` of {num_timesteps} timesteps: {reason}")]
    Respacing {
        /// The string.
        spec: String,
        /// T.
        num_timesteps: usize,
        /// What is wrong.
        reason: String,
    },
    /// eta is a DDIM parameter between 0 and 1.
    #[error("eta = {0}: expected a number from 0 (deterministic) to 1 (ancestral)")]
    Eta(f64),
    /// eta was given to a sampler that has none.
    #[error("eta = {eta} has no meaning for {sampler}: it is a parameter of DDIM; use 0 or sample with DDIM")]
    EtaWithoutDdim {
        /// The value.
        eta: f64,
        /// The sampler.
        sampler: super::config::SamplerKind,
    },
    /// The decoder needs at least two grey levels.
    #[error("the discretised decoder needs at least 2 levels, got {0} (256 for 8-bit images)")]
    TooFewLevels(u32),
    /// A timestep outside the schedule.
    #[error("timestep {timestep} lies outside 0..{num_timesteps}")]
    TimestepOutOfRange {
        /// The timestep.
        timestep: usize,
        /// T.
        num_timesteps: usize,
    },
}
