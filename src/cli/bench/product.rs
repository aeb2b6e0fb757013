//! What `bench conv` and `bench gemm` have in common.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::machine::Machine;
use super::report::{Header, MachineReport, PeerReport, PeerRow, Report, Row};
use super::tune;
use crate::backend::Executable;
use crate::bench::collect::{self, Counted};
use crate::bench::program::{Noise, Program};
use crate::bench::race::{self, Protocol, Runner};
use crate::bench::roof::{self, Roof};
use crate::bench::{Pass, Product};
use crate::cli::device::{Arithmetic, Device, DeviceArgs};
use crate::cli::presets::Preset;
use crate::compare::rule::Errors;
use crate::model::ModelFolder;
use crate::peer::{Peer, PeerError, PeerKind, PeerProduct, ResultType};
use crate::program::Batch;

/// Results of a peer may be off by so much, in the norm: far more than two bf16 roundings and other orders of sums, far
/// less than any wrong descriptor.
const AGREEMENT: f64 = 2e-2;
/// Elements that are compared at either end of a result.
const COMPARED: usize = 1 << 20;

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
    /// The network whose layers are measured.
    #[arg(long, value_enum, default_value = "ddpm-cifar10-32")]
    preset: Preset,
    /// A model folder in place of a preset.
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,
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
    /// Seconds to measure each line for.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Seconds to search the peer's fastest algorithm of each line for; one is always tried.
    #[arg(long, default_value_t = 2.0, requires = "peer")]
    search: f64,
    /// Seconds for everything: lines that are not reached are left out, and the report says so.
    #[arg(long)]
    budget: Option<f64>,
    /// 10^12 operations a second that the device reaches at best, in place of the known number.
    #[arg(long, value_name = "TFLOP/s")]
    roof_tflops: Option<f64>,
    /// 10^9 bytes a second that the device reads and writes at best, in place of the known number.
    #[arg(long, value_name = "GB/s")]
    roof_gbs: Option<f64>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Measure every candidate of every product in turn with the cost model's choice, and keep those that are faster in
    /// this table: --tuning FILE uses it, benches/results/tuning takes it into a build.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peer", "json"])]
    tune: Option<PathBuf>,
    /// Write the results here, too; after each line, so that an interrupted run leaves what it has.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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

/// A line to be measured.
struct Line {
    counted: Counted,
    batch: Option<usize>,
}

pub(super) fn run(wanted: &Wanted, options: &Options, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let lines = lines(wanted, options)?;
    if let Some(table) = &options.tune {
        let limit = options.budget.map(seconds);
        let protocol = Protocol::new(seconds(options.seconds));
        let products: Vec<_> = lines.iter().map(|line| (line.counted.product, line.counted.pass)).collect();
        return tune::run(&products, &Machine::open(&options.device)?, protocol, limit, table, quiet);
    }
    // Before the device, so that what is missing is known at once.
    let missing = find_peer(wanted, options)?;
    let machine = Machine::open(&options.device)?;
    let peer = match (&machine.cuda, wanted.peer) {
        (Some((cuda, _)), Some(kind)) if missing.is_none() => {
            Some(Peer::open(kind, cuda, options.peer_path.as_deref())?)
        }
        _ => None,
    };
    let precision = machine.backend.precision();
    let protocol = Protocol::new(seconds(options.seconds));
    let roof = Roof::measured(&machine.name(), precision).overridden(options.roof_tflops, options.roof_gbs);
    let header = Header {
        kind: wanted.kind,
        network: wanted.shapes.is_empty().then(|| network_name(options)),
        device: MachineReport::new(machine.backend.name(), machine.cuda.as_ref().map(|(_, info)| info)),
        precision,
        roof: roof.clone(),
        peer: peer.as_ref().map(|p| PeerReport { name: p.name(), version: Some(p.version()), missing: None }).or_else(
            || missing.map(|reason| PeerReport { name: peer_name(wanted.peer), version: None, missing: Some(reason) }),
        ),
        seconds_a_line: options.seconds,
        search_seconds: peer.as_ref().map(|_| options.search),
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, lines.len());
    let noise = Noise::new(20);
    if !quiet {
        report.print_head();
    }
    for line in &lines {
        if options.budget.is_some_and(|budget| begin.elapsed() >= seconds(budget)) {
            break;
        }
        let measuring =
            Measuring { machine: &machine, peer: peer.as_ref(), noise: &noise, roof: &roof, protocol, options };
        report.add(measuring.row(line));
        report.write(options.json.as_deref())?;
    }
    report.finish();
    report.write(options.json.as_deref())?;
    if !quiet {
        report.print_summary();
    }
    Ok(if report.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(if value.is_finite() { value.clamp(0.0, 86400.0) } else { 0.0 })
}

fn peer_name(kind: Option<PeerKind>) -> &'static str {
    match kind {
        Some(PeerKind::Cudnn) => "cudnn",
        Some(PeerKind::CublasLt) => "cublaslt",
        None => "none",
    }
}

fn network_name(options: &Options) -> String {
    match &options.model {
        Some(path) => path.display().to_string(),
        None => options.preset.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string()),
    }
}

/// Every line, batch by batch, in the order of the network.
fn lines(wanted: &Wanted, options: &Options) -> Result<Vec<Line>> {
    if !wanted.shapes.is_empty() {
        let of = |&product: &Product| {
            let passes = options.pass.iter();
            passes.map(move |&pass| Line { counted: Counted { product, pass, count: 1 }, batch: None })
        };
        return Ok(wanted.shapes.iter().flat_map(of).collect());
    }
    let config = match &options.model {
        Some(path) => ModelFolder::open(path)?.config,
        None => options.preset.config(),
    };
    let (h, w) = config.height_width().unwrap_or((32, 32));
    let mut lines = Vec::new();
    for &n in &options.batch {
        let n = n as usize;
        let all = collect::products(&config, Batch { n, h, w })?;
        for &pass in &options.pass {
            let of_pass = all.iter().filter(|c| c.pass == pass && (wanted.takes)(&c.product));
            lines.extend(of_pass.map(|&counted| Line { counted, batch: Some(n) }));
        }
    }
    Ok(lines)
}

