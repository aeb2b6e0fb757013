//! The lines of `bench conv` and `bench gemm`: a table, a summary and JSON.

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

use crate::backend::Precision;
use crate::backend::gpu::driver::cuda::DeviceInfo;
use crate::bench::race::Outcome;
use crate::bench::roof::{Floor, Roof};
use crate::bench::statistics::{Spread, geometric_mean};
use crate::bench::{Pass, Product};
use crate::io::atomic::write_file;
use crate::peer::{PeerProduct, ResultType};

/// Of the JSON.
const SCHEMA: u32 = 1;

const PROTOCOL: &str = "a replay launches the product once for every copy of its operands and results, which together \
    exceed twice the L2 cache; random normal operands; time between device events around as many replays as take 4 ms; \
    candidate and peer in the order A B B A; us: median of all measurements; ratio: peer's time by candidate's, per round";

/// What holds for all lines.
#[derive(Serialize)]
pub(super) struct Header {
    pub kind: &'static str,
    pub network: Option<String>,
    pub device: MachineReport,
    pub precision: Precision,
    pub roof: Roof,
    pub peer: Option<PeerReport>,
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
    pub fn new(backend: &str, info: Option<&DeviceInfo>) -> Self {
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
    pub name: &'static str,
    pub version: Option<String>,
    pub missing: Option<String>,
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
}

/// One product.
#[derive(Serialize)]
pub(super) struct Row {
    pub product: Product,
    pub pass: Pass,
    /// How often the network computes it.
    pub count: usize,
    pub batch: Option<usize>,
    flops: u64,
    bytes: usize,
    pub copies: usize,
    /// Microseconds of a launch.
    us: Option<Spread>,
    tflops: Option<f64>,
    gbs: Option<f64>,
    pub floor: Option<Floor>,
    /// The floor by the time, in percent.
    roof_percent: Option<f64>,
    pub peer: Option<PeerRow>,
    ratio: Option<Spread>,
    pub error: Option<String>,
    /// Too large for the device, which is no failure.
    pub skipped: bool,
}

impl Row {
    pub fn new(product: Product, pass: Pass, count: usize, batch: Option<usize>, bytes: usize, copies: usize) -> Self {
        Self {
            product,
            pass,
            count,
            batch,
            flops: product.flops(),
            bytes,
            copies,
            us: None,
            tflops: None,
            gbs: None,
            floor: None,
            roof_percent: None,
            peer: None,
            ratio: None,
            error: None,
            skipped: false,
        }
    }

    pub fn set(&mut self, outcome: Outcome) {
        let us = outcome.candidate.median;
        self.us = Some(outcome.candidate);
        self.tflops = Some(self.flops as f64 / us / 1e6);
        self.gbs = Some(self.bytes as f64 / us / 1e3);
        self.roof_percent = self.floor.map(|floor| 100.0 * floor.us / us);
        self.ratio = outcome.ratio;
        if let Some(peer) = &mut self.peer {
            peer.us = outcome.peer;
        }
    }

    fn print(&self) {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let floor = self.floor.map_or("-".into(), |f| format!("{:.1} {}", f.us, f.limit.name()));
        println!(
            "{:<34} {:<5} {:>4} {:>10} {:>8} {:>8} {:>7} {:>15} {:>10} {:>6}{}",
            self.product.to_string(),
            self.pass.name(),
            self.count,
            number(self.us.map(|s| s.median), 2),
            number(self.us.map(|s| s.range()), 2),
            number(self.tflops, 1),
            number(self.roof_percent, 1),
            floor,
            number(self.peer.as_ref().and_then(|p| p.us).map(|s| s.median), 2),
            number(self.ratio.map(|s| s.median), 3),
            self.remark().map_or(String::new(), |text| format!("  {text}")),
        );
    }

