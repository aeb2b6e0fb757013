//! `warpdiff bench all`: every benchmark of a network in one report, the most telling first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::line::{self, Line};
use super::loops::{self, Loop, Method};
use super::machine::Machine;
use super::measure::Measuring;
use super::options::{MeasureArgs, Network, NetworkArgs, duration};
use super::product::find_peer;
use super::report::{Header, MachineReport, PeerReport, Report};
use super::row::Row;
use super::unet;
use crate::bench::program::Noise;
use crate::bench::{Family, Pass, Product};
use crate::peer::{Peer, PeerKind};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Batch sizes, separated by commas, the most telling first.
    #[arg(long, value_delimiter = ',', default_value = "128,16,1", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    /// Measure products in turn with cuDNN and cuBLASLt, where they are installed.
    #[arg(long)]
    peers: bool,
    /// Where to look for them first: a folder with their files, or a Python site-packages folder.
    #[arg(long, value_name = "DIR", requires = "peers")]
    peer_path: Option<PathBuf>,
    /// Seconds to search a peer's fastest algorithm of each line for; one is always tried.
    #[arg(long, default_value_t = 0.5, requires = "peers")]
    search: f64,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// What is measured together, and shares time.
enum Part {
    Unet { n: usize, train: bool },
    Loop { n: usize },
    Lines(Vec<Line>),
}

impl Part {
    fn lines(&self) -> usize {
        match self {
            Self::Unet { .. } | Self::Loop { .. } => 1,
            Self::Lines(lines) => lines.len(),
        }
    }

    /// Its share of the time: whole networks take the time of several lines, since they also have to be prepared.
    fn weight(&self) -> f64 {
        match self {
            Self::Unet { .. } | Self::Loop { .. } => 6.0,
            Self::Lines(lines) => lines.len() as f64,
        }
    }
}

/// Steps of the loop that is measured, with DDIM.
const STEPS: usize = 50;

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let network = args.network.open()?;
    let measure = &args.measure;
    let parts = parts(&network, &args.batch, measure.gives_statistics())?;
    let kinds: &[PeerKind] = if args.peers { &[PeerKind::Cudnn, PeerKind::CublasLt] } else { &[] };
    let mut missing = Vec::new();
    for &kind in kinds {
        missing.push(find_peer(kind, &measure.device, args.peer_path.as_deref(), true)?);
    }
    let machine = Machine::open(&measure.device)?;
    let (mut peers, mut reported) = (Vec::new(), Vec::new());
    for (&kind, reason) in kinds.iter().zip(missing) {
        let peer = match &machine.cuda {
            Some(cuda) if reason.is_none() => Some(Peer::open(kind, cuda, args.peer_path.as_deref())?),
            _ => None,
        };
        reported.push(PeerReport::new(kind, peer.as_ref(), reason));
        peers.push((kind, peer));
    }
    let roof = machine.roof(&measure.device, measure.roof);
    let header = Header {
        kind: "all",
        network: Some(network.name.clone()),
        device: MachineReport::of(&machine),
        precision: measure.device.precision,
        roof: roof.clone(),
        peers: reported,
        seconds_a_line: measure.seconds,
        search_seconds: args.peers.then_some(args.search),
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, parts.iter().map(Part::lines).sum(), measure.json.clone());
    if !quiet {
        Row::print_head();
    }
    let noise = Noise::new(20);
    let peer_of = |line: &Line| {
        let kind = if line.work.family() == "conv" { PeerKind::Cudnn } else { PeerKind::CublasLt };
        let peer = peers.iter().find(|(of, _)| *of == kind).and_then(|(_, peer)| peer.as_ref());
        peer.map(|peer| (peer, duration(args.search)))
    };
    let mut weight: f64 = parts.iter().map(Part::weight).sum();
    let backend = machine.backend.as_ref();
    for part in &parts {
        let until = share(measure.left(begin), part.weight() / weight);
        weight -= part.weight();
        let seconds = duration(measure.seconds);
        match part {
            _ if is_over(until) => {}
            Part::Unet { n, train } => report.add(unet::measure(&network, *n, *train, backend, &roof, seconds)?)?,
            Part::Loop { n } => {
                let of = Loop { method: Method::Ddim, steps: STEPS, group: STEPS };
                let time = (seconds, measure.left(begin));
                report.add(loops::measure(&network, *n, of, &machine, &roof, time)?)?;
            }
            Part::Lines(lines) => {
                for line in lines.iter().take_while(|_| !is_over(until)) {
                    let measuring = Measuring {
                        machine: &machine,
                        network: Some(&network.name),
                        peer: peer_of(line),
                        noise: &noise,
                        roof: &roof,
                        protocol: measure.protocol(),
                    };
                    report.add(measuring.row(line))?;
                }
            }
        }
    }
    report.end(quiet)
}

/// When a part has to end, given its share of the time that is left; `None` without a budget.
fn share(left: Option<Duration>, share: f64) -> Option<Instant> {
    left.map(|left| Instant::now() + left.mul_f64(share.clamp(0.0, 1.0)))
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// All parts, in the order in which they are measured: what a user waits for, then where the time goes at the first batch
/// size, then at the others.
fn parts(network: &Network, batches: &[u32], given: bool) -> Result<Vec<Part>> {
    let batches: Vec<usize> = batches.iter().map(|&n| n as usize).collect();
    let (first, others) = batches.split_at(1);
    let mut parts = Vec::new();
    for &n in first {
        parts.extend([Part::Unet { n, train: false }, Part::Unet { n, train: true }, Part::Loop { n }]);
    }
    for (at, &n) in batches.iter().enumerate() {
        for family in Family::ALL {
            // What does not depend on the batch is measured once.
            if at == 0 || family != Family::Optim {
                parts.push(Part::Lines(line::of_family(network, n, family, given)?));
            }
        }
        let product = |takes: fn(&Product) -> bool| line::products(network, n, &Pass::ALL, takes).map(Part::Lines);
        parts.push(product(|product| matches!(product, Product::Conv(_)))?);
        parts.push(product(|product| matches!(product, Product::Gemm(_)))?);
        if at == 0 {
            for &n in others {
                parts.extend([Part::Unet { n, train: false }, Part::Unet { n, train: true }, Part::Loop { n }]);
            }
        }
    }
    Ok(parts)
}
