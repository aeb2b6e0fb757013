//! What `bench conv` and `bench gemm` have in common.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::line::{self, Line};
use super::machine::Machine;
use super::measure::Measuring;
use super::options::{MeasureArgs, NetworkArgs, duration};
use super::report::{Header, MachineReport, PeerReport, Report};
use super::row::Row;
use super::tune;
use crate::bench::program::Noise;
use crate::bench::{Pass, Product, Work};
use crate::cli::device::{Arithmetic, Device, DeviceArgs};
use crate::peer::{Peer, PeerError, PeerKind};

impl ValueEnum for Pass {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

/// Options of either command.
#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    network: NetworkArgs,
    /// Batch sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128,256", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    /// Which products, separated by commas: the layer, the gradient of its input, that of its weights.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fprop,dgrad,wgrad")]
    pass: Vec<Pass>,
    /// Where to look for the peer first: a folder with its file, or a Python site-packages folder.
    #[arg(long, value_name = "DIR", requires = "peer")]
    peer_path: Option<PathBuf>,
    /// Go on without the peer if it is not installed.
    #[arg(long, requires = "peer")]
    peer_optional: bool,
    /// Seconds to search the peer's fastest algorithm of each line for; one is always tried.
    #[arg(long, default_value_t = 2.0, requires = "peer")]
    search: f64,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Measure every candidate of every product in turn with the cost model's choice, and keep those that are faster in
    /// this table: --tuning FILE uses it, benches/results/tuning takes it into a build.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peer", "json"])]
    tune: Option<PathBuf>,
}

/// What is measured.
pub(super) struct Wanted {
    /// Name of the command.
    pub kind: &'static str,
    /// What the user named.
    pub shapes: Vec<Product>,
    /// Which products of a network belong here.
    pub takes: fn(&Product) -> bool,
    /// In turn with what.
    pub peer: Option<PeerKind>,
}

pub(super) fn run(wanted: &Wanted, options: &Options, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let (network, lines) = lines(wanted, options)?;
    let measure = &options.measure;
    let protocol = measure.protocol();
    if let Some(table) = &options.tune {
        let limit = measure.budget.map(duration);
        let product = |line: &Line| match line.work {
            Work::Product(product, pass) => Some((product, pass)),
            Work::Operation(_) => None,
        };
        let products: Vec<_> = lines.iter().filter_map(product).collect();
        return tune::run(&products, &Machine::open(&measure.device)?, protocol, limit, table, quiet);
    }
    // Before the device, so that what is missing is known at once.
    let missing = match wanted.peer {
        Some(kind) => find_peer(kind, &measure.device, options.peer_path.as_deref(), options.peer_optional)?,
        None => None,
    };
    let machine = Machine::open(&measure.device)?;
    let peer = match (&machine.cuda, wanted.peer) {
        (Some(cuda), Some(kind)) if missing.is_none() => Some(Peer::open(kind, cuda, options.peer_path.as_deref())?),
        _ => None,
    };
    let roof = machine.roof(&measure.device, measure.roof);
    let header = Header {
        kind: wanted.kind,
        network: network.clone(),
        device: MachineReport::of(&machine),
        precision: measure.device.precision,
        roof: roof.clone(),
        peers: wanted.peer.map(|kind| PeerReport::new(kind, peer.as_ref(), missing)).into_iter().collect(),
        seconds_a_line: measure.seconds,
        search_seconds: peer.as_ref().map(|_| options.search),
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, lines.len(), measure.json.clone());
    let noise = Noise::new(20);
    if !quiet {
        Row::print_head();
    }
    let peer = peer.as_ref().map(|peer| (peer, duration(options.search)));
    let measuring =
        Measuring { machine: &machine, network: network.as_deref(), peer, noise: &noise, roof: &roof, protocol };
    for line in &lines {
        if measure.budget.is_some_and(|budget| begin.elapsed() >= duration(budget)) {
            break;
        }
        report.add(measuring.row(line))?;
    }
    report.end(quiet)
}

/// Every line, batch by batch, in the order of the network, with its name; or what the user named.
fn lines(wanted: &Wanted, options: &Options) -> Result<(Option<String>, Vec<Line>)> {
    if !wanted.shapes.is_empty() {
        let of = |&product: &Product| {
            let line = move |&pass: &Pass| Line { work: Work::Product(product, pass), count: 1, batch: None };
            options.pass.iter().map(line)
        };
        return Ok((None, wanted.shapes.iter().flat_map(of).collect()));
    }
    let network = options.network.open()?;
    let mut lines = Vec::new();
    for &n in &options.batch {
        lines.extend(line::products(&network, n as usize, &options.pass, wanted.takes)?);
    }
    Ok((Some(network.name), lines))
}

/// Checks that a peer can be measured at all; returns why it is left out, if that is allowed.
pub(super) fn find_peer(
    kind: PeerKind,
    device: &DeviceArgs,
    path: Option<&std::path::Path>,
    optional: bool,
) -> Result<Option<String>> {
    if device.device != Device::Cuda || device.precision != Arithmetic::Bf16 {
        bail!("--peer measures bf16 on a GPU: add --device cuda --precision bf16");
    }
    match kind.find(path) {
        Err(error @ PeerError::Missing { .. }) if optional => {
            eprintln!("without a peer: {error}");
            Ok(Some(error.to_string()))
        }
        other => Ok(other.map(|()| None)?),
    }
}
