//! Checks of the backward pass and of the optimiser.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::case::{Case, Check};
use super::network::step_images;
use super::{Measured, VerifyError, relative_error};
use crate::backend::{Backend, BackendError, Executable, Store};
use crate::diffusion::{
    BetaConfig, LossWeighting, Objective, Schedule, SchedulerConfig, TrainingObjective, VarianceType,
};
use crate::graph::{AdamW, ParamId};
use crate::layout::nhwc_to_nchw;
use crate::program::{Batch, Given, TrainingInputs, TrainingOptions, TrainingProgram};

/// The objective that a `grad` check names: plain squared error, or the hybrid with its weight of the bound.
fn objective(check: Check) -> Result<TrainingObjective, VerifyError> {
    let loss: String = check.get("loss")?;
    let (objective, variance) = if loss.starts_with("mse") {
        (Objective::Simple, VarianceType::FixedSmall)
    } else if loss.starts_with("hybrid") && loss.contains("1e-3 * mean_batch(vb)") {
        (Objective::Hybrid { lambda: 1e-3 }, VarianceType::LearnedRange)
    } else {
        return Err(check.error(format!("the loss {loss:?} is not known")));
    };
    let betas = betas(check, "schedule")?;
    // The recorded losses compare with eps whatever the case's sampler predicts.
    let prediction = crate::diffusion::PredictionType::Epsilon;
    Ok(TrainingObjective::new(Schedule::new(&betas)?, prediction, variance, objective, LossWeighting::None, 256))
}

/// The noise schedule among the fields of a check.
pub(super) fn betas(check: Check, key: &str) -> Result<BetaConfig, VerifyError> {
    let mut value = check.value(key).clone();
    if let Some(map) = value.as_object_mut() {
        map.insert("_class_name".into(), "DDPMScheduler".into());
        // Fields of the case format that a scheduler does not have.
        map.retain(|k, _| !matches!(k.as_str(), "clip" | "blend"));
    }
    Ok(SchedulerConfig::from_value(&value)?.betas)
}

/// A training program with given noise and the case's weights.
fn prepare(
    case: &Case,
    objective: TrainingObjective,
    batch: Batch,
    (optimizer, inputs): (Option<AdamW>, TrainingInputs),
    backend: &dyn Backend,
) -> Result<(Box<dyn Executable>, TrainingProgram), VerifyError> {
    let options = TrainingOptions { objective: Arc::new(objective), optimizer, inputs };
    let program = TrainingProgram::new(case.config()?, batch, &options)?;
    let mut exe = backend.compile(program.plan.clone())?;
    case.load(exe.as_mut())?;
    Ok((exe, program))
}

fn given(check: Check, program: &TrainingProgram) -> Result<Given, VerifyError> {
    program.given.ok_or_else(|| check.error("the program draws its own noise"))
}

fn mean_loss(exe: &dyn Executable, program: &TrainingProgram) -> Result<f64, BackendError> {
    let losses = exe.read_f64(program.losses)?;
    Ok(losses.iter().step_by(3).sum::<f64>() / (losses.len() / 3) as f64)
}

pub(super) fn gradients(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let ([n, _, h, w], x_t) = check.images("x_t")?;
    let (mut exe, program) =
        prepare(case, objective(check)?, Batch { n, h, w }, (None, TrainingInputs::Given), backend)?;
    let inputs = given(check, &program)?;
    exe.write_f32(program.x0, &check.images("x0")?.1)?;
    exe.write_f32(inputs.x_t, &x_t)?;
    exe.write_f32(inputs.eps, &check.images("noise")?.1)?;
    let t: Vec<f32> = check.input("timesteps")?.1.iter().map(|&t| t as f32).collect();
    exe.write_f32(inputs.t, &t)?;
    check.write_labels(exe.as_mut(), program.class)?;
    exe.run()?;
    exe.finish()?;

    let tolerance = check.get("tol_rel_fp32")?;
    let out = nhwc_to_nchw(&exe.read_f64(program.out)?, [n, exe.plan().graph().shape(program.out).channels(), h, w]);
    let mut worst = Measured::new(relative_error(&out, &check.output("out")?), tolerance, "model output");
    let loss = relative_error(&[mean_loss(exe.as_ref(), &program)?], &check.output("loss")?);
    worst = worst.worse(Measured::new(loss, tolerance, "loss"));

    let prefix = check.output_name("grads_prefix")?;
    let total: f64 = check.get("total_grad_norm")?;
    let norm = exe.read_f64(program.grad_norm)?[0];
    worst = worst.worse(Measured::new((norm - total).abs() / total, tolerance, "global norm"));
    let graph = exe.plan().graph();
    for (i, spec) in graph.params().iter().enumerate() {
        for (k, part) in spec.parts.iter().enumerate() {
            let name = format!("{prefix}{}", part.name);
            let Some(value) = graph.grad(ParamId::new(i)) else {
                if case.has(&name) {
                    return Err(check.error(format!("{} has no gradient here", part.name)));
                }
                continue;
            };
            let data: Vec<f32> = exe.read_f64(value)?.iter().map(|&v| v as f32).collect();
            let data = spec.export(k, &data);
            let golden = case.tensor(&name)?.1;
            let norm = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
            let difference = norm(&mut data.iter().zip(&golden).map(|(a, g)| f64::from(*a) - g));
            let scale = norm(&mut golden.iter().copied()).max(1e-4 * total);
            worst = worst.worse(Measured::new(difference / scale, tolerance, part.name.clone()));
        }
    }
    Ok(worst)
}

