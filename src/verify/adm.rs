//! Checks of guided-diffusion's own kind: its samplers, bound and losses over a respaced chain, and the networks it released.

use std::fs;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::case::{Case, Check};
use super::network::{Run, step_images};
use super::training::{Loss, losses};
use super::{Measured, VerifyError, relative_error};
use crate::backend::Backend;
use crate::diffusion::vlb::prior_bpd;
use crate::diffusion::{
    Clip, LossWeighting, Objective, Respaced, Schedule, SchedulerConfig, StepTable, TrainingObjective, Vlb,
};
use crate::io::FileError;
use crate::layout::nhwc_to_nchw;
use crate::levels::to_byte_truncated;
use crate::model::adm::{Flags, file_tensors};
use crate::model::bind_classifier;
use crate::program::{Batch, ClassifierProgram, ForwardProgram, parameters};

/// The diffusion process of a check.
struct Process {
    scheduler: SchedulerConfig,
    chain: Respaced,
    rescaled: bool,
}

impl Process {
    fn of(check: Check) -> Result<Self, VerifyError> {
        let flags = Flags::parse(&check.value("diffusion").to_string(), format!("diffusion of {}", check.id()))?;
        flags.check_known()?;
        let (scale, scheduler) = flags.schedule()?;
        let schedule = Schedule::new(&scheduler.betas)?;
        let chain = Respaced::new(&schedule, scheduler.respacing.as_deref().unwrap_or_default())?;
        let steps: usize = check.get("num_steps")?;
        if chain.timestep_map.len() != steps {
            return Err(check.error(format!("{} timesteps instead of {steps}", chain.timestep_map.len())));
        }
        Ok(Self { scheduler, chain, rescaled: scale != 1.0 })
    }

    fn clip(&self, check: Check) -> Result<Clip, VerifyError> {
        Ok(if check.get("clip_denoised")? { Clip::Range(1.0) } else { Clip::None })
    }
}

pub(super) fn sample(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let process = Process::of(check)?;
    let (chain, prediction, rescaled) = (&process.chain, process.scheduler.prediction_type, process.rescaled);
    let clip = process.clip(check)?;
    let sampler: String = check.get("sampler")?;
    let (table, start) = match sampler.as_str() {
        "ddpm" => {
            let variance = process.scheduler.variance_type;
            (StepTable::respaced_ancestral(chain, prediction, variance, clip, rescaled)?, "x_T")
        }
        "ddim" => (StepTable::respaced_ddim(chain, prediction, clip, check.get("eta")?, rescaled)?, "x_T"),
        "ddim_reverse" => (StepTable::respaced_ddim_reverse(chain, prediction, clip, rescaled)?, "x_start"),
        other => return Err(check.error(format!("the sampler {other:?} is not known"))),
    };
    let noise = if check.has_input("noise") { Some(step_images(check, "noise")?) } else { None };
    let guide = match check.value("guidance")["classifier_scale"].as_f64() {
        Some(scale) => Some((case.classifier()?, scale)),
        None => None,
    };
    let run = Run { case, check, backend, guidance: None, guide };
    let (x, worst) = run.compared(table, check.images(start)?, noise.as_deref())?;
    let tolerance = check.get("tol_rel_fp32")?;
    Ok(worst.worse(Measured::new(relative_error(&x, &check.output("x_0")?), tolerance, "x_0")))
}

