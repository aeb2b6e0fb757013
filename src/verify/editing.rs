//! Checks of editing: inpainting.

use std::sync::Arc;

use super::case::{Case, Check};
use super::network::{read, step_images};
use super::{Measured, VerifyError, relative_error};
use crate::backend::Backend;
use crate::diffusion::repaint::{Move, Repaint, Resampling, put_back, renoise};
use crate::diffusion::{Compat, SchedulerConfig};
use crate::graph::NoiseSource;
use crate::layout::nhwc_to_nchw;
use crate::program::{Batch, SamplingOptions, SamplingProgram};

/// The walk of a check, as diffusers takes it. Its scheduler class has DDIM's options.
fn walk(check: Check) -> Result<Repaint, VerifyError> {
    let mut options = check.value("scheduler").clone();
    options["_class_name"] = "DDIMScheduler".into();
    let scheduler = SchedulerConfig { compat: Compat::Diffusers, ..SchedulerConfig::from_value(&options)? };
    let resampling = Resampling { jump_length: check.get("jump_length")?, times: check.get("jump_n_sample")? };
    Ok(Repaint::new(&scheduler, check.get("num_inference_steps")?, check.get("eta")?, resampling)?)
}

/// Inpainting with the recorded noise, every draw in its order: a step uses one for its own noise and for the known part.
pub(super) fn repaint(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let Repaint { table, moves } = walk(check)?;
    let timestep = |m: &Move| match m {
        Move::Denoise { timestep, .. } | Move::Renoise { timestep, .. } => *timestep,
    };
    let (expected, visited): (Vec<usize>, Vec<usize>) = (check.get("timesteps")?, moves.iter().map(timestep).collect());
    if visited != expected {
        return Err(check.error(format!("timesteps {visited:?} instead of {expected:?}")));
    }
    let ([n, c, h, w], start) = check.images("x_T")?;
    let (_, image) = check.images("image")?;
    let (_, mask) = check.images("mask")?;
    let noise = step_images(check, "noise")?;
    let options = SamplingOptions::new(Arc::new(table), NoiseSource::Given);
    let program = SamplingProgram::new(case.config()?, Batch { n, h, w }, &options)?;
    let mut exe = backend.compile(program.plan.clone())?;
    case.load(exe.as_mut())?;
    exe.write_f32(program.x, &start)?;
    let tolerance = check.get("tol_rel_fp32")?;
    let (kept, trajectory): (Vec<usize>, _) = (check.get("trajectory_steps")?, check.output("trajectory")?);
    let mut worst = Measured::new(0.0, tolerance, "");
    let mut draws = noise.iter();
    let mut next = || draws.next().ok_or_else(|| check.error("the case gives less noise than the walk draws"));
    let mut x = start;
    for (at, m) in moves.iter().enumerate() {
        match m {
            Move::Denoise { known, .. } => {
                let z = next()?;
                if let Some(value) = program.z {
                    exe.write_f32(value, z)?;
                }
                exe.run()?;
                exe.read_f32(program.x, &mut x)?;
                put_back(&mut x, *known, &image, &mask, z);
            }
            Move::Renoise { draws, .. } => {
                for by in draws {
                    renoise(&mut x, *by, next()?);
                }
            }
        }
        exe.write_f32(program.x, &x)?;
        if let Some(place) = kept.iter().position(|&k| k == at) {
            let now: Vec<f64> = nhwc_to_nchw(&x, [n, c, h, w]).into_iter().map(f64::from).collect();
            let golden = trajectory.get(place * now.len()..(place + 1) * now.len()).unwrap_or_default();
            worst = worst.worse(Measured::new(relative_error(&now, golden), tolerance, format!("x after move {at}")));
        }
    }
    if draws.next().is_some() {
        return Err(check.error("the case gives more noise than the walk draws"));
    }
    let x = read(exe.as_ref(), program.x)?;
    Ok(worst.worse(Measured::new(relative_error(&x, &check.output("x_0")?), tolerance, "x_0")))
}