/// A training loss of the guided-diffusion kind.
pub(super) struct Loss {
    pub objective: TrainingObjective,
    /// The times that the network is told; those of the check index the chain.
    pub network_times: Vec<f32>,
    /// Factor of losses and gradients.
    pub scale: f64,
}

/// Losses of each example, gradients of their mean, and the norm of every parameter's gradient.
pub(super) fn losses(case: &Case, check: Check, loss: Loss, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let ([n, c, h, w], x0) = check.images("x0")?;
    let (_, noise) = check.images("noise")?;
    let times = check.input("timesteps")?.1;
    let alpha_bars = loss.objective.schedule().alpha_bars.clone();
    let vb_weight = loss.objective.bound_weight();
    let inputs = (None, TrainingInputs::GivenRespaced);
    let (mut exe, program) = prepare(case, loss.objective, Batch { n, h, w }, inputs, backend)?;
    let inputs = given(check, &program)?;
    let x_t: Vec<f32> = (0..x0.len())
        .map(|i| {
            let a = alpha_bars[times[i / (c * h * w)] as usize];
            (a.sqrt() * f64::from(x0[i]) + (1.0 - a).sqrt() * f64::from(noise[i])) as f32
        })
        .collect();
    exe.write_f32(program.x0, &x0)?;
    exe.write_f32(inputs.x_t, &x_t)?;
    exe.write_f32(inputs.eps, &noise)?;
    exe.write_f32(inputs.t, &times.iter().map(|&t| t as f32).collect::<Vec<_>>())?;
    exe.write_f32(inputs.network_t, &loss.network_times)?;
    if let Some(condition) = program.condition {
        exe.write_f32(condition, &check.condition((h, w))?)?;
    }
    check.write_labels(exe.as_mut(), program.class)?;
    exe.run()?;
    exe.finish()?;

    let tolerance = check.get("tol_rel_fp32")?;
    let terms = exe.read_f64(program.losses)?;
    let column = |i: usize, factor: f64| terms.iter().skip(i).step_by(3).map(|v| v * factor).collect::<Vec<f64>>();
    let mut worst = Measured::new(0.0, tolerance, "");
    for (key, actual) in [("loss", column(0, loss.scale)), ("mse", column(1, 1.0)), ("vb", column(2, vb_weight))] {
        if check.value("outputs")[key].is_string() {
            let error = relative_error(&actual, &check.output(key)?);
            worst = worst.worse(Measured::new(error, tolerance, key));
        }
    }
    let gradients = file_gradients(case, exe.as_ref(), loss.scale)?;
    Ok(worst.worse(compare_gradients(case, check, &gradients)?))
}