/// The bound of every timestep of the chain, last timestep first.
pub(super) fn bound(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let process = Process::of(check)?;
    let schedule = &process.chain.schedule;
    let clipped = check.get("clip_denoised")?;
    let vlb = Vlb::new(schedule, process.scheduler.prediction_type, process.scheduler.variance_type, clipped, 256)?;
    let ([n, c, h, w], x0) = check.images("x0")?;
    let noise = step_images(check, "noise")?;
    let config = case.config()?;
    let program = ForwardProgram::new(config, Batch { n, h, w }, false)?;
    let mut exe = backend.compile(program.plan.clone())?;
    case.load(exe.as_mut())?;
    check.write_labels(exe.as_mut(), program.class)?;
    let condition = if check.has_input("low_res") { check.condition((h, w))? } else { Vec::new() };

    let x0: Vec<f64> = x0.iter().map(|&v| f64::from(v)).collect();
    let image = c * h * w;
    let steps = schedule.num_timesteps();
    // Of each image, one entry a step.
    let (mut vb, mut x0_mse, mut mse) = (vec![Vec::new(); n], vec![Vec::new(); n], vec![Vec::new(); n]);
    for (step, noise) in noise.iter().enumerate() {
        let t = steps - 1 - step;
        let alpha_bar = schedule.alpha_bars[t];
        let mix = |(x, e): (&f64, &f32)| alpha_bar.sqrt() * x + (1.0 - alpha_bar).sqrt() * f64::from(*e);
        let x_t: Vec<f64> = x0.iter().zip(noise).map(mix).collect();
        let input: Vec<f32> = x_t.iter().map(|&v| v as f32).collect();
        exe.write_f32(program.x, &super::network::join_channels(&input, c, &condition, config.condition_channels))?;
        let time = process.chain.network_timestep(t, process.rescaled) as f32;
        exe.write_f32(program.t, &vec![time; n])?;
        exe.run()?;
        exe.finish()?;
        let out = exe.read_f64(program.out)?;
        for i in 0..n {
            let pixels = out[i * h * w * config.out_channels..].chunks(config.out_channels).take(h * w);
            let (model, v): (Vec<&[f64]>, Vec<&[f64]>) = pixels.map(|pixel| pixel.split_at(c)).unzip();
            let images = i * image..(i + 1) * image;
            let term = vlb.term(t, &x0[images.clone()], &x_t[images], &model.concat(), &v.concat())?;
            vb[i].push(term.vb_tanh);
            x0_mse[i].push(term.x0_mse);
            mse[i].push(term.x0_mse * alpha_bar / (1.0 - alpha_bar));
        }
    }
    let prior: Vec<f64> = x0.chunks(image).map(|x0| prior_bpd(schedule, x0)).collect();
    let total: Vec<f64> = vb.iter().zip(&prior).map(|(vb, prior)| vb.iter().sum::<f64>() + prior).collect();
    let decoder: Vec<f64> = vb.iter().filter_map(|vb| vb.last().copied()).collect();
    let rest: Vec<f64> = vb.iter().flat_map(|vb| &vb[..steps - 1]).copied().collect();
    let mut worst = Measured::new(0.0, 1.0, "");
    for (key, actual) in [
        ("total_bpd", total),
        ("prior_bpd", prior),
        ("xstart_mse", x0_mse.concat()),
        ("mse", mse.concat()),
        ("vb_t0", decoder),
        ("vb_rest", rest),
    ] {
        let golden = check.output(key)?;
        let tolerance = check.value("tol_by_output")[key].as_f64();
        let tolerance = tolerance.ok_or_else(|| check.error(format!("{key} has no tolerance")))?;
        let share = actual.iter().zip(&golden).map(|(a, g)| (a - g).abs() / (g.abs() + 1e-5));
        let error = share.fold(0.0, |m: f64, s| if s.is_nan() { f64::INFINITY } else { m.max(s) });
        let error = if actual.len() == golden.len() { error } else { f64::INFINITY };
        worst = worst.worse(Measured::new(error, tolerance, key));
    }
    Ok(worst)
}

/// A training loss of each example, and the gradient of their mean.
pub(super) fn loss(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let process = Process::of(check)?;
    let steps = process.chain.schedule.num_timesteps();
    let learned = process.scheduler.variance_type.is_learned();
    let kind: String = check.get("loss_type")?;
    // L_vlb is weighted with the number of timesteps, which two of the four kinds leave out.
    let (objective, scale) = match (kind.as_str(), learned) {
        ("MSE" | "RESCALED_MSE", false) => (Objective::Simple, 1.0),
        ("MSE", true) => (Objective::Hybrid { lambda: 1.0 }, 1.0),
        ("RESCALED_MSE", true) => (Objective::hybrid(steps), 1.0),
        ("KL", _) => (Objective::Vlb, 1.0 / steps as f64),
        ("RESCALED_KL", _) => (Objective::Vlb, 1.0),
        _ => return Err(check.error(format!("the loss {kind:?} is not known"))),
    };
    let Process { scheduler, chain, rescaled } = process;
    let times = check.input("timesteps")?.1;
    let network_times = times.iter().map(|&t| chain.network_timestep(t as usize, rescaled) as f32).collect();
    let objective = TrainingObjective::new(
        chain.schedule,
        scheduler.prediction_type,
        scheduler.variance_type,
        objective,
        LossWeighting::None,
        256,
    );
    losses(case, check, Loss { objective, network_times, scale }, backend)
}

