//! A line of a report.

use serde::Serialize;

use super::line::Line;
use super::loops::LoopFigures;
use super::unet::NetworkFigures;
use crate::backend::Precision;
use crate::bench::race::Outcome;
use crate::bench::roof::{Amount, Floor, Roof};
use crate::bench::statistics::Spread;
use crate::graph::Graph;
use crate::peer::{PeerProduct, ResultType};

/// One operation, or a whole network.
#[derive(Serialize)]
pub(super) struct Row {
    /// The command that measures it.
    pub family: &'static str,
    pub network: Option<String>,
    /// Its shape.
    pub name: String,
    pub pass: &'static str,
    /// How often the network computes it.
    pub count: usize,
    pub batch: Option<usize>,
    #[serde(flatten)]
    pub amount: Amount,
    pub copies: usize,
    /// Microseconds of an operation, of a run of a network, or of a step of a loop.
    pub us: Option<Spread>,
    tflops: Option<f64>,
    gbs: Option<f64>,
    pub floor: Option<Floor>,
    /// The floor by the time, in percent.
    roof_percent: Option<f64>,
    pub peer: Option<PeerRow>,
    pub ratio: Option<Spread>,
    #[serde(flatten)]
    pub figures: Option<Figures>,
    pub error: Option<String>,
    /// Too large for the device, which is no failure.
    pub skipped: bool,
}

/// What only whole networks have.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Figures {
    Network(NetworkFigures),
    Loop(LoopFigures),
}

impl Figures {
    fn remark(&self) -> String {
        match self {
            Self::Network(figures) => format!("{:.1} img/s", figures.img_s),
            Self::Loop(figures) => {
                format!("{:.2} img/s, {:.1} evaluations/s", figures.img_s, figures.evaluations_s)
            }
        }
    }
}

impl Row {
    /// A line without figures.
    pub fn new(line: &Line, network: Option<&str>) -> Self {
        let of = Self::of_network(line.work.family(), network, line.work.name(), line.work.pass(), line.batch);
        Self { count: line.count, ..of }
    }

    /// A line about something that is no operation.
    pub fn of_network(
        family: &'static str,
        network: Option<&str>,
        name: String,
        pass: &'static str,
        batch: Option<usize>,
    ) -> Self {
        Self {
            family,
            network: network.map(Into::into),
            name,
            pass,
            count: 1,
            batch,
            amount: Amount::default(),
            copies: 1,
            us: None,
            tflops: None,
            gbs: None,
            floor: None,
            roof_percent: None,
            peer: None,
            ratio: None,
            figures: None,
            error: None,
            skipped: false,
        }
    }

    pub fn set(&mut self, outcome: Outcome) {
        self.set_time(outcome.candidate);
        self.ratio = outcome.ratio;
        if let Some(peer) = &mut self.peer {
            peer.us = outcome.peer;
        }
    }

    /// The time, and the rates that follow from it and from the amount of work.
    pub fn set_time(&mut self, spread: Spread) {
        let us = spread.median;
        self.us = Some(spread);
        self.tflops = Some(self.amount.flops as f64 / us / 1e6);
        self.gbs = Some(self.amount.bytes as f64 / us / 1e3);
        self.roof_percent = self.floor.map(|floor| 100.0 * floor.us / us);
    }

    /// The work of a whole graph, and the sum of its operations' floors.
    pub fn set_graph(&mut self, graph: &Graph, precision: Precision, roof: &Roof) {
        let amount = |node| Amount::of(graph, node, precision);
        self.amount = graph.nodes().iter().map(amount).sum();
        let limit = roof.least(&self.amount).map(|floor| floor.limit);
        self.floor = roof.least_of_graph(graph, precision).zip(limit).map(|(us, limit)| Floor { us, limit });
    }

    pub fn roof_percent(&self) -> Option<f64> {
        self.roof_percent
    }

    pub fn print_head() {
        println!(
            "{:<34} {:<9} {:>4} {:>10} {:>8} {:>8} {:>8} {:>7} {:>15} {:>10} {:>6}",
            "shape", "pass", "n", "us", "spread", "TFLOP/s", "GB/s", "% roof", "floor us", "peer us", "ratio"
        );
    }

    pub fn print(&self) {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let floor = self.floor.map_or("-".into(), |f| format!("{:.1} {}", f.us, f.limit.name()));
        let rate = |value: Option<f64>, work: u64| number(value.filter(|_| work > 0), 1);
        println!(
            "{:<34} {:<9} {:>4} {:>10} {:>8} {:>8} {:>8} {:>7} {:>15} {:>10} {:>6}{}",
            self.name,
            self.pass,
            self.count,
            number(self.us.map(|s| s.median), 2),
            number(self.us.map(|s| s.range()), 2),
            rate(self.tflops, self.amount.flops),
            rate(self.gbs, self.amount.bytes),
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
        if let Some(figures) = &self.figures {
            return Some(figures.remark());
        }
        let peer = self.peer.as_ref()?;
        match peer.status {
            Status::Measured if peer.result == Some("bf16") && self.pass == "wgrad" => {
                Some("the peer's result is bf16, ours f32".into())
            }
            Status::Measured => None,
            _ => peer.reason.clone(),
        }
    }

    /// Whether it failed, or a peer computed something else. A peer that knows no algorithm is no failure.
    pub fn failed(&self) -> bool {
        (self.error.is_some() && !self.skipped) || self.peer.as_ref().is_some_and(|p| p.status == Status::Disagrees)
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
    pub us: Option<Spread>,
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::roof::Limit;
    use crate::bench::{Pass, Product, Work};

    pub fn spread(median: f64) -> Spread {
        Spread { median, lower_quartile: median, upper_quartile: median, samples: 3 }
    }

    /// A product of 2000 operations with a floor of a microsecond.
    pub fn row(name: &str, count: usize, us: f64, peer: Option<f64>) -> Row {
        let work = Work::Product(Product::Gemm(name.parse().unwrap()), Pass::Fprop);
        let mut row = Row::new(&Line { work, count, batch: Some(4) }, Some("network"));
        row.amount = Amount { flops: 2000, bytes: 1000, normals: 0 };
        row.floor = Some(Floor { us: 1.0, limit: Limit::Bytes });
        row.peer = Some(PeerRow::failed("no".into()));
        let ratio = peer.map(|p| spread(p / us));
        row.set(Outcome { candidate: spread(us), peer: peer.map(spread), ratio });
        row
    }

    #[test]
    fn rates_follow_from_time_and_work() {
        let row = row("m10n10k10", 3, 2.0, None);
        assert!((row.tflops.unwrap() - 1e-3).abs() < 1e-15);
        assert!((row.gbs.unwrap() - 0.5).abs() < 1e-15);
        assert!((row.roof_percent.unwrap() - 50.0).abs() < 1e-12);
        assert_eq!((row.family, row.network.as_deref(), row.pass), ("gemm", Some("network"), "fprop"));
    }

    #[test]
    fn a_peer_that_disagrees_is_a_failure_and_says_so() {
        let mut bad = row("m10n10k10", 1, 2.0, None);
        assert!(!bad.failed());
        let mut peer = PeerRow::failed(String::new());
        peer.status = Status::Measured;
        peer.agrees(1e-3, 2e-2);
        assert_eq!((peer.status, peer.error), (Status::Measured, Some(1e-3)));
        peer.agrees(f64::INFINITY, 2e-2);
        assert_eq!((peer.status, peer.error), (Status::Disagrees, Some(f64::MAX)));
        bad.peer = Some(peer);
        assert!(bad.failed() && bad.remark().unwrap().contains("no ratio"));
    }
}
