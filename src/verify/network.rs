//! Checks that run the network: model outputs, activations, sampling trajectories.

use std::sync::Arc;

use serde::Deserialize;

use super::case::{Case, Check};
use super::{Measured, VerifyError, relative_error, tolerance_key};
use crate::backend::{Backend, BackendError, Executable};
use crate::diffusion::{self, Churn, Compat, SchedulerConfig, StepTable};
use crate::graph::{NoiseSource, ValueId};
use crate::layout::{nchw_to_nhwc, nhwc_to_nchw};
use crate::levels::Levels;
use crate::model::{ClassifierModel, bind_classifier};
use crate::program::{Batch, ForwardProgram, Guide, SamplingOptions, SamplingProgram};

/// A value of `[N, H, W, C]` as NCHW, or any other value as it is.
pub(super) fn read(exe: &dyn Executable, value: ValueId) -> Result<Vec<f64>, BackendError> {
    let data = exe.read_f64(value)?;
    Ok(match exe.plan().graph().shape(value).dims() {
        &[n, h, w, c] => nhwc_to_nchw(&data, [n, c, h, w]),
        _ => data,
    })
}

/// `b`'s channels behind `a`'s, pixel by pixel.
pub(super) fn join_channels(a: &[f32], a_channels: usize, b: &[f32], b_channels: usize) -> Vec<f32> {
    if b_channels == 0 {
        return a.to_vec();
    }
    let pixels = a.chunks(a_channels).zip(b.chunks(b_channels));
    pixels.flat_map(|(a, b)| [a, b].concat()).collect()
}

/// Runs the network on the inputs of a forward check.
fn run_forward(
    case: &Case,
    check: Check,
    backend: &dyn Backend,
    taps: bool,
) -> Result<(Box<dyn Executable>, ForwardProgram), VerifyError> {
    let ([n, c, h, w], mut x) = check.images("sample")?;
    if check.has_input("low_res") {
        x = join_channels(&x, c, &check.condition((h, w))?, case.config()?.condition_channels);
    }
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
        let golden = format!("dbg.{}", case.recorded_name(name));
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

/// A run of a step table on the case's model.
pub(super) struct Run<'a> {
    pub case: &'a Case,
    pub check: Check<'a>,
    pub backend: &'a dyn Backend,
    pub guidance: Option<Guidance>,
    /// A classifier and its scale.
    pub guide: Option<(ClassifierModel, f64)>,
}

/// Classifier-free guidance of a check.
#[derive(Deserialize)]
pub(super) struct Guidance {
    scale: f64,
    #[serde(default)]
    rescale: f64,
    null_class: u32,
}