/// The entries of a JSON object in their order.
struct Ordered(Vec<(String, Vec<usize>)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of shapes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Names, shapes, order and number of the tensors of released networks.
pub(super) fn topologies(case: &Case, check: Check) -> Result<Measured, VerifyError> {
    #[derive(Deserialize)]
    struct Topology {
        kind: String,
        flags: Value,
        tensors: Ordered,
        parameters: usize,
    }
    let file: String = check.get("file")?;
    let path = case.folder().join(file);
    let text = fs::read_to_string(&path).map_err(FileError::os("read", &path))?;
    let released: std::collections::BTreeMap<String, Topology> =
        serde_json::from_str(&text).map_err(|e| check.error(format!("{}: {e}", path.display())))?;
    let models: Vec<String> = check.get("models")?;
    let mut differing = Vec::new();
    for name in &models {
        let Some(topology) = released.get(name) else {
            return Err(check.error(format!("{} has no {name}", path.display())));
        };
        let flags = Flags::parse(&topology.flags.to_string(), name.as_str())?;
        flags.check_known()?;
        let tensors = match topology.kind.as_str() {
            "classifier" => {
                let classifier = flags.classifier()?;
                file_tensors(&classifier.encoder, &classifier.parameters()?)
            }
            _ => {
                let config = flags.network()?.config;
                file_tensors(&config, &parameters(&config)?)
            }
        };
        let expected = &topology.tensors.0;
        let first = tensors.iter().zip(expected).find(|(actual, expected)| actual != expected);
        let parameters: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        if let Some(((actual, shape), (name, expected))) = first {
            differing.push(format!("{actual} {shape:?} instead of {name} {expected:?}"));
        } else if tensors.len() != expected.len() || parameters != topology.parameters {
            differing.push(format!("{name} has {} tensors of {parameters} elements", tensors.len()));
        }
    }
    Ok(Measured::new(differing.len() as f64, 0.5, differing.join(", ")))
}

/// Logits, the log-probability of a class, and its gradient with respect to the image.
pub(super) fn classifier(case: &Case, check: Check, backend: &dyn Backend) -> Result<Measured, VerifyError> {
    let model = case.classifier()?;
    let ([n, c, h, w], x) = check.images("sample")?;
    let program = ClassifierProgram::new(&model.config, Batch { n, h, w })?;
    let mut exe = backend.compile(program.plan.clone())?;
    bind_classifier(exe.as_mut(), &model.weights()?)?;
    exe.write_f32(program.x, &x)?;
    exe.write_f32(program.t, &check.input("timesteps")?.1.iter().map(|&t| t as f32).collect::<Vec<_>>())?;
    let labels = check.input("class_labels")?.1;
    exe.write_u32(program.values.label, &labels.iter().map(|&label| label as u32).collect::<Vec<_>>())?;
    exe.run()?;
    exe.finish()?;
    let tolerance = check.get("tol_rel_fp32")?;
    let gradient = nhwc_to_nchw(&exe.read_f64(program.values.gradient)?, [n, c, h, w]);
    let mut worst = Measured::new(0.0, tolerance, "");
    for (key, actual) in [
        ("logits", exe.read_f64(program.values.logits)?),
        ("log_prob", exe.read_f64(program.values.log_probability)?),
        ("grad", gradient),
    ] {
        worst = worst.worse(Measured::new(relative_error(&actual, &check.output(key)?), tolerance, key));
    }
    Ok(worst)
}

/// Bytes of values; the error is the number of those that differ.
pub(super) fn bytes(check: Check) -> Result<Measured, VerifyError> {
    let (values, levels) = (check.input("sample")?.1, check.output("levels")?);
    if values.len() != levels.len() {
        return Err(check.error("there are not as many levels as values"));
    }
    let differ = |(value, level): &(&f64, &f64)| f64::from(to_byte_truncated(**value as f32)) != **level;
    Ok(Measured::new(values.iter().zip(&levels).filter(differ).count() as f64, 0.5, "grey levels"))
}
