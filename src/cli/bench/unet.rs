//! `warpdiff bench unet`: one evaluation of a network, or one training step.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde::Serialize;

use crate::backend::gpu::fp8::{Fp8Scales, Measuring};
use crate::backend::{Backend, BackendError, Executable, Store};
use crate::cli::device::{Arithmetic, DeviceArgs, Opened};
use crate::cli::presets::Preset;
use crate::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use crate::graph::{AdamW, ParamId, Plan, cost};
use crate::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use crate::unet::{UNetConfig, initial_weights};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Which network.
    #[arg(long, value_enum, default_value = "ddpm-cifar10-32")]
    preset: Preset,
    /// Batch sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    /// Measure training steps: forward, backward, clipping, AdamW and EMA.
    #[arg(long)]
    train: bool,
    /// Seconds to measure each batch size for.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Write the results here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    device: String,
    precision: Arithmetic,
    results: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    preset: String,
    train: bool,
    batch: usize,
    /// Median milliseconds of a run.
    ms: f64,
    ms_min: f64,
    ms_max: f64,
    runs: usize,
    img_s: f64,
    gflop_s: f64,
    /// Bytes that the plan asked for, weights and workspace included.
    planned_bytes: usize,
    peak_rss_bytes: u64,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let device = if args.train { Opened::Ready(args.device.backend()?) } else { args.device.open()? };
    let backend = device.calibrated(|bf16| calibrate(&args.preset.config(), bf16))?;
    let mut results = Vec::new();
    if !quiet {
        println!(
            "{:<18} {:<6} {:>5} {:>10} {:>10} {:>9} {:>9} {:>10} {:>10}",
            "preset", "step", "batch", "ms median", "ms min", "img/s", "GFLOP/s", "plan MiB", "RSS MiB"
        );
    }
    for &batch in &args.batch {
        let row = measure(args, batch as usize, backend.as_ref())?;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "{:<18} {:<6} {:>5} {:>10.2} {:>10.2} {:>9.2} {:>9.1} {:>10.0} {:>10.0}",
            row.preset,
            if row.train { "train" } else { "infer" },
            row.batch,
            row.ms,
            row.ms_min,
            row.img_s,
            row.gflop_s,
            mib(row.planned_bytes as f64),
            mib(row.peak_rss_bytes as f64)
        );
        results.push(row);
    }
    if let Some(path) = &args.json {
        let report = Report { device: backend.name().into(), precision: args.device.precision, results };
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args, n: usize, backend: &dyn Backend) -> Result<Row> {
    let config = args.preset.config();
    let (h, w) = config.height_width().unwrap_or((32, 32));
    let batch = Batch { n, h, w };
    let mut exe = if args.train {
        training(&config, batch, backend)?
    } else {
        inference(&config, batch, |plan| backend.compile(plan))?
    };
    let times = time(exe.as_mut(), Duration::from_secs_f64(args.seconds.clamp(0.1, 3600.0)))?;
    let ms = times[times.len() / 2];
    Ok(Row {
        preset: args.preset.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string()),
        train: args.train,
        batch: n,
        ms,
        ms_min: times[0],
        ms_max: times[times.len() - 1],
        runs: times.len(),
        img_s: n as f64 / ms * 1e3,
        gflop_s: cost::total_flops(exe.plan().graph()) as f64 / ms / 1e6,
        planned_bytes: exe.memory_bytes(),
        peak_rss_bytes: crate::cli::memory::peak_rss_bytes(),
    })
}

/// Milliseconds of each run, sorted, after a warm-up.
fn time(exe: &mut dyn Executable, budget: Duration) -> Result<Vec<f64>> {
    exe.run_many(2)?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || (start.elapsed() < budget && times.len() < 1000) {
        times.push(exe.run_timed(1)?.as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn write_weights(exe: &mut dyn Executable) -> Result<()> {
    let params = exe.plan().graph().params().to_vec();
    for i in 0..params.len() {
        exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1))?;
    }
    Ok(())
}

/// Numbers that look like noise, so that no kernel runs on zeros.
fn noise(len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::rng::Sequence::new(3, crate::rng::Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}

/// Scales of fp8 from one evaluation: the time of a run does not depend on them.
fn calibrate(config: &UNetConfig, backend: &dyn Backend) -> Result<Fp8Scales> {
    let (h, w) = config.height_width().unwrap_or((32, 32));
    let mut measuring = Measuring::new(&ForwardProgram::new(config, Batch { n: 1, h, w }, false)?.plan)?;
    let mut exe = inference(config, Batch { n: 1, h, w }, |_| backend.compile(measuring.plan.clone()))?;
    exe.run()?;
    measuring.read(exe.as_ref())?;
    measuring.scales().map_err(|scope| anyhow!("the input of {scope} is not finite in bf16"))
}

fn inference(
    config: &UNetConfig,
    batch: Batch,
    compile: impl FnOnce(Plan) -> Result<Box<dyn Executable>, BackendError>,
) -> Result<Box<dyn Executable>> {
    let program = ForwardProgram::new(config, batch, false)?;
    let mut exe = compile(program.plan)?;
    write_weights(exe.as_mut())?;
    exe.write_f32(program.x, &noise(batch.numel(config.in_channels)))?;
    exe.write_f32(program.t, &vec![500.0; batch.n])?;
    Ok(exe)
}

fn training(config: &UNetConfig, batch: Batch, backend: &dyn Backend) -> Result<Box<dyn Executable>> {
    let objective = TrainingObjective::new(
        Schedule::new(&BetaConfig::linear(1000))?,
        PredictionType::Epsilon,
        VarianceType::FixedLarge,
        Objective::Simple,
        LossWeighting::None,
        256,
    );
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
    let options =
        TrainingOptions { objective: Arc::new(objective), optimizer: Some(optimizer), inputs: TrainingInputs::Drawn };
    let program = TrainingProgram::new(config, batch, &options)?;
    let mut exe = backend.compile(program.plan)?;
    write_weights(exe.as_mut())?;
    let x0: Vec<f32> = noise(batch.numel(config.in_channels)).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    exe.write_f32(program.x0, &x0)?;
    exe.write_u32(program.example_index, &(0..batch.n as u32).collect::<Vec<_>>())?;
    exe.write_u32(program.key, &[1, 0])?;
    exe.write_f32(program.hyper, &[2e-4, 0.1, 0.001, 0.9999])?;
    Ok(exe)
}
