//! Checks that run the network: model outputs, activations, sampling trajectories.

use std::sync::Arc;

use super::case::{Case, Check};
use super::{Measured, VerifyError, relative_error, tolerance_key};
use crate::backend::{Backend, BackendError, Executable};
use crate::diffusion::StepTable;
use crate::graph::{NoiseSource, ValueId};
use crate::layout::nhwc_to_nchw;
use crate::program::{Batch, ForwardProgram, SamplingOptions, SamplingProgram};

/// A value of `[N, H, W, C]` as NCHW, or any other value as it is.
fn read(exe: &dyn Executable, value: ValueId) -> Result<Vec<f64>, BackendError> {
    let data = exe.read_f64(value)?;
    Ok(match exe.plan().graph().shape(value).dims() {
        &[n, h, w, c] => nhwc_to_nchw(&data, [n, c, h, w]),
        _ => data,
    })
}

/// Runs the network on the inputs of a forward check.
fn run_forward(
    case: &Case,
    check: Check,
    backend: &dyn Backend,
    taps: bool,
) -> Result<(Box<dyn Executable>, ForwardProgram), VerifyError> {
    let ([n, _, h, w], x) = check.images("sample")?;
    let program = ForwardProgram::new(case.config()?, Batch { n, h, w }, taps)?;
    let mut exe = backend.compile(program.plan.clone())?;
    case.load(exe.as_mut())?;
    exe.write_f32(program.x, &x)?;
    let (_, t) = check.input("timesteps")?;
    exe.write_f32(program.t, &t.iter().map(|&t| t as f32).collect::<Vec<_>>())?;
    check.write_labels(exe.as_mut(), program.class)?;
    exe.run()?;
    exe.finish()?;
    Ok((exe, program))
}

pub(super) fn forward(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let (exe, program) = run_forward(case, check, backend, false)?;
    let error = relative_error(&read(exe.as_ref(), program.out)?, &check.output("sample")?);
    Ok(Measured::new(error, check.get(tolerance_key(backend.precision()))?, "model output"))
}

/// Compares the submodules' results; names the first that is off.
pub(super) fn activations(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let of: String = check.get("of")?;
    let Some(forward) = case.checks().find(|c| c.id() == of) else {
        return Err(check.error(format!("there is no check {of:?}")));
    };
    let tolerance = forward.get("tol_rel_fp32")?;
    let (exe, program) = run_forward(case, forward, backend, true)?;
    let recorded: Vec<String> = check.get("tensors")?;
    let mut worst = Measured::new(0.0, tolerance, "");
    let mut compared = 0;
    for (name, value) in &program.taps {
        let golden = format!("dbg.{name}");
        if !recorded.contains(&golden) {
            continue;
        }
        compared += 1;
        let error = relative_error(&read(exe.as_ref(), *value)?, &case.tensor(&golden)?.1);
        if error.is_nan() || error > tolerance {
            return Ok(Measured::new(error, tolerance, format!("{name} is the first layer that differs")));
        }
        worst = worst.worse(Measured::new(error, tolerance, name));
    }
    if compared != recorded.len() {
        return Err(check.error(format!("{compared} of {} recorded layers exist here", recorded.len())));
    }
    Ok(worst)
}

pub(super) fn sample(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let scheduler = check.scheduler("scheduler")?;
    let eta = check.value("eta").as_f64().unwrap_or(0.0);
    let table = StepTable::build(&scheduler, check.get("num_inference_steps")?, eta)?;
    let expected: Vec<f64> = check.get("timesteps")?;
    let visited: Vec<f64> = table.rows.iter().map(|r| f64::from(r.timestep)).collect();
    if visited != expected {
        return Err(check.error(format!("timesteps {visited:?} instead of {expected:?}")));
    }
    let ([n, c, h, w], mut x) = check.images("x_T")?;
    x.iter_mut().for_each(|v| *v = (f64::from(*v) * table.init_noise_sigma) as f32);
    let noise = if check.has_input("noise") { Some(step_images(check, "noise")?) } else { None };
    let options = SamplingOptions {
        table: Arc::new(table),
        guidance: None,
        noise: if noise.is_some() { NoiseSource::Given } else { NoiseSource::Philox },
    };
    if noise.is_none() && options.table.rows.iter().any(|r| r.noise) {
        return Err(check.error("the sampler draws noise, the case gives none"));
    }
    let program = SamplingProgram::new(case.config()?, Batch { n, h, w }, &options)?;
    let mut exe = backend.compile(program.plan.clone())?;
    case.load(exe.as_mut())?;
    exe.write_f32(program.x, &x)?;
    check.write_labels(exe.as_mut(), program.class)?;

    let tolerance = check.get("tol_rel_fp32")?;
    let kept: Vec<usize> = check.get("trajectory_steps")?;
    let trajectory = check.output("trajectory")?;
    let mut worst = Measured::new(0.0, tolerance, "");
    for step in 0..options.table.rows.len() {
        if let (Some(z), Some(noise)) = (program.z, &noise) {
            exe.write_f32(z, &noise[step])?;
        }
        exe.run()?;
        exe.finish()?;
        if let Some(at) = kept.iter().position(|&k| k == step) {
            let golden = &trajectory[at * n * c * h * w..][..n * c * h * w];
            let error = relative_error(&read(exe.as_ref(), program.x)?, golden);
            worst = worst.worse(Measured::new(error, tolerance, format!("x after step {step}")));
        }
    }
    let error = relative_error(&read(exe.as_ref(), program.x)?, &check.output("x_0")?);
    Ok(worst.worse(Measured::new(error, tolerance, "x_0")))
}

/// `[steps, N, C, H, W]` as one NHWC batch per step.
pub(super) fn step_images(check: Check, key: &str) -> Result<Vec<Vec<f32>>, VerifyError> {
    let (shape, data) = check.input(key)?;
    let &[steps, n, c, h, w] = shape.as_slice() else {
        return Err(check.error(format!("{key} is not a list of image batches")));
    };
    let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
    let batches = data.chunks_exact(data.len() / steps.max(1));
    Ok(batches.map(|b| crate::layout::nchw_to_nhwc(b, [n, c, h, w])).collect())
}