impl Run<'_> {
    /// Takes all steps from `x`, NHWC and of the published scale; `noise` holds z of every step. `each` gets the number of a
    /// step and x after it, NCHW in the published scale; the last of these is the result.
    fn steps(
        &self,
        table: StepTable,
        ([n, c, h, w], mut x): ([usize; 4], Vec<f32>),
        noise: Option<&[Vec<f32>]>,
        each: &mut dyn FnMut(usize, &[f64]),
    ) -> Result<Vec<f64>, VerifyError> {
        if noise.is_none() && table.rows.iter().any(|r| r.noise) {
            return Err(self.check.error("the sampler draws noise, the case gives none"));
        }
        if noise.is_some_and(|noise| noise.len() < table.rows.len()) {
            return Err(self.check.error("the case gives less noise than the sampler has steps"));
        }
        x.iter_mut().for_each(|v| *v = (f64::from(*v) * table.init_noise_sigma) as f32);
        let options = SamplingOptions {
            table: Arc::new(table),
            guidance: self.guidance.as_ref().map(|g| diffusion::Guidance { scale: g.scale, rescale: g.rescale }),
            noise: if noise.is_some() { NoiseSource::Given } else { NoiseSource::Philox },
            levels: Levels::Rounded,
            classifier: self
                .guide
                .as_ref()
                .map(|(classifier, scale)| Guide { config: classifier.config.clone(), scale: *scale }),
        };
        let program = SamplingProgram::new(self.case.config()?, Batch { n, h, w }, &options)?;
        let mut exe = self.backend.compile(program.plan.clone())?;
        self.case.load(exe.as_mut())?;
        if let (Some((classifier, _)), Some(label)) = (&self.guide, program.guide_label) {
            bind_classifier(exe.as_mut(), &classifier.weights()?)?;
            let (_, labels) = self.check.input("class_labels")?;
            exe.write_u32(label, &labels.iter().map(|&label| label as u32).collect::<Vec<_>>())?;
        }
        exe.write_f32(program.x, &x)?;
        if let Some(condition) = program.condition {
            exe.write_f32(condition, &self.check.condition((h, w))?)?;
        }
        match (&self.guidance, program.class) {
            (Some(guidance), Some(class)) => {
                let (_, labels) = self.check.input("class_labels")?;
                let null = std::iter::repeat_n(guidance.null_class, labels.len());
                let labels: Vec<u32> = labels.iter().map(|&label| label as u32).chain(null).collect();
                exe.write_u32(class, &labels)?;
            }
            _ => self.check.write_labels(exe.as_mut(), program.class)?,
        }
        let mut last = vec![0.0; n * c * h * w];
        for step in 0..options.table.rows.len() {
            if let (Some(z), Some(noise)) = (program.z, noise) {
                exe.write_f32(z, &noise[step])?;
            }
            exe.run()?;
            exe.finish()?;
            last = read(exe.as_ref(), program.x)?;
            if let Some(scale) = options.table.published_scale.get(step) {
                last.iter_mut().for_each(|v| *v *= scale);
            }
            each(step, &last);
        }
        Ok(last)
    }

    /// As [`Run::steps`], and compares what the case has of the way.
    pub fn compared(
        &self,
        table: StepTable,
        start: ([usize; 4], Vec<f32>),
        noise: Option<&[Vec<f32>]>,
    ) -> Result<(Vec<f64>, Measured), VerifyError> {
        self.check_times(&table)?;
        let tolerance = self.check.get("tol_rel_fp32")?;
        let kept: Vec<usize> = self.check.get("trajectory_steps")?;
        let trajectory = self.check.output("trajectory")?;
        let mut worst = Measured::new(0.0, tolerance, "");
        let mut seen = 0;
        let x = self.steps(table, start, noise, &mut |step, x| {
            if let Some(at) = kept.iter().position(|&k| k == step) {
                let golden = trajectory.get(at * x.len()..(at + 1) * x.len()).unwrap_or_default();
                let error = Measured::new(relative_error(x, golden), tolerance, format!("x after step {step}"));
                let before = std::mem::replace(&mut worst, Measured::new(0.0, tolerance, ""));
                worst = before.worse(error);
                seen += 1;
            }
        })?;
        if seen != kept.len() {
            return Err(self.check.error(format!("{seen} of {} recorded steps were taken", kept.len())));
        }
        Ok((x, worst))
    }

    /// The network is asked at the recorded times, as far as f32 holds them.
    fn check_times(&self, table: &StepTable) -> Result<(), VerifyError> {
        let key = if self.check.value("timesteps").is_array() { "timesteps" } else { "model_timesteps" };
        // Left out where they are those of the whole chain.
        if self.check.value(key).is_null() {
            return Ok(());
        }
        let expected: Vec<f64> = self.check.get(key)?;
        let visited: Vec<f64> = table.rows.iter().map(|r| f64::from(r.timestep)).collect();
        let same = |(v, e): (&f64, &f64)| (v - e).abs() <= 1e-6 * e.abs().max(1.0);
        if visited.len() != expected.len() || !visited.iter().zip(&expected).all(same) {
            return Err(self.check.error(format!("timesteps {visited:?} instead of {expected:?}")));
        }
        Ok(())
    }
}

/// The sampler of a check, as diffusers has it.
fn sampler(check: Check) -> Result<SchedulerConfig, VerifyError> {
    let mut scheduler = check.scheduler("scheduler")?;
    scheduler.compat = Compat::Diffusers;
    if check.value("step_kwargs").is_object() {
        let field = |key: &str| {
            check.value("step_kwargs")[key].as_f64().ok_or_else(|| check.error(format!("step_kwargs has no {key}")))
        };
        scheduler.churn = Some(Churn {
            s_churn: field("s_churn")?,
            s_tmin: field("s_tmin")?,
            s_tmax: field("s_tmax")?,
            s_noise: field("s_noise")?,
        });
    }
    Ok(scheduler)
}

