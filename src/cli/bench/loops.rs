//! `warpdiff bench sample-loop`: whole batches of pictures, from noise to bytes on the host.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::machine::Machine;
use super::options::{MeasureArgs, Network, NetworkArgs, duration};
use super::report::{Header, MachineReport, Report};
use super::row::{Figures, Row};
use crate::backend::snapshot::Snapshot;
use crate::backend::{Backend, Executable};
use crate::bench::roof::Roof;
use crate::bench::statistics::Spread;
use crate::cli::network;
use crate::diffusion::{SamplerKind, SchedulerConfig, StepTable};
use crate::graph::NoiseSource;
use crate::program::{SamplingOptions, SamplingProgram};

pub(super) const FAMILY: &str = "sample-loop";
/// At least so many loops are measured.
const LEAST: usize = 3;
/// Steps before them.
const WARM_UP: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Method {
    /// Ancestral sampling.
    Ddpm,
    /// Deterministic.
    Ddim,
    /// DPM-Solver++ multistep of order 2.
    #[value(name = "dpm++")]
    DpmSolverPp,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Batch sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128,256", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Method,
    /// Steps of the sampler, each a network evaluation.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Steps that the device takes before the host waits for it, separated by commas, each measured; all if not given.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1000))]
    group: Vec<u32>,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// What a line about a loop says besides.
#[derive(Serialize)]
pub(super) struct LoopFigures {
    sampler: &'static str,
    steps: usize,
    /// Steps between two waits of the host.
    group: usize,
    loops: usize,
    /// Milliseconds of a loop.
    ms: Spread,
    pub img_s: f64,
    pub evaluations_s: f64,
}

/// A loop to be measured.
#[derive(Clone, Copy)]
pub(super) struct Loop {
    pub method: Method,
    pub steps: usize,
    pub group: usize,
}

impl Loop {
    fn sampler(self) -> (&'static str, SamplerKind) {
        match self.method {
            Method::Ddpm => ("ddpm", SamplerKind::Ddpm),
            Method::Ddim => ("ddim", SamplerKind::Ddim),
            Method::DpmSolverPp => ("dpm++", SamplerKind::DpmSolverPp),
        }
    }

    fn name(self) -> String {
        let grouped = if self.group < self.steps { format!(".by{}", self.group) } else { String::new() };
        format!("{}.{}{grouped}", self.sampler().0, self.steps)
    }
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let begin = Instant::now();
    let network = args.network.open()?;
    let measure = &args.measure;
    let machine = Machine::open(&measure.device)?;
    let roof = machine.roof(&measure.device, measure.roof);
    let steps = args.steps as usize;
    let groups = if args.group.is_empty() { vec![steps] } else { args.group.iter().map(|&g| g as usize).collect() };
    let each = |&group: &usize| Loop { method: args.sampler, steps, group: group.min(steps) };
    let loops: Vec<(u32, Loop)> =
        args.batch.iter().flat_map(|&n| groups.iter().map(move |group| (n, each(group)))).collect();
    let header = Header {
        kind: FAMILY,
        network: Some(network.name.clone()),
        device: MachineReport::of(&machine),
        precision: measure.device.precision,
        roof: roof.clone(),
        peers: Vec::new(),
        seconds_a_line: measure.seconds,
        search_seconds: None,
        l2_bytes: machine.l2(),
    };
    let mut report = Report::new(header, loops.len(), measure.json.clone());
    if !quiet {
        Row::print_head();
    }
    for (n, of) in loops {
        if measure.left(begin) == Some(Duration::ZERO) {
            break;
        }
        let left = measure.left(begin);
        report.add(self::measure(&network, n as usize, of, &machine, &roof, (duration(measure.seconds), left))?)?;
    }
    report.end(quiet)
}

/// Loops of a sampler at one batch size, for some seconds and no more than are left. The floor of a step is the sum of its
/// operations' floors.
pub(super) fn measure(
    network: &Network,
    n: usize,
    of: Loop,
    machine: &Machine,
    roof: &Roof,
    (budget, left): (Duration, Option<Duration>),
) -> Result<Row> {
    let backend = machine.backend.as_ref();
    let mut row = Row::of_network(FAMILY, Some(&network.name), of.name(), "step", Some(n));
    let mut loops = Loops::new(network, n, of, backend)?;
    // One more than is measured: its pictures are what the first measured loop waits for.
    let least = loops.warm_up()? * (LEAST + 1) as u32;
    if left.is_some_and(|left| least > left) {
        row.error = Some(format!("not measured: {LEAST} loops take about {:.0} s", least.as_secs_f64()));
        row.skipped = true;
        return Ok(row);
    }
    loops.once(of.steps)?;
    let (start, mut seconds) = (Instant::now(), Vec::new());
    while seconds.len() < LEAST || (start.elapsed() < budget && seconds.len() < 1000) {
        let begin = Instant::now();
        loops.once(of.steps)?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    row.set_graph(loops.exe.plan().graph(), backend.precision(), roof);
    let scaled = |factor: f64| Spread::of(seconds.iter().map(|s| s * factor).collect());
    if let (Some(ms), Some(us)) = (scaled(1e3), scaled(1e6 / of.steps as f64)) {
        row.set_time(us);
        let img_s = n as f64 / ms.median * 1e3;
        row.figures = Some(Figures::Loop(LoopFigures {
            sampler: of.sampler().0,
            steps: of.steps,
            group: of.group,
            loops: seconds.len(),
            ms,
            img_s,
            evaluations_s: img_s * of.steps as f64,
        }));
    }
    Ok(row)
}

/// A sampler that draws the same pictures again and again.
struct Loops {
    of: Loop,
    program: SamplingProgram,
    exe: Box<dyn Executable>,
    /// x_T of a batch, scaled.
    noise: Vec<f32>,
    zeros: Vec<f32>,
    /// Of the batch before, on their way to the host.
    pictures: Option<Snapshot>,
}

impl Loops {
    fn new(network: &Network, n: usize, of: Loop, backend: &dyn Backend) -> Result<Self> {
        let (config, batch) = (&network.config, network::batch(&network.config, n));
        let table = Arc::new(StepTable::build(&SchedulerConfig::new(of.sampler().1), of.steps, 0.0)?);
        let sigma = table.init_noise_sigma as f32;
        let options = SamplingOptions::new(table, NoiseSource::Philox);
        let program = SamplingProgram::new(config, batch, &options)?;
        let mut exe = backend.compile(program.plan.clone())?;
        network::write_weights(exe.as_mut())?;
        exe.write_u32(program.key, &[1, 0])?;
        exe.write_u32(program.sample_index, &(0..n as u32).collect::<Vec<_>>())?;
        let elements = batch.numel(config.in_channels);
        let noise = network::noise(elements).iter().map(|z| z * sigma).collect();
        Ok(Self { of, program, exe, noise, zeros: vec![0.0; elements], pictures: None })
    }

    /// Takes a few steps, twice; returns how long a loop will take at about that speed.
    fn warm_up(&mut self) -> Result<Duration> {
        let steps = self.of.steps.min(WARM_UP);
        self.once(steps)?;
        let begin = Instant::now();
        self.once(steps)?;
        Ok(begin.elapsed().mul_f64(self.of.steps as f64 / steps as f64))
    }

    /// Draws a batch: what depends on it is written and steps are given to the device; then the pictures of the batch before are
    /// read, as `Sampler::stream` does. So one call takes as long as a batch once another was drawn before.
    fn once(&mut self, steps: usize) -> Result<()> {
        self.exe.write_f32(self.program.x, &self.noise)?;
        self.exe.write_f32(self.program.x0, &self.zeros)?;
        self.exe.write_u32(self.program.step, &[0])?;
        let mut left = steps;
        while left > 0 {
            let times = self.of.group.min(left);
            self.exe.run_many(times)?;
            if self.of.group < self.of.steps {
                self.exe.finish()?;
            }
            left -= times;
        }
        let now = self.exe.snapshot(self.program.picture)?;
        if let Some(mut before) = self.pictures.replace(now) {
            black_box(before.bytes()?);
        }
        Ok(())
    }
}