    fn remark(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        let peer = self.peer.as_ref()?;
        match peer.status {
            Status::Measured if peer.result == Some("bf16") && self.pass == Pass::Wgrad => {
                Some("the peer's result is bf16, ours f32".into())
            }
            Status::Measured => None,
            _ => peer.reason.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Measured,
    Disagrees,
    Failed,
}

/// The peer's side of a line.
#[derive(Serialize)]
pub(super) struct PeerRow {
    status: Status,
    reason: Option<String>,
    algorithm: Option<String>,
    tried: usize,
    proposed: usize,
    workspace_bytes: usize,
    result: Option<&'static str>,
    /// Distance of the two results, in the norm.
    error: Option<f64>,
    us: Option<Spread>,
}

impl PeerRow {
    pub fn new(product: &PeerProduct) -> Self {
        let result = match product.result {
            ResultType::Bf16 => "bf16",
            ResultType::F32 => "f32",
        };
        Self {
            status: Status::Measured,
            reason: None,
            algorithm: Some(product.algorithm()),
            tried: product.tried,
            proposed: product.proposed,
            workspace_bytes: product.workspace_bytes(),
            result: Some(result),
            error: None,
            us: None,
        }
    }

    pub fn failed(reason: String) -> Self {
        Self {
            status: Status::Failed,
            reason: Some(reason),
            algorithm: None,
            tried: 0,
            proposed: 0,
            workspace_bytes: 0,
            result: None,
            error: None,
            us: None,
        }
    }

    /// Notes how far the results are apart; beyond `most` there is nothing to compare.
    pub fn agrees(&mut self, error: f64, most: f64) {
        // JSON has no infinity.
        self.error = Some(error.min(f64::MAX));
        if error > most {
            self.status = Status::Disagrees;
            self.reason = Some(format!("no ratio: the results are {error:.1e} apart, {most:.0e} is allowed"));
        }
    }
}

/// Lines of one batch and pass together.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    batch: Option<usize>,
    pass: Pass,
    /// Lines that were measured, and those with a ratio.
    lines: usize,
    compared: usize,
    /// Of all lines alike.
    geometric_mean_ratio: Option<f64>,
    geometric_mean_roof_percent: Option<f64>,
    /// The line with the lowest ratio; without a peer, the one farthest from its floor.
    worst: Option<String>,
    /// Sums over the lines, each as often as the network computes it. The second and third hold lines with a ratio alone.
    sum_us: f64,
    compared_us: Option<f64>,
    peer_us: Option<f64>,
    floor_us: Option<f64>,
}

impl Summary {
    fn of(batch: Option<usize>, pass: Pass, rows: &[&Row]) -> Self {
        let measured: Vec<(&Row, f64)> =
            rows.iter().filter_map(|&row| Some((row, row.us?.median * row.count as f64))).collect();
        let compared: Vec<(&Row, f64, f64)> =
            measured.iter().filter_map(|&(row, us)| Some((row, us, row.ratio?.median))).collect();
        let roofs = || measured.iter().filter_map(|(row, _)| Some((*row, row.roof_percent?)));
        let lowest = |it: &mut dyn Iterator<Item = (&Row, f64)>| {
            it.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(row, _)| row.product.to_string())
        };
        let theirs = |row: &Row| row.peer.as_ref()?.us.map(|s| s.median * row.count as f64);
        let floors: Vec<f64> = measured.iter().filter_map(|(row, _)| Some(row.floor?.us * row.count as f64)).collect();
        Self {
            batch,
            pass,
            lines: measured.len(),
            compared: compared.len(),
            geometric_mean_ratio: geometric_mean(compared.iter().map(|(.., ratio)| (*ratio, 1.0))),
            geometric_mean_roof_percent: geometric_mean(roofs().map(|(_, percent)| (percent, 1.0))),
            worst: lowest(&mut compared.iter().map(|(row, _, ratio)| (*row, *ratio))).or_else(|| lowest(&mut roofs())),
            sum_us: measured.iter().map(|(_, us)| us).sum(),
            compared_us: (!compared.is_empty()).then(|| compared.iter().map(|(_, us, _)| us).sum()),
            peer_us: (!compared.is_empty()).then(|| compared.iter().filter_map(|(row, ..)| theirs(row)).sum()),
            floor_us: (!floors.is_empty()).then(|| floors.iter().sum()),
        }
    }
}

impl Report {
    pub fn new(header: Header, planned: usize) -> Self {
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
        }
    }

    pub fn print_head(&self) {
        println!(
            "{:<34} {:<5} {:>4} {:>10} {:>8} {:>8} {:>7} {:>15} {:>10} {:>6}",
            "shape", "pass", "n", "us", "spread", "TFLOP/s", "% roof", "floor us", "peer us", "ratio"
        );
    }

    pub fn add(&mut self, row: Row) {
        row.print();
        self.results.push(row);
        self.summarize();
    }

    /// Every line was reached.
    pub fn finish(&mut self) {
        self.finished = self.results.len() == self.planned;
    }