/// A sampling run, guided where the check says so.
pub(super) fn sample(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let scheduler = sampler(check)?;
    let eta = check.value("eta").as_f64().unwrap_or(0.0);
    let table = StepTable::build(&scheduler, check.get("num_inference_steps")?, eta)?;
    let guidance = if check.value("guidance").is_object() { Some(check.get("guidance")?) } else { None };
    let run = Run { case, check, backend, guidance, guide: None };
    let noise = if check.has_input("noise") { Some(step_images(check, "noise")?) } else { None };
    let (x, worst) = run.compared(table, check.images("x_T")?, noise.as_deref())?;
    let tolerance = check.get("tol_rel_fp32")?;
    Ok(worst.worse(Measured::new(relative_error(&x, &check.output("x_0")?), tolerance, "x_0")))
}

/// The VE sampler with its corrector: the mean of its last step, and the states after the predictors.
pub(super) fn score_sde(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let scheduler = sampler(check)?;
    let table = StepTable::build(&scheduler, check.get("num_inference_steps")?, 0.0)?;
    let rows = 1 + scheduler.score_sde.correct_steps;
    let levels: Vec<f64> = table.rows.iter().step_by(rows).map(|row| f64::from(row.timestep)).collect();
    let expected: Vec<f64> = check.get("sigmas")?;
    if levels.len() != expected.len() || relative_error(&levels, &expected) > 1e-6 {
        return Err(check.error(format!("noise levels {levels:?} instead of {expected:?}")));
    }
    let tolerance = check.get("tol_rel_fp32")?;
    let (kept, trajectory): (Vec<usize>, _) = (check.get("trajectory_steps")?, check.output("trajectory")?);
    let (noise, last_std) = (check.input("noise")?.1, table.rows.last().map_or(0.0, |row| row.s));
    let mut states = Vec::new();
    let run = Run { case, check, backend, guidance: None, guide: None };
    let draws = step_images(check, "noise")?;
    let mean = run.steps(table, check.images("x_T")?, Some(&draws), &mut |row, x| {
        if (row + 1) % rows == 0 && kept.contains(&(row / rows)) {
            states.push(x.to_vec());
        }
    })?;
    // The recorded state after the last step has its noise, the sampler's result has not.
    if let Some(last) = states.last_mut().filter(|_| kept.last() == Some(&(levels.len() - 1))) {
        let z = &noise[noise.len() - mean.len()..];
        last.iter_mut().zip(z).for_each(|(x, z)| *x += last_std * z);
    }
    let image: Vec<f64> = mean.iter().map(|x| x.clamp(0.0, 1.0)).collect();
    let measured = |key: &str, actual: &[f64]| {
        Ok::<_, VerifyError>(Measured::new(relative_error(actual, &check.output(key)?), tolerance, key))
    };
    let states = Measured::new(relative_error(&states.concat(), &trajectory), tolerance, "states after the predictors");
    Ok(states.worse(measured("mean", &mean)?).worse(measured("image", &image)?))
}

/// DDIM inversion of an image, and DDIM back from its latent.
pub(super) fn invert(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let scheduler = sampler(check)?;
    let steps = check.get("num_inference_steps")?;
    let run = Run { case, check, backend, guidance: None, guide: None };
    let (shape, image) = check.images("x_0")?;
    let (latent, worst) = run.compared(StepTable::build(&scheduler, steps, 0.0)?, (shape, image), None)?;
    let start: Vec<f32> = latent.iter().map(|&v| v as f32).collect();
    let back = StepTable::ddim(&scheduler, steps, 0.0, false)?;
    let image = run.steps(back, (shape, nchw_to_nhwc(&start, shape)), None, &mut |_, _| {})?;
    let tolerance = check.get("tol_rel_fp32")?;
    let worst = worst.worse(Measured::new(relative_error(&latent, &check.output("x_T")?), tolerance, "x_T"));
    Ok(worst.worse(Measured::new(relative_error(&image, &check.output("x_rec")?), tolerance, "x_rec")))
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
