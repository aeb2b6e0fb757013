//! Fusion: merges elementwise operations into the operation that makes their operand, and drops what nobody reads.
//!
//! Layers that read the same vectors are brought together besides.
//!
//! Run it on the forward graph before [`super::autodiff::backward`], so that the backward pass recomputes fused
//! activations instead of storing them, and once more afterwards, so that sums of gradients join the data gradients.

use super::gather::gather;
use super::{Activation, Graph, Node, Op, Source, ValueId};

/// Merges what can be merged; returns how many operations went away.
pub fn fuse(graph: &mut Graph) -> usize {
    let before = graph.nodes.len();
    drop_unused(graph);
    let uses = graph.use_counts();
    let mut made_by = producers(graph);
    let mut nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    for i in 0..nodes.len() {
        let Some(node) = nodes[i].clone() else { continue };
        if let Some((fused, absorbed)) = absorb(&node, &nodes, &made_by, &uses, graph) {
            for v in nodes[absorbed].take().into_iter().flat_map(|n| n.outputs) {
                graph.values[v.index()].source = Source::Fused;
            }
            for v in &fused.outputs {
                made_by[v.index()] = Some(i);
            }
            nodes[i] = Some(fused);
        }
    }
    graph.nodes = nodes.into_iter().flatten().collect();
    gather(graph);
    before - graph.nodes.len()
}

/// Removes operations whose results nobody reads.
fn drop_unused(graph: &mut Graph) {
    let mut uses = graph.use_counts();
    let nodes = std::mem::take(&mut graph.nodes);
    let mut kept = Vec::with_capacity(nodes.len());
    for node in nodes.into_iter().rev() {
        if node.op.has_side_effect() || node.outputs.iter().any(|v| uses[v.index()] > 0) {
            kept.push(node);
            continue;
        }
        for v in &node.inputs {
            uses[v.index()] -= 1;
        }
        for v in &node.outputs {
            graph.values[v.index()].source = Source::Fused;
        }
    }
    kept.reverse();
    graph.nodes = kept;
}

fn producers(graph: &Graph) -> Vec<Option<usize>> {
    let mut made_by = vec![None; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for v in &node.outputs {
            made_by[v.index()] = Some(i);
        }
    }
    made_by
}

pub(super) fn renumber(graph: &mut Graph) {
    for (node, n) in graph.nodes.iter().enumerate() {
        for (index, v) in n.outputs.iter().enumerate() {
            graph.values[v.index()].source = Source::Node { node, index };
        }
    }
}

/// The node that replaces `node` and the producer it absorbs, if there is such a pair.
///
/// The merged operation stands where `node` stood, so every other operand is computed by then.
fn absorb(
    node: &Node,
    nodes: &[Option<Node>],
    made_by: &[Option<usize>],
    uses: &[usize],
    graph: &Graph,
) -> Option<(Node, usize)> {
    let producer = |v: ValueId| -> Option<(usize, &Node)> {
        let i = made_by[v.index()]?;
        (uses[v.index()] == 1).then_some(())?;
        Some((i, nodes[i].as_ref()?))
    };
    let merged = |i: usize, p: &Node, op: Op, extra: &[ValueId]| {
        let mut outputs = node.outputs.clone();
        outputs.extend(&p.outputs[1..]);
        let node =
            Node { op, inputs: p.inputs.iter().chain(extra).copied().collect(), outputs, scope: p.scope.clone() };
        Some((node, i))
    };
    match &node.op {
        Op::Activation(Activation::Silu) => {
            let (i, p) = producer(node.inputs[0])?;
            let Op::GroupNorm(norm) = p.op else { return None };
            let norm = super::GroupNorm { silu: true, ..norm };
            merged(i, p, Op::GroupNorm(norm), &[])
        }
        Op::AddPerImage => {
            let (i, p) = producer(node.inputs[0])?;
            let op =
                p.op.with_epilogue(|e| (!e.per_image && !e.residual && e.scale == 1.0).then(|| e.per_image = true))?;
            merged(i, p, op, &node.inputs[1..])
        }
        Op::Add => {
            let (a, b) = (node.inputs[0], node.inputs[1]);
            let candidates = [(a, b), (b, a)];
            // A convolution's epilogue hides the extra read better than a linear layer's.
            let by_weight = |conv: bool| {
                candidates.iter().find_map(|&(made, other)| {
                    let (i, p) = producer(made)?;
                    (matches!(p.op, Op::Conv2d(..) | Op::ConvDgrad { .. }) == conv).then_some(())?;
                    let same = graph.shape(other) == graph.shape(made);
                    let op = same.then(|| p.op.with_residual())??;
                    merged(i, p, op, &[other])
                })
            };
            by_weight(true).or_else(|| by_weight(false))
        }
        Op::Affine { mul, add } if *add == 0.0 => {
            let (i, p) = producer(node.inputs[0])?;
            let op = p.op.with_epilogue(|e| {
                e.scale *= mul;
                Some(())
            })?;
            merged(i, p, op, &[])
        }
        _ => None,
    }
}

impl Op {
    /// The operation with its epilogue changed by `f`, if it has one and `f` agrees.
    fn with_epilogue(&self, f: impl FnOnce(&mut super::Epilogue) -> Option<()>) -> Option<Op> {
        let mut op = self.clone();
        match &mut op {
            Op::Conv2d(_, e) | Op::Linear(e) => f(e)?,
            _ => return None,
        }
        Some(op)
    }

    /// The operation with a tensor added to its result, if it can do that.
    fn with_residual(&self) -> Option<Op> {
        match *self {
            Op::LinearDgrad { residual: false } => Some(Op::LinearDgrad { residual: true }),
            Op::ConvDgrad { geometry, input_size, residual: false } => {
                Some(Op::ConvDgrad { geometry, input_size, residual: true })
            }
            _ => self.with_epilogue(|e| (!e.residual && e.scale == 1.0).then(|| e.residual = true)),
        }
    }
}
