//! One operation as a program of its own.

use half::bf16;

use super::Operand;
use crate::backend::{Backend, BackendError, Precision};
use crate::graph::{DType, Graph, GraphError, Node, Op, Plan, ValueId};

/// An operation with the values of its operands.
pub(super) struct Operation {
    plan: Plan,
    operands: Vec<(ValueId, Operand)>,
    results: Vec<ValueId>,
}

impl Operation {
    /// `node` alone; its operands are rounded to what a backend of that precision reads.
    pub fn new(
        graph: &Graph,
        node: &Node,
        precision: Precision,
        value: impl Fn(ValueId) -> Result<Operand, BackendError>,
    ) -> Result<Self, BackendError> {
        let mut single = Graph::new();
        let mut operands = Vec::new();
        for (i, &v) in node.inputs.iter().enumerate() {
            let of = graph.value(v);
            let mut data = value(v)?;
            let narrow = of.dtype == DType::Act || (i == 1 && reads_weights(&node.op));
            if let (Operand::Floats(x), Precision::Bf16, true) = (&mut data, precision, narrow) {
                x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            operands.push((single.input(&format!("operand {i}"), of.shape, of.dtype), data));
        }
        let mut inputs: Vec<ValueId> = operands.iter().map(|(v, _)| *v).collect();
        remake(&mut single, &node.op, &mut inputs).map_err(refused)?;
        let results = single.push(node.op.clone(), &inputs).map_err(refused)?;
        results.iter().for_each(|&v| single.keep(v));
        Ok(Self { plan: Plan::new(single), operands, results })
    }

    /// The results on a backend.
    pub fn run(&self, backend: &dyn Backend) -> Result<Vec<Vec<f64>>, BackendError> {
        let mut exe = backend.compile(self.plan.clone())?;
        for (value, data) in &self.operands {
            match data {
                Operand::Floats(x) => exe.write_f32(*value, x)?,
                Operand::Integers(x) => exe.write_u32(*value, x)?,
            }
        }
        exe.run()?;
        exe.finish()?;
        self.results.iter().map(|&v| exe.read_f64(v)).collect()
    }
}

/// Replaces operands that a forward operation made from the others: those of the program belong to operands that were
/// not rounded, and each backend keeps its own.
fn remake(graph: &mut Graph, op: &Op, inputs: &mut [ValueId]) -> Result<(), GraphError> {
    match op {
        Op::GroupNormGrad(norm) => {
            let last = inputs.len() - 1;
            inputs[last] = graph.push(Op::GroupNorm(*norm), &inputs[1..last])?[1];
        }
        Op::AttentionGrad { heads } => {
            let made = graph.push(Op::Attention { heads: *heads }, &inputs[1..2])?;
            inputs[2..].copy_from_slice(&made);
        }
        _ => {}
    }
    Ok(())
}

fn reads_weights(op: &Op) -> bool {
    matches!(op, Op::Conv2d(..) | Op::ConvDgrad { .. } | Op::Linear(_) | Op::LinearDgrad { .. })
}

/// An operation of a valid graph is valid on its own; this is for the day when it is not.
fn refused(error: GraphError) -> BackendError {
    BackendError::Device { device: "compare".into(), reason: error.to_string() }
}
