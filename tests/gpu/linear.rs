//! Linear layers: forward pass, data gradient, weight and bias gradient.

use warpdiff::graph::{Epilogue, Op};

use crate::common::gpu::check_both;
use crate::common::{Case, Operand, differentiable};

/// `rows` are the dimensions before the channels.
fn linear(rows: &[usize], inputs: usize, outputs: usize, bits: usize, scale: f64) -> Case {
    let e = Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale };
    let with = |channels: usize| [rows, &[channels]].concat();
    let mut operands = vec![with(inputs), vec![outputs, inputs]];
    operands.extend(e.bias.then(|| vec![outputs]));
    operands.extend(e.per_image.then(|| vec![rows[0], outputs]));
    operands.extend(e.residual.then(|| with(outputs)));
    Case {
        name: format!("linear {rows:?} {inputs} -> {outputs}, {e:?}"),
        op: Op::Linear(e),
        operands: operands.into_iter().map(Operand::Random).collect(),
    }
}

#[test]
fn shared_cases_match_the_reference() {
    for scale in [1, 4] {
        for (i, case) in differentiable(scale).iter().enumerate().filter(|(_, c)| matches!(c.op, Op::Linear(_))) {
            check_both(case, true, i as u64);
        }
    }
}

#[test]
fn every_channel_count_matches_the_reference() {
    for (i, (inputs, outputs)) in [(1, 3), (3, 128), (8, 24), (15, 1), (24, 8), (128, 136)].into_iter().enumerate() {
        check_both(&linear(&[1], inputs, outputs, i, 1.0), true, i as u64);
        check_both(&linear(&[3, 5, 3], inputs, outputs, i + 2, 0.7), true, i as u64);
    }
}

/// The layers of a time embedding: one row an image, a depth in several segments.
#[test]
fn split_depths_match_the_reference() {
    check_both(&linear(&[1], 512, 136, 1, 1.0), true, 1);
    check_both(&linear(&[3], 516, 15, 7, 0.7), true, 2);
    check_both(&linear(&[2, 17, 16], 8, 24, 1, 1.0), true, 3);
}

#[test]
fn a_data_gradient_adds_the_other_branch() {
    for (inputs, outputs) in [(8, 16), (15, 3)] {
        let case = Case {
            name: format!("data gradient with residual, {inputs} <- {outputs}"),
            op: Op::LinearDgrad { residual: true },
            operands: [vec![2, 3, 3, outputs], vec![outputs, inputs], vec![2, 3, 3, inputs]]
                .map(Operand::Random)
                .into(),
        };
        check_both(&case, false, 4);
    }
}
