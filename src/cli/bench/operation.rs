//! `warpdiff bench norm`, `attention`, `sampler-step`, `noise`, `optim`, `elementwise` and `embedding`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use super::line::{self, Line};
use super::machine::Machine;
use super::measure::Measuring;
use super::options::{MeasureArgs, NetworkArgs, duration};
use super::report::{Header, MachineReport, Report};
use super::row::Row;
use crate::bench::Family;
use crate::bench::program::Noise;

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

pub(super) fn run(family: Family, args: &Args, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let network = args.network.open()?;
    let mut lines: Vec<Line> = Vec::new();
    for &n in &args.batch {
        for line in line::of_family(&network, n as usize, family)? {
            // What does not depend on the batch is measured once.
            if line.batch.is_some() || lines.iter().all(|known| known.work.pass() != line.work.pass()) {
                lines.push(line);
            }
        }
    }
    let measure = &args.measure;
    let machine = Machine::open(&measure.device)?;
    let roof = machine.roof(&measure.device, measure.roof);
    let header = Header {
        kind: family.name(),
        network: Some(network.name.clone()),
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
    let measuring = Measuring {
        machine: &machine,
        network: Some(&network.name),
        peer: None,
        noise: &noise,
        roof: &roof,
        protocol: measure.protocol(),
    };
    for line in &lines {
        if measure.budget.is_some_and(|budget| begin.elapsed() >= duration(budget)) {
            break;
        }
        report.add(measuring.row(line))?;
    }
    report.end(quiet)
}
