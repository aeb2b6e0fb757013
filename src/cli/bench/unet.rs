//! `warpdiff bench unet`: one evaluation of a network, or one training step.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use serde::Serialize;

use crate::backend::gpu::fp8::{Fp8Scales, Measuring};
use crate::backend::{Backend, Executable};
use crate::cli::device::{Arithmetic, DeviceArgs, Opened};
use crate::cli::network;
use crate::cli::presets::Preset;
use crate::graph::cost;
use crate::program::ForwardProgram;
use crate::unet::UNetConfig;

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
    let batch = network::batch(&config, n);
    let mut exe = if args.train {
        network::training(&config, batch, backend)?
    } else {
        network::inference(&config, batch, |plan| backend.compile(plan))?
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

/// Scales of fp8 from one evaluation: the time of a run does not depend on them.
fn calibrate(config: &UNetConfig, backend: &dyn Backend) -> Result<Fp8Scales> {
    let batch = network::batch(config, 1);
    let mut measuring = Measuring::new(&ForwardProgram::new(config, batch, false)?.plan)?;
    let mut exe = network::inference(config, batch, |_| backend.compile(measuring.plan.clone()))?;
    exe.run()?;
    measuring.read(exe.as_ref())?;
    measuring.scales().map_err(|scope| anyhow!("the input of {scope} is not finite in bf16"))
}