/// Checks that the peer can be measured at all; returns why it is left out, if that is allowed.
fn find_peer(wanted: &Wanted, options: &Options) -> Result<Option<String>> {
    let Some(kind) = wanted.peer else { return Ok(None) };
    if options.device.device != Device::Cuda || options.device.precision != Arithmetic::Bf16 {
        bail!("--peer measures bf16 on a GPU: add --device cuda --precision bf16");
    }
    match kind.find(options.peer_path.as_deref()) {
        Err(error @ PeerError::Missing { .. }) if options.peer_optional => {
            eprintln!("without a peer: {error}");
            Ok(Some(error.to_string()))
        }
        other => Ok(other.map(|()| None)?),
    }
}

/// All that a line needs.
struct Measuring<'a> {
    machine: &'a Machine,
    peer: Option<&'a Peer>,
    noise: &'a Noise,
    roof: &'a Roof,
    protocol: Protocol,
    options: &'a Options,
}

impl Measuring<'_> {
    /// One line of the report, with what went wrong in it.
    fn row(&self, line: &Line) -> Row {
        let Counted { product, pass, count } = line.counted;
        let precision = self.machine.backend.precision();
        let bytes = roof::bytes(&product, pass, precision);
        let (room, copies) = (self.machine.memory(), self.machine.copies(bytes));
        let mut row = Row::new(product, pass, count, line.batch, bytes, copies);
        row.floor = self.roof.floor(&product, pass, precision);
        if bytes > room {
            row.error = Some(format!("not measured: its operands take {} MiB, {} are there", bytes >> 20, room >> 20));
            row.skipped = true;
            return row;
        }
        if let Err(error) = self.measure(&mut row) {
            row.error = Some(format!("{error:#}"));
        }
        row
    }

    fn measure(&self, row: &mut Row) -> Result<()> {
        let program = Program::new(&row.product, row.pass, row.copies)?;
        let mut exe = self.machine.backend.compile(program.plan.clone())?;
        program.fill(exe.as_mut(), self.noise)?;
        let mut peer = self.prepare_peer(row);
        if let Some(theirs) = &mut peer {
            exe.run()?;
            exe.finish()?;
            if !self.check(row, &program, exe.as_ref(), theirs)? {
                peer = None;
            }
        }
        let launches = program.copies();
        let mut ours = |replays: usize| Ok::<Duration, anyhow::Error>(exe.run_timed(replays)?);
        let mut candidate = Runner { launches, timed: &mut ours };
        let outcome = match &mut peer {
            None => race::race(&mut candidate, None, &self.protocol)?,
            Some(theirs) => {
                let mut theirs = |replays: usize| Ok(theirs.timed(replays)?);
                race::race(&mut candidate, Some(&mut Runner { launches, timed: &mut theirs }), &self.protocol)?
            }
        };
        row.set(outcome);
        Ok(())
    }

    /// The peer's fastest way; what keeps it from running is the peer's failure and not the line's.
    fn prepare_peer(&self, row: &mut Row) -> Option<PeerProduct> {
        let peer = self.peer?;
        let wanted = if row.pass == Pass::Wgrad { ResultType::F32 } else { ResultType::Bf16 };
        let search = seconds(self.options.search);
        match peer.prepare(&row.product, row.pass, row.copies, self.noise, wanted, search) {
            Ok(prepared) => {
                row.peer = Some(PeerRow::new(&prepared));
                Some(prepared)
            }
            Err(error) => {
                row.peer = Some(PeerRow::failed(error.to_string()));
                None
            }
        }
    }

    /// Whether the peer computes the same as we do, at both ends of the first and of the last copy.
    fn check(&self, row: &mut Row, program: &Program, exe: &dyn Executable, peer: &mut PeerProduct) -> Result<bool> {
        peer.compute()?;
        let elements = row.product.operands(row.pass)[2];
        let len = elements.min(COMPARED);
        let mut worst = 0.0f64;
        for copy in [0, program.copies() - 1] {
            for first in [0, elements - len] {
                let (mut ours, mut theirs) = (vec![0.0; len], vec![0.0; len]);
                exe.read_part(program.result(copy), first, &mut ours)?;
                peer.read_part(copy, first, &mut theirs)?;
                worst = worst.max(disagreement(&ours, &theirs));
            }
        }
        if let Some(of) = &mut row.peer {
            of.agrees(worst, AGREEMENT);
        }
        Ok(worst <= AGREEMENT)
    }
}

/// How far two results are apart, in the norm; infinite where either is not a number.
fn disagreement(ours: &[f32], theirs: &[f32]) -> f64 {
    let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    Errors::between(&wide(ours), &wide(theirs)).norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_no_peer() {
        let ours: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let near: Vec<f32> = ours.iter().map(|x| x * 1.004).collect();
        let far: Vec<f32> = ours.iter().rev().copied().collect();
        assert!(disagreement(&ours, &near) < AGREEMENT);
        assert!(disagreement(&ours, &far) > AGREEMENT);
        // Poison that nobody overwrote, and zeros.
        assert_eq!(disagreement(&ours, &[f32::NAN; 1000]), f64::INFINITY);
        assert!(disagreement(&ours, &[0.0; 1000]) > AGREEMENT);
        assert!(disagreement(&[0.0; 1000], &ours) > AGREEMENT);
    }
}
