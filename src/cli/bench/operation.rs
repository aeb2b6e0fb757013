//! `warpdiff bench norm`, `attention`, `sampler-step`, `noise`, `optim`, `elementwise` and `embedding`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::line::{self, Line};
use super::machine::Machine;
use super::measure::Measuring;
use super::options::{MeasureArgs, NetworkArgs};
use super::report::{Header, MachineReport, Report};
use super::row::Row;
use crate::bench::program::Noise;
use crate::bench::{Family, Operation, Work, named};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Batch sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128,256", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    #[command(flatten)]
    measure: MeasureArgs,
}

#[derive(clap::Args)]
pub(super) struct NormArgs {
    /// A group norm: batch, height, width, channels, groups, and what is fused to it. May be given several times; without it,
    /// every norm of a network.
    #[arg(long, value_name = "n128h32w32c256g32.silu.modulated", value_parser = named::norm)]
    #[arg(conflicts_with_all = ["preset", "model", "batch"])]
    shape: Vec<Vec<Operation>>,
    #[command(flatten)]
    args: Args,
}

#[derive(clap::Args)]
pub(super) struct AttentionArgs {
    /// Attention: batch, tokens, channels, heads. May be given several times; without it, every attention of a network.
    #[arg(long, value_name = "n128t256c256h1", value_parser = named::attention)]
    #[arg(conflicts_with_all = ["preset", "model", "batch"])]
    shape: Vec<Vec<Operation>>,
    #[command(flatten)]
    args: Args,
}

pub(super) fn run_norm(args: &NormArgs, quiet: bool) -> Result<ExitCode> {
    run_shapes(Family::Norm, args.shape.concat(), &args.args, quiet)
}

pub(super) fn run_attention(args: &AttentionArgs, quiet: bool) -> Result<ExitCode> {
    run_shapes(Family::Attention, args.shape.concat(), &args.args, quiet)
}

/// What the user named, or a network's.
fn run_shapes(family: Family, shapes: Vec<Operation>, args: &Args, quiet: bool) -> Result<ExitCode> {
    if shapes.is_empty() {
        return run(family, args, quiet);
    }
    let line = |operation| Line { work: Work::Operation(operation), count: 1, batch: None };
    measure_lines(family, None, &shapes.into_iter().map(line).collect::<Vec<_>>(), args, quiet)
}

pub(super) fn run(family: Family, args: &Args, quiet: bool) -> Result<ExitCode> {
    let network = args.network.open()?;
    let mut lines: Vec<Line> = Vec::new();
    for &n in &args.batch {
        for line in line::of_family(&network, n as usize, family, args.measure.gives_statistics())? {
            // What does not depend on the batch is measured once.
            if line.batch.is_some() || lines.iter().all(|known| known.work.pass() != line.work.pass()) {
                lines.push(line);
            }
        }
    }
    measure_lines(family, Some(&network.name), &lines, args, quiet)
}

fn measure_lines(family: Family, network: Option<&str>, lines: &[Line], args: &Args, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let measure = &args.measure;
    let machine = Machine::open(&measure.device)?;
    let roof = machine.roof(&measure.device, measure.roof);
    let header = Header {
        kind: family.name(),
        network: network.map(Into::into),
        device: MachineReport::of(&machine),
        precision: measure.device.precision,
        roof: roof.clone(),
        peers: Vec::new(),
        seconds_a_line: measure.seconds,
        search_seconds: None,
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, lines.len(), measure.json.clone());
    if !quiet {
        Row::print_head();
    }
    let noise = Noise::new(20);
    let measuring =
        Measuring { machine: &machine, network, peer: None, noise: &noise, roof: &roof, protocol: measure.protocol() };
    for line in lines {
        if measure.left(begin) == Some(Duration::ZERO) {
            break;
        }
        report.add(measuring.row(line))?;
    }
    report.end(quiet)
}
