//! What an operation costs in floating-point operations and bytes.

use super::{Graph, Node, Op};
use crate::backend::Precision;

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

/// Bytes of a parameter that the optimiser moves: gradient, two moments, weight and average read, all but the gradient
/// written, and the bf16 copy.
const OPTIMIZER_BYTES: u64 = 38;

/// Bytes of operands and results of one node, each once; what fusion spares is counted all the same.
pub fn bytes(graph: &Graph, node: &Node, precision: Precision) -> u64 {
    if let Op::AdamW(_) = node.op {
        return graph.params().iter().map(|p| p.numel() as u64 * OPTIMIZER_BYTES).sum();
    }
    let values = node.inputs.iter().chain(&node.outputs);
    values.map(|&v| (graph.shape(v).numel() * graph.value(v).dtype.bytes(precision)) as u64).sum()
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
