//! `warpdiff compare`: two backends, op by op.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::compare_fp8;
use super::device::{Arithmetic, Device, DeviceArgs, KernelArgs, Opened};
use super::model::ModelArgs;
use crate::compare::program::{Workload, record};
use crate::compare::{OpReport, compare_operations};
use crate::diffusion::{LossWeighting, Objective, Schedule, TrainingObjective};
use crate::model::{ModelFolder, read_weights};
use crate::program::{Batch, ForwardProgram};

/// What the other device is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Oracle {
    /// The naive f64 reference.
    Ref,
    /// All CPU cores, f32: faster, for large models.
    Cpu,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// What to compare with.
    #[arg(long, value_enum, default_value = "ref")]
    a: Oracle,
    /// What to judge.
    #[arg(long, value_enum)]
    b: Device,
    /// Arithmetic of `--b`.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Arithmetic,
    /// Compare a training step, backward pass included, instead of a forward pass.
    #[arg(long)]
    pub(super) train: bool,
    /// Images.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) batch: u32,
    /// Seed of the images and the noise.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// CPU threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Write the results here, too.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    a: String,
    b: String,
    precision: Arithmetic,
    operations: Vec<OpReport>,
    /// Index in `operations` of the first that breaks the rule.
    first_failure: Option<usize>,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let oracle = if args.a == Oracle::Ref { Device::Ref } else { Device::Cpu };
    let oracle = DeviceArgs {
        device: oracle,
        precision: Arithmetic::F32,
        threads: args.threads,
        kernels: KernelArgs::default(),
    };
    let (a, b) = (
        oracle.backend()?,
        DeviceArgs { device: args.b, precision: args.precision, threads: args.threads, kernels: KernelArgs::default() }
            .open()?,
    );
    let b = match b {
        Opened::Ready(b) => b,
        quantised @ Opened::Fp8(_) => return compare_fp8::run(args, a.as_ref(), quantised, quiet),
    };
    let model = args.model.open()?;
    let (h, w) = model.config.height_width().unwrap_or((32, 32));
    let batch = Batch { n: args.batch as usize, h, w };
    let objective = if args.train { Some(Arc::new(objective(&model)?)) } else { None };
    let network = ForwardProgram::new(&model.config, batch, false)?;
    let weights = read_weights(network.plan.graph().params(), &model.weights()?)?;
    let workload = Workload { batch, seed: args.seed, objective };
    let recorded = record(&model.config, &weights, &workload, a.as_ref())?;

    if !quiet {
        println!(
            "{:<4} {:<20} {:<40} {:<20} {:>9} {:>9} {:>9}",
            "", "operation", "layer", "result", "worst", "mean", "limit"
        );
    }
    let mut operations = Vec::new();
    compare_operations(recorded.exe.as_ref(), &recorded.integers, a.as_ref(), b.as_ref(), |report| {
        if !quiet || !report.passed {
            print(&report);
        }
        operations.push(report);
    })?;
    let first_failure = operations.iter().position(|o: &OpReport| !o.passed);
    match first_failure.map(|i| &operations[i]) {
        None => println!("{} results, all within the rule ({})", operations.len(), args.precision.precision()),
        Some(o) => {
            let failed = operations.iter().filter(|o| !o.passed).count();
            println!("{failed} of {} results break the rule; the first is {}", operations.len(), place(o));
        }
    }
    if let Some(path) = &args.json {
        let report =
            Report { a: a.name().into(), b: b.name().into(), precision: args.precision, operations, first_failure };
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::from(u8::from(first_failure.is_some())))
}

/// L_simple, or the hybrid loss where the model has variance channels.
fn objective(model: &ModelFolder) -> Result<TrainingObjective> {
    let s = &model.scheduler;
    let objective =
        if s.variance_type.is_learned() { Objective::hybrid(s.betas.num_train_timesteps) } else { Objective::Simple };
    let schedule = Schedule::new(&s.betas)?;
    Ok(TrainingObjective::new(schedule, s.prediction_type, s.variance_type, objective, LossWeighting::None, 256))
}

fn place(o: &OpReport) -> String {
    let layer = if o.scope.is_empty() { "the network's own" } else { &o.scope };
    format!("{} of {layer} (operation {}, result {}, {:?})", o.op, o.node, o.result, o.shape)
}

fn print(o: &OpReport) {
    println!(
        "{} {:<20} {:<40} {:<20} {:>9.2e} {:>9.2e} {:>9.2e}",
        if o.passed { "ok  " } else { "FAIL" },
        if o.result == 0 { o.op.to_string() } else { format!("{} [{}]", o.op, o.result) },
        o.scope,
        format!("{:?}", o.shape),
        o.errors.worst,
        o.errors.mean,
        o.limits.worst
    );
}
