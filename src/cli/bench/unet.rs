//! `warpdiff bench unet`: one evaluation of a network, or one training step.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::machine::Machine;
use super::options::{Network, NetworkArgs, duration};
use super::report::{Header, MachineReport, Report};
use super::row::{Figures, Row};
use crate::backend::gpu::fp8::{Fp8Scales, Measuring};
use crate::backend::{Backend, Executable};
use crate::bench::roof::Roof;
use crate::bench::statistics::Spread;
use crate::cli::device::DeviceArgs;
use crate::cli::network;
use crate::cli::roof::RoofArgs;
use crate::program::ForwardProgram;
use crate::unet::UNetConfig;

pub(super) const FAMILY: &str = "unet";

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
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
    roof: RoofArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Write the results here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a line about a network says besides.
#[derive(Serialize)]
pub(super) struct NetworkFigures {
    preset: String,
    train: bool,
    /// Median milliseconds of a run.
    pub ms: f64,
    ms_min: f64,
    ms_max: f64,
    runs: usize,
    pub img_s: f64,
    gflop_s: f64,
    /// Bytes that the plan asked for, weights and workspace included.
    planned_bytes: usize,
    peak_rss_bytes: u64,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let network = args.network.open()?;
    let machine = if args.train {
        Machine::open(&args.device)?
    } else {
        Machine::quantised(&args.device, |bf16| calibrate(&network.config, bf16))?
    };
    let roof = machine.roof(&args.device, args.roof);
    let header = Header {
        kind: FAMILY,
        network: Some(network.name.clone()),
        device: MachineReport::of(&machine),
        precision: args.device.precision,
        roof: roof.clone(),
        peers: Vec::new(),
        seconds_a_line: args.seconds,
        search_seconds: None,
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, args.batch.len(), args.json.clone());
    if !quiet {
        println!(
            "{:<18} {:<6} {:>5} {:>10} {:>10} {:>9} {:>9} {:>7} {:>10} {:>10}",
            "network", "step", "batch", "ms median", "ms min", "img/s", "GFLOP/s", "% roof", "plan MiB", "RSS MiB"
        );
    }
    for &n in &args.batch {
        let row = measure(&network, n as usize, args.train, machine.backend.as_ref(), &roof, duration(args.seconds))?;
        print(&row);
        report.keep(row)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(row: &Row) {
    let Some(Figures::Network(f)) = &row.figures else { return };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "{:<18} {:<6} {:>5} {:>10.2} {:>10.2} {:>9.2} {:>9.1} {:>7} {:>10.0} {:>10.0}",
        f.preset,
        if f.train { "train" } else { "infer" },
        row.batch.unwrap_or_default(),
        f.ms,
        f.ms_min,
        f.img_s,
        f.gflop_s,
        row.roof_percent().map_or("-".into(), |p| format!("{p:.1}")),
        mib(f.planned_bytes as f64),
        mib(f.peak_rss_bytes as f64)
    );
}

/// An evaluation or a training step of a network at one batch size. Its floor is the sum of its operations' floors.
pub(super) fn measure(
    network: &Network,
    n: usize,
    train: bool,
    backend: &dyn Backend,
    roof: &Roof,
    budget: Duration,
) -> Result<Row> {
    let batch = network::batch(&network.config, n);
    let mut exe = if train {
        network::training(&network.config, batch, backend)?
    } else {
        network::inference(&network.config, batch, |plan| backend.compile(plan))?
    };
    let times = time(exe.as_mut(), budget)?;
    let (ms, graph) = (times[times.len() / 2], exe.plan().graph());
    let pass = if train { "training" } else { "evaluation" };
    let mut row = Row::of_network(FAMILY, Some(&network.name), network.name.clone(), pass, Some(n));
    row.set_graph(graph, backend.precision(), roof);
    row.figures = Some(Figures::Network(NetworkFigures {
        preset: network.name.clone(),
        train,
        ms,
        ms_min: times[0],
        ms_max: times[times.len() - 1],
        runs: times.len(),
        img_s: n as f64 / ms * 1e3,
        gflop_s: row.amount.flops as f64 / ms / 1e6,
        planned_bytes: exe.memory_bytes(),
        peak_rss_bytes: crate::cli::memory::peak_rss_bytes(),
    }));
    if let Some(spread) = Spread::of(times.iter().map(|ms| ms * 1e3).collect()) {
        row.set_time(spread);
    }
    Ok(row)
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
