//! Scales of fp8: the largest input of each convolution along a short run of the sampler.

use super::{Conditions, SampleError, SampleOptions, Sampler};
use crate::backend::Backend;
use crate::backend::gpu::fp8::{Fp8Scales, Measuring};
use crate::model::ModelFolder;

/// Steps of the run, spread over the schedule as the sampler spreads them.
pub const CALIBRATION_STEPS: usize = 4;
/// The samples of the run are 0, 1, .. whatever the run's own batch, so that it does not change their bits.
pub const CALIBRATION_SAMPLES: usize = 4;

/// Draws the first samples of a run in few steps on `backend` and measures what its convolutions read.
///
/// The scales depend on the model, the seed, the sampler, the labels and the guidance; not on the run's steps, its eta, its
/// batch or which of its samples are drawn.
///
/// # Errors
/// As [`Sampler::new`]; [`SampleError::Calibration`] where an input is not finite, [`SampleError::Condition`] for a network
/// that has no convolution to quantise.
pub fn calibrate(
    model: &ModelFolder,
    options: &SampleOptions,
    backend: &dyn Backend,
) -> Result<Fp8Scales, SampleError> {
    let steps = CALIBRATION_STEPS.min(options.steps);
    let short = SampleOptions { steps, eta: 0.0, batch: CALIBRATION_SAMPLES, ..options.clone() };
    let mut measuring = None;
    let mut sampler = Sampler::with_plan(model, short, Conditions::default(), backend, |plan| {
        let made = Measuring::new(&plan)?;
        let plan = made.plan.clone();
        measuring = Some(made);
        Ok(plan)
    })?;
    let Some(mut measuring) = measuring else { return Ok(Fp8Scales::default()) };
    sampler.visit(0..CALIBRATION_SAMPLES, &mut |exe, _| Ok(measuring.read(exe)?))?;
    let scales = measuring.scales().map_err(|scope| SampleError::Calibration { scope })?;
    if scales.is_empty() {
        let reason = "fp8 has no convolution to quantise: none from and to 32 channels or more follows a group norm; take \
                      --precision bf16";
        return Err(SampleError::Condition(reason.into()));
    }
    Ok(scales)
}
