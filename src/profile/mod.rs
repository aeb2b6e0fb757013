//! Where the time of a network goes: the steps of a traced run, with the operations, bytes and floor of each.
//!
//! [`measure`] traces an executable, [`Profile::operations`] and [`Profile::kernels`] add up, [`html`] and [`chrome`] show.

pub mod chrome;
pub mod html;

use std::collections::HashMap;
use std::ops::Add;

use serde::Serialize;

use crate::backend::trace::Trace;
use crate::backend::{BackendError, Executable, Precision};
use crate::bench::roof::{Amount, Floor, Roof};
use crate::graph::{Graph, Node, Op};

/// A launch, or an operation where there are no kernels.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Index in the nodes of the graph; of the first of several that one launch computes.
    pub node: usize,
    /// What it computes.
    pub operation: &'static str,
    /// Where in the network, as in `down_blocks.0.resnets.1`.
    pub scope: String,
    /// Shapes of the first operand and of the result.
    pub shape: String,
    /// The kernel.
    pub kernel: Option<String>,
    /// Blocks.
    pub grid: Option<[u32; 3]>,
    /// Threads of a block.
    pub block: Option<u32>,
    /// Dynamic shared memory of a block.
    pub shared_bytes: Option<u32>,
    /// When it begins, in microseconds from the begin of the run.
    pub start_us: f64,
    /// How long it takes: the median of the traced runs, the cost of taking the time left out.
    pub us: f64,
    /// Floating-point operations. Those of a node with several launches belong to the one that takes longest.
    pub flops: u64,
    /// Bytes of operands and results, each once; of a node with several launches as the operations.
    pub bytes: u64,
    /// The least time on this device, where its roofs are known.
    pub floor: Option<Floor>,
}

/// Steps that do the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The operation, or the kernel.
    pub name: String,
    /// Shapes of the first operand and of the result; empty if there are several.
    pub shape: String,
    /// The kernels of the operation, or the operations of the kernel.
    pub detail: String,
    /// Nodes, or launches.
    pub count: usize,
    /// Of all together.
    pub us: f64,
    /// Of the whole run, in percent.
    pub percent: f64,
    /// Of all together.
    pub flops: u64,
    /// Of all together.
    pub bytes: u64,
    /// 10^12 operations a second.
    pub tflops: f64,
    /// 10^9 bytes a second.
    pub gbs: f64,
    /// Of all together.
    pub floor_us: Option<f64>,
    /// The floor by the time, in percent.
    pub roof_percent: Option<f64>,
    /// What would be saved at the floor, in microseconds.
    pub over_floor_us: Option<f64>,
}

/// A network that was traced.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// What was run.
    pub title: String,
    /// On what.
    pub device: String,
    /// In which arithmetic.
    pub precision: Precision,
    /// Images at once.
    pub batch: usize,
    /// Traced runs.
    pub runs: usize,
    /// The roofs of the device.
    pub roof: Roof,
    /// A run as it is without taking the time of each step: the median.
    pub run_us: f64,
    /// The sum of the steps.
    pub steps_us: f64,
    /// Cost of taking the time of one step; it was left out of every step.
    pub overhead_us: f64,
    /// In the order of execution.
    pub steps: Vec<Step>,
}

/// What is profiled, for the head of the report.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name of the network and of what it does.
    pub title: String,
    /// Name of the device.
    pub device: String,
    /// Images at once.
    pub batch: usize,
    /// The roofs of the device.
    pub roof: Roof,
}

/// Traces an executable that is ready to run: whole runs first, then `runs` runs step by step.
///
/// # Errors
/// If the device fails.
pub fn measure(exe: &mut dyn Executable, subject: Subject, runs: usize) -> Result<Profile, BackendError> {
    exe.run_many(2)?;
    let mut whole = Vec::new();
    for _ in 0..runs.max(3) {
        whole.push(exe.run_timed(1)?.as_secs_f64() * 1e6);
    }
    whole.sort_by(f64::total_cmp);
    let trace = exe.trace(runs.max(1))?;
    Ok(Profile::new(exe.plan().graph(), exe.plan().precision(), &trace, whole[whole.len() / 2], subject))
}