/// The gradient of every tensor of the model's file, by its name there.
fn file_gradients(case: &Case, exe: &dyn Executable, scale: f64) -> Result<BTreeMap<String, Vec<f64>>, VerifyError> {
    let graph = exe.plan().graph();
    let aliases = case.aliases()?;
    let mut aliases = aliases.iter();
    let mut gradients: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (i, spec) in graph.params().iter().enumerate() {
        let value = graph.grad(ParamId::new(i));
        let value = value.map(|value| exe.read_f64(value)).transpose()?.unwrap_or_default();
        let data: Vec<f32> = value.iter().map(|&v| (v * scale) as f32).collect();
        for (k, part) in spec.parts.iter().enumerate() {
            let Some(alias) = aliases.next() else { continue };
            let data = spec.export(k, &data).into_iter().map(f64::from).collect::<Vec<_>>();
            let Some(blocks) = alias.rows else {
                gradients.insert(alias.file_name.clone(), data);
                continue;
            };
            let row = data.len() / part.file_shape[0];
            let whole = gradients.entry(alias.file_name.clone()).or_insert_with(|| vec![0.0; 3 * data.len()]);
            let blocks_of_part = data.chunks(blocks.len * row);
            for (to, from) in whole.chunks_mut(blocks.stride * row).zip(blocks_of_part) {
                to[blocks.first * row..][..from.len()].copy_from_slice(from);
            }
        }
    }
    Ok(gradients)
}

fn compare_gradients(
    case: &Case,
    check: Check,
    gradients: &BTreeMap<String, Vec<f64>>,
) -> Result<Measured, VerifyError> {
    #[derive(Deserialize)]
    struct Rows {
        rows: Vec<usize>,
        values: String,
    }
    let tolerance = check.get("tol_rel_fp32_grads")?;
    let floor = 1e-4 * check.get::<f64>("total_grad_norm")?;
    let norm = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    let missing = |name: &str| check.error(format!("{name} has no gradient here"));
    let mut worst = Measured::new(0.0, tolerance, "");
    let difference = |actual: &[f64], golden: &[f64]| {
        let difference = norm(&mut actual.iter().zip(golden).map(|(a, g)| a - g));
        let complete = actual.len() == golden.len();
        if complete { difference / norm(&mut golden.iter().copied()).max(floor) } else { f64::INFINITY }
    };
    for (name, tensor) in check.get::<BTreeMap<String, String>>("grads")? {
        let actual = gradients.get(&name).ok_or_else(|| missing(&name))?;
        let error = difference(actual, &case.tensor(&tensor)?.1);
        worst = worst.worse(Measured::new(error, tolerance, format!("gradient of {name}")));
    }
    if check.value("grad_rows").is_object() {
        for (name, recorded) in check.get::<BTreeMap<String, Rows>>("grad_rows")? {
            let actual = gradients.get(&name).ok_or_else(|| missing(&name))?;
            let golden = case.tensor(&recorded.values)?.1;
            let row = golden.len() / recorded.rows.len().max(1);
            let rows: Vec<f64> = recorded
                .rows
                .iter()
                .flat_map(|&r| actual.get(r * row..(r + 1) * row).unwrap_or_default())
                .copied()
                .collect();
            worst = worst.worse(Measured::new(difference(&rows, &golden), tolerance, format!("rows of {name}")));
        }
    }
    let norms: BTreeMap<String, f64> = check.get("grad_norms")?;
    if norms.len() != gradients.len() {
        return Err(check.error(format!("{} gradients instead of {}", gradients.len(), norms.len())));
    }
    for (name, golden) in norms {
        let actual = gradients.get(&name).ok_or_else(|| missing(&name))?;
        let error = (norm(&mut actual.iter().copied()) - golden).abs() / golden.max(floor);
        worst = worst.worse(Measured::new(error, tolerance, format!("gradient norm of {name}")));
    }
    Ok(worst)
}

#[derive(Deserialize)]
struct Hyperparameters {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    ema_decay: f64,
    steps: usize,
}

