//! Compares two backends op by op: the way from "the images differ" to the kernel that is wrong.
//!
//! The first backend runs a whole program and every value is kept. Then each operation is run alone on both, with the
//! operands that it had, so that errors do not add up along the network and a wrong kernel is the only one to show.

pub mod fp8;
mod operation;
pub mod program;
pub mod rule;

use serde::Serialize;

use crate::backend::{Backend, BackendError, Executable, Precision};
use crate::graph::{Op, Plan, ValueId};
use crate::reference::Reference;
use operation::Operation;
use rule::{Errors, Limits};

/// What was found about one result of one operation.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    /// Position of the operation in the program.
    pub node: usize,
    /// Its name.
    pub op: &'static str,
    /// The layer it belongs to.
    pub scope: String,
    /// Which of its results.
    pub result: usize,
    /// Shape of the result.
    pub shape: Vec<usize>,
    /// How far the second backend is off.
    pub errors: Errors,
    /// How far it may be off.
    pub limits: Limits,
    /// Whether it is within them.
    pub passed: bool,
}

/// Integer operands of a program, which backends do not give back.
pub type Integers = Vec<(ValueId, Vec<u32>)>;

/// The plan with every value of the program readable after a run.
pub fn keep_everything(plan: &Plan) -> Plan {
    let mut graph = plan.graph().clone();
    let made: Vec<ValueId> = graph.nodes().iter().flat_map(|n| n.outputs.clone()).collect();
    made.into_iter().for_each(|v| graph.keep(v));
    Plan::new(graph)
}

/// Runs each operation of a program that was run by `a` on `a` and on `b`; calls `each` for every result.
///
/// `exe` is the program with [everything kept](keep_everything), after a run. Operations over all parameters at once
/// (the global norm, the optimiser) have no operands of their own and are left out.
///
/// # Errors
/// What the backends say.
pub fn compare_operations(
    exe: &dyn Executable,
    integers: &Integers,
    a: &dyn Backend,
    b: &dyn Backend,
    mut each: impl FnMut(OpReport),
) -> Result<(), BackendError> {
    let graph = exe.plan().graph();
    let loss = graph.nodes().iter().position(|n| matches!(n.op, Op::DiffusionLoss { .. }));
    for (index, node) in graph.nodes().iter().enumerate().filter(|(_, n)| has_operands(&n.op)) {
        let operation = Operation::new(graph, node, b.precision(), |v| operand(exe, integers, v))?;
        let expected = operation.run(a)?;
        let rounded = match b.precision() {
            Precision::F32 => None,
            Precision::Bf16 => Some(operation.run(&Reference::new(Precision::Bf16))?),
        };
        let actual = operation.run(b)?;
        for (result, value) in node.outputs.iter().enumerate() {
            let errors = Errors::between(&actual[result], &expected[result]);
            let rounded = rounded.as_ref().map(|r| r[result].as_slice());
            let gradient = loss.is_some_and(|loss| index > loss);
            let limits = Limits::new(graph.value(*value).dtype, gradient, &expected[result], rounded);
            each(OpReport {
                node: index,
                op: node.op.name(),
                scope: node.scope.clone(),
                result,
                shape: graph.shape(*value).dims().to_vec(),
                passed: limits.allow(&errors),
                errors,
                limits,
            });
        }
    }
    Ok(())
}

fn has_operands(op: &Op) -> bool {
    !matches!(op, Op::GlobalNorm | Op::AdamW(_))
}

fn operand(exe: &dyn Executable, integers: &Integers, value: ValueId) -> Result<Operand, BackendError> {
    if let Some((_, data)) = integers.iter().find(|(v, _)| *v == value) {
        return Ok(Operand::Integers(data.clone()));
    }
    Ok(Operand::Floats(exe.read_f64(value)?.iter().map(|&x| x as f32).collect()))
}

/// The value of an operand.
enum Operand {
    Floats(Vec<f32>),
    Integers(Vec<u32>),
}