impl Profile {
    /// The profile that a trace amounts to.
    pub fn new(graph: &Graph, precision: Precision, trace: &Trace, run_us: f64, subject: Subject) -> Self {
        let overhead_us = trace.overhead.as_secs_f64() * 1e6;
        let times: Vec<f64> = trace.medians_us().into_iter().map(|us| (us - overhead_us).max(0.0)).collect();
        // The launch of each node that takes longest: its operations and bytes are counted there.
        let mut longest: HashMap<usize, usize> = HashMap::new();
        for (i, step) in trace.steps.iter().enumerate() {
            let best = longest.entry(step.nodes.start).or_insert(i);
            if times[i] > times[*best] {
                *best = i;
            }
        }
        let mut start_us = 0.0;
        let step = |(i, traced): (usize, &crate::backend::trace::Step)| {
            let nodes = &graph.nodes()[traced.nodes.clone()];
            let (node, counts) = (&nodes[0], longest[&traced.nodes.start] == i);
            let all = nodes.iter().map(|node| Amount::of(graph, node, precision));
            let amount = if counts { all.fold(Amount::default(), Add::add) } else { Amount::default() };
            let start = start_us;
            start_us += times[i];
            let kernel = traced.kernel.as_ref();
            Step {
                node: traced.nodes.start,
                operation: node.op.name(),
                scope: node.scope.clone(),
                shape: shape(graph, node),
                kernel: kernel.map(|k| k.name.clone()),
                grid: kernel.map(|k| k.grid),
                block: kernel.map(|k| k.block),
                shared_bytes: kernel.map(|k| k.shared_bytes),
                start_us: start,
                us: times[i],
                flops: amount.flops,
                bytes: amount.bytes,
                floor: subject.roof.least(&amount).filter(|_| counts),
            }
        };
        let steps: Vec<Step> = trace.steps.iter().enumerate().map(step).collect();
        let Subject { title, device, batch, roof } = subject;
        let (runs, steps_us) = (trace.runs.len(), times.iter().sum());
        Self { title, device, precision, batch, runs, roof, run_us, steps_us, overhead_us, steps }
    }

    /// Nodes of one operation and shape as one line each, the most time first.
    pub fn operations(&self) -> Vec<Line> {
        self.lines(
            |s| (s.operation.to_string(), s.shape.clone()),
            |s| s.kernel.clone().unwrap_or_default(),
            |s| s.flops > 0 || s.bytes > 0,
        )
    }

    /// Launches of one kernel as one line each, the most time first; empty where there are no kernels.
    pub fn kernels(&self) -> Vec<Line> {
        if self.steps.iter().all(|s| s.kernel.is_none()) {
            return Vec::new();
        }
        self.lines(|s| (s.kernel.clone().unwrap_or_default(), String::new()), |s| s.operation.to_string(), |_| true)
    }

    fn lines(
        &self,
        key: impl Fn(&Step) -> (String, String),
        detail: impl Fn(&Step) -> String,
        counts: impl Fn(&Step) -> bool,
    ) -> Vec<Line> {
        let mut order: HashMap<(String, String), usize> = HashMap::new();
        let mut groups: Vec<((String, String), Vec<&Step>)> = Vec::new();
        for step in &self.steps {
            let key = key(step);
            let at = *order.entry(key.clone()).or_insert(groups.len());
            match groups.get_mut(at) {
                Some((_, steps)) => steps.push(step),
                None => groups.push((key, vec![step])),
            }
        }
        let line = |((name, shape), steps): ((String, String), Vec<&Step>)| {
            let mut details: Vec<String> = steps.iter().map(|s| detail(s)).filter(|d| !d.is_empty()).collect();
            details.sort();
            details.dedup();
            let sum = |of: fn(&Step) -> f64| steps.iter().map(|s| of(s)).sum::<f64>();
            let us = sum(|s| s.us);
            let (flops, bytes) = (steps.iter().map(|s| s.flops).sum(), steps.iter().map(|s| s.bytes).sum());
            let floor_us = self.roof.is_known().then(|| sum(|s| s.floor.map_or(0.0, |f| f.us)));
            let rate = |amount: u64, unit: f64| if us > 0.0 { amount as f64 / us / unit } else { 0.0 };
            Line {
                name,
                shape,
                detail: details.join(" "),
                count: steps.iter().filter(|s| counts(s)).count(),
                us,
                percent: if self.steps_us > 0.0 { 100.0 * us / self.steps_us } else { 0.0 },
                flops,
                bytes,
                tflops: rate(flops, 1e6),
                gbs: rate(bytes, 1e3),
                floor_us,
                roof_percent: floor_us.filter(|_| us > 0.0).map(|floor| 100.0 * floor / us),
                over_floor_us: floor_us.map(|floor| us - floor),
            }
        };
        let mut lines: Vec<Line> = groups.into_iter().map(line).collect();
        lines.sort_by(|a, b| b.us.total_cmp(&a.us));
        lines
    }

    /// Images a second, by the run as it is.
    pub fn images_per_second(&self) -> f64 {
        self.batch as f64 / self.run_us * 1e6
    }
}

/// First operand and result; of a convolution its filter, too.
fn shape(graph: &Graph, node: &Node) -> String {
    let of = |values: &[crate::graph::ValueId]| values.first().map_or(String::new(), |&v| graph.shape(v).to_string());
    let filter = match &node.op {
        Op::Conv2d(g, _) | Op::ConvDgrad { geometry: g, .. } | Op::ConvWgrad { geometry: g, .. } => {
            let stride = if g.stride > 1 { format!("/{}", g.stride) } else { String::new() };
            format!(" {}x{}{stride}", g.kernel.0, g.kernel.1)
        }
        _ => String::new(),
    };
    format!("{} -> {}{filter}", of(&node.inputs), of(&node.outputs))
}

#[cfg(test)]
mod tests;
