//! Linear layers: forward pass, data gradient, weight and bias gradient.

use warpdiff::backend::Precision;
use warpdiff::graph::{Epilogue, Op};

use crate::common::gpu::{check_families, check_generations};
use crate::common::{Case, Operand};

fn case(name: &str, op: Op, operands: Vec<Vec<usize>>) -> Case {
    let id = format!("{name}/{operands:?}/{op:?}");
    Case { id, op, operands: operands.into_iter().map(Operand::Random).collect() }
}

/// The operation alone in both precisions; gradients are operations of their own here.
fn both(case: &Case, seed: u64) {
    check_generations(case, Precision::F32, seed);
    check_generations(case, Precision::Bf16, seed);
}

/// Forward pass and both gradients in both precisions. `rows` are the dimensions before the channels; `bits` selects what
/// is fused: bias, a vector per image, a residual.
fn check_layer(rows: &[usize], inputs: usize, outputs: usize, bits: usize, scale: f64, seed: u64) {
    let (bias, per_image, residual) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
    let with = |channels: usize| [rows, &[channels]].concat();
    let weight = vec![outputs, inputs];

    let mut operands = vec![with(inputs), weight.clone()];
    operands.extend(bias.then(|| vec![outputs]));
    operands.extend(per_image.then(|| vec![rows[0], outputs]));
    operands.extend(residual.then(|| with(outputs)));
    let forward = Op::Linear(Epilogue { bias, per_image, residual, scale });
    both(&case("linear", forward, operands), seed);

    let mut operands = vec![with(outputs), weight];
    operands.extend(residual.then(|| with(inputs)));
    both(&case("data gradient", Op::LinearDgrad { residual }, operands), seed);

    let operands = vec![with(outputs), with(inputs)];
    both(&case("weight gradient", Op::LinearWgrad { bias }, operands), seed);
}

#[test]
fn shared_cases_match_the_reference() {
    check_families(&["linear"], 16);
}

#[test]
fn every_channel_count_matches_the_reference() {
    for (i, (inputs, outputs)) in [(1, 3), (3, 128), (8, 24), (15, 1), (24, 8), (128, 136)].into_iter().enumerate() {
        check_layer(&[1], inputs, outputs, i, 1.0, i as u64);
        check_layer(&[3, 5, 3], inputs, outputs, i + 2, 0.7, i as u64);
    }
}

/// The layers of a time embedding: one row an image, a depth in several segments.
#[test]
fn split_depths_match_the_reference() {
    check_layer(&[1], 512, 136, 5, 1.0, 1);
    check_layer(&[3], 516, 15, 7, 0.7, 2);
    check_layer(&[2, 17, 16], 8, 24, 1, 1.0, 3);
}
