//! A report of `bench`: a table, a summary and JSON, the same for all of its commands.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

use super::machine::Machine;
use super::row::Row;
use super::summary::Summary;
use crate::backend::gpu::driver::cuda::DeviceInfo;
use crate::bench::roof::Roof;
use crate::cli::device::Arithmetic;
use crate::io::atomic::write_file;
use crate::peer::{Peer, PeerKind};

/// Of the JSON. Schema 1 held products alone: `product` for `name`, and neither family nor network in a line.
const SCHEMA: u32 = 2;

const PROTOCOL: &str = "operations: a replay launches the operation once for every copy of its operands and results, which \
    together exceed twice the L2 cache (the optimiser, which works on all parameters at once, has one copy); random \
    operands; time between device events around as many replays as take 4 ms; candidate and peer in the order A B B A; us: \
    median of all measurements; ratio: peer's time by candidate's, per round. Networks: device time of single runs. Loops: \
    time on the host from writing x_T to the picture in its memory, by the number of steps";

/// What holds for all lines.
#[derive(Serialize)]
pub(super) struct Header {
    pub kind: &'static str,
    pub network: Option<String>,
    pub device: MachineReport,
    pub precision: Arithmetic,
    pub roof: Roof,
    pub peers: Vec<PeerReport>,
    pub seconds_a_line: f64,
    pub search_seconds: Option<f64>,
    pub l2_bytes: usize,
}

#[derive(Serialize)]
pub(super) struct MachineReport {
    name: String,
    compute_capability: Option<String>,
    multiprocessors: Option<u32>,
    /// The highest, as the driver tells it: the clock during a measurement is not known here.
    max_clock_khz: Option<u32>,
    driver: Option<String>,
    cuda: Option<String>,
}

impl MachineReport {
    pub fn of(machine: &Machine) -> Self {
        Self::new(machine.backend.name(), machine.info.as_ref())
    }

    fn new(backend: &str, info: Option<&DeviceInfo>) -> Self {
        let of = |f: &dyn Fn(&DeviceInfo) -> String| info.map(f);
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        Self {
            name: info.map_or_else(|| backend.to_string(), |i| i.limits.name.clone()),
            compute_capability: of(&|i| version(i.limits.compute_capability)),
            multiprocessors: info.map(|i| i.limits.multiprocessors),
            max_clock_khz: info.map(|i| i.clock_khz),
            driver: info.and_then(|i| i.driver_release.clone()),
            cuda: of(&|i| version(i.driver_version)),
        }
    }
}

#[derive(Serialize)]
pub(super) struct PeerReport {
    name: &'static str,
    version: Option<String>,
    missing: Option<String>,
}

impl PeerReport {
    /// A library that was asked for, with why it is missing.
    pub fn new(kind: PeerKind, found: Option<&Peer>, missing: Option<String>) -> Self {
        let name = match kind {
            PeerKind::Cudnn => "cudnn",
            PeerKind::CublasLt => "cublaslt",
        };
        Self { name: found.map_or(name, Peer::name), version: found.map(Peer::version), missing }
    }
}

#[derive(Serialize)]
pub(super) struct Report {
    schema: u32,
    #[serde(flatten)]
    header: Header,
    protocol: &'static str,
    commit: Option<&'static str>,
    date: String,
    /// Lines that were to be measured; fewer are there if the time was over.
    planned: usize,
    finished: bool,
    results: Vec<Row>,
    summary: Vec<Summary>,
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl Report {
    /// An empty report, which is written to the path whenever a line was added.
    pub fn new(header: Header, planned: usize, path: Option<PathBuf>) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            schema: SCHEMA,
            header,
            protocol: PROTOCOL,
            commit: option_env!("WARPDIFF_COMMIT"),
            date: utc(seconds),
            planned,
            finished: false,
            results: Vec::new(),
            summary: Vec::new(),
            path,
        }
    }

    /// Prints a line and keeps it.
    pub fn add(&mut self, row: Row) -> Result<()> {
        row.print();
        self.keep(row)
    }

    /// Keeps a line that was printed in another way.
    pub fn keep(&mut self, row: Row) -> Result<()> {
        self.results.push(row);
        self.summary = Summary::all(&self.results);
        self.finished = self.results.len() == self.planned;
        self.write()
    }

    /// The end of a run: the summary, and the exit code.
    pub fn end(&mut self, quiet: bool) -> Result<ExitCode> {
        self.finished = self.results.len() == self.planned;
        self.write()?;
        if !quiet {
            println!();
            self.summary.iter().for_each(Summary::print);
            if !self.finished {
                println!("{} of {} lines: the time was over", self.results.len(), self.planned);
            }
        }
        Ok(if self.results.iter().any(Row::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn write(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_string_pretty(self)?;
        Ok(write_file(path, |file| writeln!(file, "{text}"))?)
    }
}

/// Seconds since 1970 as a date of ISO 8601.
fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    // Days since 1 March of year 0, in eras of 400 years: leap days come last.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (year, of_month) = (400 * era + year, day - (153 * month + 2) / 5 + 1);
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(utc(1_234_567_890), "2009-02-13T23:31:30Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
