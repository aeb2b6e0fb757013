//! What an operation costs in floating-point operations, bytes and normal random numbers.

use super::{Graph, LossNoise, Node, NoiseSource, Op};
use crate::backend::Precision;
use crate::diffusion::StepTable;

/// Floating-point operations of one node, a multiply-add counted as two; 0 for operations that only move data.
pub fn flops(graph: &Graph, node: &Node) -> u64 {
    let numel = |i: usize| graph.shape(node.inputs[i]).numel() as u64;
    let out = || graph.shape(node.outputs[0]);
    match &node.op {
        Op::Conv2d(g, _) => {
            let taps = (g.kernel.0 * g.kernel.1) as u64;
            2 * out().numel() as u64 * taps * graph.shape(node.inputs[0]).channels() as u64
        }
        Op::ConvDgrad { geometry: g, .. } => {
            let taps = (g.kernel.0 * g.kernel.1) as u64;
            2 * numel(0) * taps * out().channels() as u64
        }
        Op::ConvWgrad { geometry: g, .. } => {
            let taps = (g.kernel.0 * g.kernel.1) as u64;
            2 * numel(0) * taps * graph.shape(node.inputs[1]).channels() as u64
        }
        Op::Linear(_) => 2 * out().numel() as u64 * graph.shape(node.inputs[0]).channels() as u64,
        Op::LinearDgrad { .. } | Op::LinearWgrad { .. } => 2 * numel(0) * graph.shape(node.inputs[1]).channels() as u64,
        Op::Attention { .. } => attention(graph, node, 0),
        // Scores again, then four products of the same size.
        Op::AttentionGrad { .. } => attention(graph, node, 1) / 2 * 5,
        _ => 0,
    }
}

/// Normal random numbers that a node draws in the step of its table that draws most.
pub fn normals(graph: &Graph, node: &Node) -> u64 {
    let elements = |i: usize| graph.shape(node.inputs[i]).numel() as u64;
    match &node.op {
        Op::Noising(_) => elements(0),
        Op::DiffusionLoss { noise: LossNoise::Redrawn, .. } => elements(1),
        Op::SamplerStep(s) if s.noise == NoiseSource::Philox && s.table.rows.iter().any(|row| row.noise) => elements(0),
        _ => 0,
    }
}

/// Bytes of a parameter that the optimiser moves: gradient, two moments, weight and average read, all but the gradient
/// written.
const OPTIMIZER_BYTES: u64 = 36;
/// Bytes of a parameter's bf16 copy.
const COPY_BYTES: u64 = 2;

/// Bytes of operands and results of one node, each once; what fusion spares is counted all the same. Of a sampler, the
/// previous x_0 counts where a step of its table reads it.
pub fn bytes(graph: &Graph, node: &Node, precision: Precision) -> u64 {
    let size = |v| (graph.shape(v).numel() * graph.value(v).dtype.bytes(precision)) as u64;
    let all = || node.inputs.iter().chain(&node.outputs).map(|&v| size(v)).sum::<u64>();
    match &node.op {
        Op::AdamW(_) => {
            let copy = if precision == Precision::Bf16 { COPY_BYTES } else { 0 };
            graph.params().iter().map(|p| p.numel() as u64 * (OPTIMIZER_BYTES + copy)).sum()
        }
        Op::SamplerStep(s) if !reads_previous_x0(&s.table) => all() - size(node.inputs[2]),
        _ => all(),
    }
}

/// Whether a step reads the x_0 of the step before; that of two steps before is made from it.
fn reads_previous_x0(table: &StepTable) -> bool {
    table.history().x0_prev2 || table.rows.iter().any(|row| row.p != 0.0 || row.keep.x0_prev != 0.0)
}

/// The two products of attention: scores and their sum over the values.
fn attention(graph: &Graph, node: &Node, qkv: usize) -> u64 {
    let shape = graph.shape(node.inputs[qkv]);
    let (n, t, c) = (shape.batch(), shape.pixels(), shape.channels() / 3);
    2 * 2 * (n * t * t * c) as u64
}

/// Floating-point operations of the whole graph.
pub fn total_flops(graph: &Graph) -> u64 {
    graph.nodes().iter().map(|n| flops(graph, n)).sum()
}
