//! `warpdiff compare --precision fp8`: what quantisation costs.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::compare::Args;
use super::device::Opened;
use crate::backend::Backend;
use crate::compare::fp8::{ConvReport, Devices, Given, LIMIT, OutputReport, compare_fp8};
use crate::model::read_weights;
use crate::program::{Batch, ForwardProgram};
use crate::sample::{CALIBRATION_SAMPLES, CALIBRATION_STEPS, LabelChoice, SampleOptions, Sampler, calibrate};

#[derive(Serialize)]
struct Report {
    a: String,
    b: String,
    precision: &'static str,
    outputs: Vec<OutputReport>,
    convolutions: Vec<ConvReport>,
    limit: f64,
    passed: bool,
}

pub(super) fn run(args: &Args, oracle: &dyn Backend, device: Opened, quiet: bool) -> Result<ExitCode> {
    if args.train {
        bail!("--precision fp8 is for sampling; leave out --train, or take --precision bf16");
    }
    let Opened::Fp8(bf16) = device else { bail!("the device was not opened for fp8") };
    let model = args.model.open()?;
    let options = SampleOptions {
        scheduler: model.scheduler.clone(),
        steps: CALIBRATION_STEPS.min(model.scheduler.betas.num_train_timesteps),
        eta: 0.0,
        seed: args.seed,
        labels: LabelChoice::Balanced,
        guidance: 1.0,
        guidance_rescale: 0.0,
        batch: args.batch as usize,
    };
    let scales = calibrate(&model, &options, &bf16)?;
    // Others than the samples that gave the scales.
    let samples = CALIBRATION_SAMPLES..CALIBRATION_SAMPLES + options.batch;
    let mut sampler = Sampler::new(&model, options, &bf16)?;
    let mut visited = Vec::new();
    sampler.visit(samples.clone(), &mut |_, v| {
        visited.push(v);
        Ok(())
    })?;
    let labels = sampler.labels(samples.clone())?;
    let [_, h, w] = sampler.image_shape();
    let batch = Batch { n: samples.len(), h, w };
    let network = ForwardProgram::new(&model.config, batch, false)?;
    let weights = read_weights(network.plan.graph().params(), &model.weights()?)?;
    let given = Given { config: &model.config, weights: &weights, batch, visited: &visited, labels: labels.as_deref() };
    let fp8 = bf16.clone().with_fp8(scales.clone())?;
    let devices = Devices { exact: oracle, bf16: &bf16, fp8: &fp8, scales: &scales };
    let (outputs, convolutions) = compare_fp8(&given, &devices)?;

    let passed = outputs.iter().all(|o| o.passed);
    if !quiet || !passed {
        print(&outputs, &convolutions);
    }
    let worst = outputs.iter().map(|o| o.errors.fp8.norm).fold(0.0, f64::max);
    println!(
        "{} convolutions in fp8; the model's output is off by {:.2} % at most, {:.0} % {} allowed",
        convolutions.len(),
        worst * 100.0,
        LIMIT * 100.0,
        if passed { "are" } else { "would be" }
    );
    if let Some(path) = &args.json {
        let (a, b) = (oracle.name().into(), bf16.name().into());
        let report = Report { a, b, precision: "fp8", outputs, convolutions, limit: LIMIT, passed };
        write(path, &report)?;
    }
    Ok(ExitCode::from(u8::from(!passed)))
}

fn write(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn print(outputs: &[OutputReport], convolutions: &[ConvReport]) {
    let header = |what: &str| {
        println!("{what:<40} {:>10} {:>10} {:>10} {:>10}", "fp8 norm", "fp8 worst", "bf16 norm", "bf16 worst");
    };
    let line = |name: &str, e: &crate::compare::fp8::Both| {
        let (fp8, bf16) = (e.fp8, e.bf16);
        println!("{name:<40} {:>10.2e} {:>10.2e} {:>10.2e} {:>10.2e}", fp8.norm, fp8.worst, bf16.norm, bf16.worst);
    };
    header("model output at timestep");
    outputs.iter().for_each(|o| line(&o.timestep.to_string(), &o.errors));
    header("convolution alone");
    convolutions.iter().for_each(|c| line(&c.scope, &c.errors));
}