pub(super) fn steps(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let h: Hyperparameters = check.get("hparams")?;
    let Some(gradient_check) = case.checks().find(|c| c.kind() == "grad") else {
        return Err(check.error("needs the loss of a grad check, and the case has none"));
    };
    let objective = objective(gradient_check)?;
    let alpha_bars = objective.schedule().alpha_bars.clone();
    let (shape, _) = check.input("x0")?;
    let &[_, n, _, height, width] = shape.as_slice() else {
        return Err(check.error("x0 is not a list of image batches"));
    };
    let (x0, noise) = (step_images(check, "x0")?, step_images(check, "noise")?);
    let (_, timesteps) = check.input("timesteps")?;
    let optimizer = AdamW {
        beta1: h.beta1,
        beta2: h.beta2,
        eps: h.eps,
        weight_decay: h.weight_decay,
        max_grad_norm: h.max_grad_norm,
    };
    let batch = Batch { n, h: height, w: width };
    let (mut exe, program) = prepare(case, objective, batch, (Some(optimizer), TrainingInputs::Given), backend)?;
    let inputs = given(check, &program)?;
    copy_weights_to_ema(exe.as_mut())?;
    check.write_labels(exe.as_mut(), program.class)?;

    let (losses, norms): (Vec<f64>, Vec<f64>) = (check.get("losses")?, check.get("grad_norms_before_clip")?);
    let loss_tolerance = check.get("tol_loss_rel")?;
    let mut worst = Measured::new(0.0, loss_tolerance, "");
    for k in 0..h.steps {
        let t = &timesteps[k * n..(k + 1) * n];
        let per_image = x0[k].len() / n;
        let x_t: Vec<f32> = x0[k]
            .iter()
            .zip(&noise[k])
            .enumerate()
            .map(|(i, (x, e))| {
                let a = alpha_bars[t[i / per_image] as usize];
                (a.sqrt() * f64::from(*x) + (1.0 - a).sqrt() * f64::from(*e)) as f32
            })
            .collect();
        exe.write_f32(program.x0, &x0[k])?;
        exe.write_f32(inputs.x_t, &x_t)?;
        exe.write_f32(inputs.eps, &noise[k])?;
        exe.write_f32(inputs.t, &t.iter().map(|&t| t as f32).collect::<Vec<_>>())?;
        let power = |b: f64| 1.0 - b.powi(k as i32 + 1);
        let hyper = [h.lr, power(h.beta1), power(h.beta2), h.ema_decay].map(|v| v as f32);
        exe.write_f32(program.hyper, &hyper)?;
        exe.run()?;
        exe.finish()?;
        let loss = (mean_loss(exe.as_ref(), &program)? - losses[k]).abs() / losses[k].abs();
        worst = worst.worse(Measured::new(loss, loss_tolerance, format!("loss of step {k}")));
        let norm = (exe.read_f64(program.grad_norm)?[0] - norms[k]).abs() / norms[k];
        worst = worst.worse(Measured::new(norm, loss_tolerance, format!("gradient norm of step {k}")));
    }
    for (store, key) in [(Store::Params, "params_prefix"), (Store::Ema, "ema_prefix")] {
        worst = worst.worse(compare_weights(case, check, exe.as_ref(), store, key, h.lr)?);
    }
    Ok(worst)
}

fn copy_weights_to_ema(exe: &mut dyn Executable) -> Result<(), VerifyError> {
    for i in 0..exe.plan().graph().params().len() {
        let mut data = vec![0.0; exe.plan().graph().params()[i].numel()];
        exe.read_param(Store::Params, ParamId::new(i), &mut data)?;
        exe.write_param(Store::Ema, ParamId::new(i), &data)?;
    }
    Ok(())
}

/// Adam moves every weight by about the learning rate whatever its gradient's size, so a weight whose gradient is
/// rounding may go either way: the metric counts how many are off by more than 5 % of that, and how far the worst is.
fn compare_weights(
    case: &Case,
    check: Check,
    exe: &dyn Executable,
    store: Store,
    key: &str,
    lr: f64,
) -> Result<Measured, VerifyError> {
    let prefix = check.output_name(key)?;
    let limit: f64 = check.get("tol_worst_lr_units")?;
    let (mut fractions, mut farthest) = (Vec::new(), Measured::new(0.0, limit, ""));
    for (i, spec) in exe.plan().graph().params().iter().enumerate() {
        let mut data = vec![0.0; spec.numel()];
        exe.read_param(store, ParamId::new(i), &mut data)?;
        for (k, part) in spec.parts.iter().enumerate() {
            let golden = case.tensor(&format!("{prefix}{}", part.name))?.1;
            let moved: Vec<f64> =
                spec.export(k, &data).iter().zip(&golden).map(|(a, g)| (f64::from(*a) - g).abs() / lr).collect();
            let off = moved.iter().filter(|d| d.is_nan() || **d > 0.05).count();
            fractions.push(off as f64 / moved.len() as f64);
            let worst = moved.iter().fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(*d) });
            let place = format!("{store:?} of {}, in learning rates", part.name);
            farthest = farthest.worse(Measured::new(worst, limit, place));
        }
    }
    let fraction = fractions.iter().sum::<f64>() / fractions.len() as f64;
    let fraction =
        Measured::new(fraction, check.get("tol_fraction_off")?, format!("fraction of {store:?} that is off"));
    Ok(farthest.worse(fraction))
}
