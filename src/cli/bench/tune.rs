//! `bench conv --tune` and `bench gemm --tune`: which candidate is fastest, as a table that overrides the cost model.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use crate::backend::gpu::Gpu;
use crate::backend::gpu::choice::product::Candidate;
use crate::backend::gpu::choice::{self, Tuning};
use crate::backend::{Backend, Executable};
use crate::bench::program::{Noise, Program};
use crate::bench::race::{self, Outcome, Protocol, Runner};
use crate::bench::{Pass, Product, roof};
use crate::io::atomic::write_file;

/// A candidate must be faster than the model's choice by so much, in three of four rounds, to be worth an entry.
const WORTH: f64 = 1.01;
/// Candidates that are predicted to take longer than the best by more than this are left out.
const HOPELESS: f64 = 3.0;
/// Elements of a result that are compared bit by bit.
const COMPARED: usize = 1 << 20;

/// Of each GPU, the candidate of each product: the format of [`Tuning`].
type Table = BTreeMap<String, BTreeMap<String, String>>;

/// Measures the candidates of `products` and keeps the fastest in the table at `path`, after each product. Entries of other
/// GPUs and products stay.
pub(super) fn run(
    products: &[(Product, Pass)],
    machine: &Machine,
    protocol: Protocol,
    limit: Option<Duration>,
    path: &Path,
    quiet: bool,
) -> Result<ExitCode> {
    let begin = Instant::now();
    let Some(gpu) = &machine.gpu else {
        bail!("--tune measures the kernels: add --device cuda --precision bf16");
    };
    // The model's choice is the yardstick, not what another table says.
    let gpu = gpu.clone().with_tuning(Tuning::default());
    let mut table = read(path)?;
    let (name, noise) = (gpu.driver().limits().name.clone(), Noise::new(21));
    let mut seen = HashSet::new();
    for (done, (product, pass)) in products.iter().enumerate() {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            println!("the time was over after {done} of {} products", products.len());
            break;
        }
        let key = key(product, *pass);
        if !seen.insert(key.clone()) {
            continue;
        }
        let tuned = Tuner { machine, gpu: &gpu, noise: &noise, protocol, quiet }.fastest(product, *pass, &key)?;
        let entries = table.entry(name.clone()).or_default();
        match tuned {
            Some(candidate) => entries.insert(key, candidate),
            None => entries.remove(&key),
        };
        write(path, &table)?;
    }
    write(path, &table)?;
    if !quiet {
        let entries = table.get(&name).map_or(0, BTreeMap::len);
        println!("{entries} entries of {name} in {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn key(product: &Product, pass: Pass) -> String {
    match product {
        Product::Conv(shape) => Tuning::key(pass.name(), shape),
        Product::Gemm(shape) => Tuning::key(pass.name(), &shape.conv()),
    }
}

fn read(path: &Path) -> Result<Table> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| {
            format!("{} is no table of bench --tune; name a file that is one, or none", path.display())
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Table::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write(path: &Path, table: &Table) -> Result<()> {
    let known: Table =
        table.iter().filter(|(_, entries)| !entries.is_empty()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let text = serde_json::to_string_pretty(&known)?;
    Ok(write_file(path, |file| writeln!(file, "{text}"))?)
}

/// What it takes to measure the candidates of a product.
struct Tuner<'a> {
    machine: &'a Machine,
    gpu: &'a Gpu,
    noise: &'a Noise,
    protocol: Protocol,
    quiet: bool,
}

impl Tuner<'_> {
    /// The candidate that is worth an entry, if there is one.
    fn fastest(&self, product: &Product, pass: Pass, key: &str) -> Result<Option<String>> {
        let precision = self.gpu.precision();
        let bytes = roof::amount(product, pass, precision).bytes as usize;
        let copies = self.machine.copies(bytes);
        let program = Program::new(product, pass, copies)?;
        let graph = program.plan.graph();
        let limits = self.gpu.driver().limits();
        let problem = graph.nodes().iter().find_map(|node| choice::Product::of(graph, node, precision));
        let candidates = problem.as_ref().map_or_else(Vec::new, |p| p.alternatives(limits));
        let (Some(problem), Some(model)) = (problem, candidates.first().cloned()) else {
            self.say(&format!("{key}: not on the kernels of Hopper, nothing to choose"));
            return Ok(None);
        };
        if 2 * bytes > self.machine.memory() {
            self.say(&format!("{key}: its operands take {} MiB, too much to compare two", bytes >> 20));
            return Ok(None);
        }
        self.say(&format!("{key}: {} candidates, {copies} copies", candidates.len()));
        let mut reference = self.prepare(&program, self.gpu)?;
        let expected = self.result(&program, product, pass, reference.as_mut())?;
        let mut best: Option<(String, f64)> = None;
        for candidate in &candidates {
            if candidate.predicted.us > HOPELESS * model.predicted.us {
                continue;
            }
            if candidate.name == model.name {
                let mut ours = |replays: usize| reference.run_timed(replays);
                let alone = race::race(&mut Runner { launches: copies, timed: &mut ours }, None, &self.protocol)?;
                self.print(candidate, &alone);
                continue;
            }
            let forced = Tuning::of(&problem, &candidate.name, limits).map_err(anyhow::Error::msg)?;
            let mut exe = self.prepare(&program, &self.gpu.clone().with_tuning(forced))?;
            if self.result(&program, product, pass, exe.as_mut())? != expected {
                bail!("{key}: {} and {} differ in a bit; please report this", candidate.name, model.name);
            }
            let outcome = self.race(copies, exe.as_mut(), reference.as_mut())?;
            self.print(candidate, &outcome);
            let Some(ratio) = outcome.ratio else { continue };
            if ratio.lower_quartile > WORTH && best.as_ref().is_none_or(|(_, least)| ratio.median > *least) {
                best = Some((candidate.name.clone(), ratio.median));
            }
        }
        Ok(best.map(|(name, _)| name))
    }

    fn prepare(&self, program: &Program, gpu: &Gpu) -> Result<Box<dyn Executable>> {
        let mut exe = gpu.compile(program.plan.clone())?;
        program.fill(exe.as_mut(), self.noise)?;
        Ok(exe)
    }

    /// The bits of the last copy's result, or of its beginning.
    fn result(&self, program: &Program, product: &Product, pass: Pass, exe: &mut dyn Executable) -> Result<Vec<u32>> {
        exe.run()?;
        exe.finish()?;
        let mut data = vec![0.0; product.operands(pass)[2].min(COMPARED)];
        exe.read_part(program.results(program.copies() - 1)[0], 0, &mut data)?;
        Ok(data.into_iter().map(f32::to_bits).collect())
    }

    fn race(&self, launches: usize, ours: &mut dyn Executable, theirs: &mut dyn Executable) -> Result<Outcome> {
        let mut ours = |replays: usize| ours.run_timed(replays);
        let mut theirs = |replays: usize| theirs.run_timed(replays);
        let mut peer = Runner { launches, timed: &mut theirs };
        Ok(race::race(&mut Runner { launches, timed: &mut ours }, Some(&mut peer), &self.protocol)?)
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }

    fn print(&self, candidate: &Candidate, outcome: &Outcome) {
        let speed = outcome.ratio.map_or("the model's choice".into(), |r| {
            format!("{:.3} [{:.3}, {:.3}] times as fast", r.median, r.lower_quartile, r.upper_quartile)
        });
        let (predicted, us) = (candidate.predicted.us, outcome.candidate.median);
        self.say(&format!("  {:<34} predicted {predicted:>8.1} us, took {us:>8.1} us, {speed}", candidate.name));
    }
}