    /// Whether a line failed, or a peer computed something else. A peer that knows no algorithm is no failure.
    pub fn failed(&self) -> bool {
        let failed = |row: &Row| {
            (row.error.is_some() && !row.skipped) || row.peer.as_ref().is_some_and(|p| p.status == Status::Disagrees)
        };
        self.results.iter().any(failed)
    }

    fn summarize(&mut self) {
        let mut keys: Vec<(Option<usize>, Pass)> = self.results.iter().map(|r| (r.batch, r.pass)).collect();
        keys.dedup();
        keys.sort();
        keys.dedup();
        let of = |&(batch, pass): &(Option<usize>, Pass)| {
            let rows: Vec<&Row> = self.results.iter().filter(|r| (r.batch, r.pass) == (batch, pass)).collect();
            Summary::of(batch, pass, &rows)
        };
        self.summary = keys.iter().map(of).collect();
    }

    pub fn print_summary(&self) {
        println!();
        for s in &self.summary {
            let batch = s.batch.map_or(String::new(), |n| format!("batch {n}, "));
            print!("{batch}{}: {} lines, {:.1} us in all", s.pass.name(), s.lines, s.sum_us);
            if let Some(floor) = s.floor_us {
                print!(" (floor {floor:.1})");
            }
            if let (Some(ours), Some(theirs), Some(mean)) = (s.compared_us, s.peer_us, s.geometric_mean_ratio) {
                print!("; {} compared: {ours:.1} against {theirs:.1} us, mean ratio {mean:.3}", s.compared);
            }
            println!("{}", s.worst.as_ref().map_or(String::new(), |shape| format!("; worst: {shape}")));
        }
        if !self.finished {
            println!("{} of {} lines: the time was over", self.results.len(), self.planned);
        }
    }

    pub fn write(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
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
    use crate::bench::roof::Limit;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(utc(1_234_567_890), "2009-02-13T23:31:30Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    fn spread(median: f64) -> Spread {
        Spread { median, lower_quartile: median, upper_quartile: median, samples: 3 }
    }

    fn row(name: &str, count: usize, us: f64, peer: Option<f64>) -> Row {
        let mut row = Row::new(Product::Gemm(name.parse().unwrap()), Pass::Fprop, count, Some(4), 1000, 2);
        row.floor = Some(Floor { us: 1.0, limit: Limit::Bytes });
        row.peer = Some(PeerRow::failed("no".into()));
        let ratio = peer.map(|p| spread(p / us));
        row.set(Outcome { candidate: spread(us), peer: peer.map(spread), ratio });
        row
    }

    #[test]
    fn sums_are_weighted_and_means_are_not() {
        let rows =
            [row("m10n10k10", 3, 2.0, Some(4.0)), row("m20n10k10", 1, 8.0, Some(4.0)), row("m30n10k10", 2, 5.0, None)];
        let s = Summary::of(Some(4), Pass::Fprop, &rows.iter().collect::<Vec<_>>());
        assert_eq!((s.lines, s.compared), (3, 2));
        assert_eq!((s.sum_us, s.compared_us, s.peer_us, s.floor_us), (24.0, Some(14.0), Some(16.0), Some(6.0)));
        assert!((s.geometric_mean_ratio.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(s.worst.as_deref(), Some("m20n10k10"));
        let alone = Summary::of(Some(4), Pass::Fprop, &[&rows[2]]);
        assert_eq!((alone.compared, alone.peer_us, alone.worst.as_deref()), (0, None, Some("m30n10k10")));
        // 2000 operations in 2 us.
        assert!((rows[0].tflops.unwrap() - 1e-3).abs() < 1e-15);
        assert!((rows[0].roof_percent.unwrap() - 50.0).abs() < 1e-12);
    }

    #[test]
    fn a_peer_that_disagrees_is_a_failure_and_says_so() {
        let mut bad = row("m10n10k10", 1, 2.0, None);
        let mut peer = PeerRow::failed(String::new());
        peer.status = Status::Measured;
        peer.agrees(1e-3, 2e-2);
        assert_eq!((peer.status, peer.error), (Status::Measured, Some(1e-3)));
        peer.agrees(f64::INFINITY, 2e-2);
        assert_eq!((peer.status, peer.error), (Status::Disagrees, Some(f64::MAX)));
        bad.peer = Some(peer);
        assert!(bad.remark().unwrap().contains("no ratio"));
    }
}
