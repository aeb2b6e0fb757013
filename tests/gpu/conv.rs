//! Convolutions: forward pass, data gradient, weight and bias gradient.

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::{ConvGeometry, Epilogue, Op};

use crate::common::gpu::{check_before_hopper, check_families, check_generations, device};
use crate::common::{Case, Operand, build};

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) };
const HALVING_RIGHT_BOTTOM: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };
/// Phases without a tap, taps of different numbers, padding of every size.
const ODD: [ConvGeometry; 4] = [
    ConvGeometry { kernel: (1, 1), stride: 2, padding: (0, 0, 0, 0) },
    ConvGeometry { kernel: (2, 3), stride: 3, padding: (1, 2, 0, 1) },
    ConvGeometry { kernel: (5, 5), stride: 1, padding: (2, 2, 2, 2) },
    ConvGeometry { kernel: (4, 4), stride: 2, padding: (1, 1, 1, 1) },
];

/// Every epilogue is some number of 0..8: bias, per image, residual.
fn epilogue(bits: usize, scale: f64) -> Epilogue {
    Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale }
}

fn case(name: &str, op: Op, operands: Vec<Vec<usize>>) -> Case {
    let id = format!("{name}/{operands:?}/{op:?}");
    Case { id, op, operands: operands.into_iter().map(Operand::Random).collect() }
}

/// The operation alone in both precisions; gradients are operations of their own here.
fn both(case: &Case, seed: u64) {
    check_generations(case, Precision::F32, seed);
    check_generations(case, Precision::Bf16, seed);
}

fn forward(geometry: ConvGeometry, epilogue: Epilogue, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let mut operands = vec![vec![n, h, w, c], vec![k, geometry.kernel.0, geometry.kernel.1, c]];
    operands.extend(epilogue.bias.then(|| vec![k]));
    operands.extend(epilogue.per_image.then(|| vec![n, k]));
    operands.extend(epilogue.residual.then(|| vec![n, oh, ow, k]));
    case("conv", Op::Conv2d(geometry, epilogue), operands)
}

fn data_gradient(geometry: ConvGeometry, residual: bool, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let mut operands = vec![vec![n, oh, ow, k], vec![k, geometry.kernel.0, geometry.kernel.1, c]];
    operands.extend(residual.then(|| vec![n, h, w, c]));
    case("data gradient", Op::ConvDgrad { geometry, input_size: (h, w), residual }, operands)
}

fn weight_gradient(geometry: ConvGeometry, bias: bool, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    case("weight gradient", Op::ConvWgrad { geometry, bias }, vec![vec![n, oh, ow, k], vec![n, h, w, c]])
}

/// Forward pass and both gradients in both precisions; `bits` selects what is fused to them.
fn check_layer(geometry: ConvGeometry, bits: usize, scale: f64, size: [usize; 4], k: usize, seed: u64) {
    both(&forward(geometry, epilogue(bits, scale), size, k), seed);
    both(&data_gradient(geometry, bits & 4 != 0, size, k), seed);
    both(&weight_gradient(geometry, bits & 1 != 0, size, k), seed);
}

#[test]
fn shared_cases_match_the_reference() {
    check_families(&["conv2d"], 16);
}

#[test]
fn every_channel_count_matches_the_reference() {
    for (i, (c, k)) in [(1, 3), (3, 128), (8, 8), (15, 24), (24, 15), (128, 3), (24, 72)].into_iter().enumerate() {
        for (j, geometry) in [SAME, POINTWISE, HALVING, HALVING_RIGHT_BOTTOM].into_iter().enumerate() {
            let size = if (i + j) % 2 == 0 { [1, 5, 3, c] } else { [3, 7, 9, c] };
            check_layer(geometry, (i + j) % 8, 1.0, size, k, (10 * i + j) as u64);
        }
    }
}

#[test]
fn odd_geometries_match_the_reference() {
    for (i, geometry) in ODD.into_iter().enumerate() {
        for (c, k) in [(3, 5), (8, 16)] {
            check_layer(geometry, 5, 1.0, [2, 6, 7, c], k, i as u64);
        }
    }
}

#[test]
fn every_epilogue_matches_the_reference() {
    for bits in 0..8 {
        // Vector and element-wise stores.
        for k in [8, 3] {
            check_layer(SAME, bits, 0.75, [3, 3, 5, 8], k, bits as u64);
        }
    }
}

/// More than one tile along rows and columns, with ragged ends.
#[test]
fn several_tiles_match_the_reference() {
    check_layer(SAME, 7, 0.5, [2, 9, 11, 16], 136, 1);
    check_layer(POINTWISE, 1, 1.0, [1, 17, 16, 136], 72, 2);
}

/// Deep enough for several segments of the depth, and pixels enough for several splits of the weight gradient.
#[test]
fn split_depths_match_the_reference() {
    check_layer(SAME, 7, 0.7, [1, 4, 4, 128], 24, 3);
    check_layer(HALVING, 1, 1.0, [1, 4, 4, 128], 128, 4);
    check_layer(POINTWISE, 5, 1.0, [2, 2, 2, 840], 15, 5);
    check_layer(SAME, 1, 1.0, [3, 16, 17, 8], 24, 6);
    check_layer(SAME, 1, 1.0, [3, 16, 17, 3], 5, 7);
}

/// Small problems that choose the largest block tile (`tiles::tests::large_tiles_are_tested`).
#[test]
fn large_tiles_match_the_reference() {
    check_before_hopper(&forward(POINTWISE, epilogue(3, 1.0), [35, 16, 16, 32], 256), Precision::Bf16, 8);
    check_before_hopper(&data_gradient(POINTWISE, true, [35, 16, 16, 256], 32), Precision::Bf16, 9);
    check_before_hopper(&weight_gradient(POINTWISE, true, [1, 5, 5, 1280], 1280), Precision::Bf16, 10);
}

/// The values that belong to one of several images.
fn image(values: &[f32], index: usize, images: usize) -> &[f32] {
    let len = values.len() / images;
    &values[index * len..][..len]
}

/// Whether the last image of a batch has the bits that it has alone. `of(n)` is the operation on n images, its operands
/// in `shared` the same for all of them.
fn assert_batch_invariant(of: impl Fn(usize) -> Case, images: usize, shared: &[usize], precision: Precision) {
    let backend = Gpu::new(device(), precision);
    let mut batch = build(&of(images), &backend, false, 10, precision);
    let mut alone = build(&of(1), &backend, false, 11, precision);
    for (i, (&of_batch, &of_one)) in batch.operands.iter().zip(&alone.operands).enumerate() {
        let mut data = vec![0.0; batch.exe.plan().graph().shape(of_batch).numel()];
        batch.exe.read_f32(of_batch, &mut data).unwrap();
        let mine = if shared.contains(&i) { &data } else { image(&data, images - 1, images) };
        alone.exe.write_f32(of_one, mine).unwrap();
    }
    batch.exe.run().unwrap();
    alone.exe.run().unwrap();
    let (actual, expected) =
        (batch.exe.read_f64(batch.outputs[0]).unwrap(), alone.exe.read_f64(alone.outputs[0]).unwrap());
    let actual = &actual[actual.len() - expected.len()..];
    assert!(actual.iter().zip(&expected).all(|(a, e)| a.to_bits() == e.to_bits()), "{precision}: {}", of(images).id);
    assert!(expected.iter().any(|v| v.abs() > 0.1));
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (geometry, [h, w], c, k) in [
            (SAME, [5, 3], 3, 8),
            (SAME, [4, 4], 128, 64),
            (HALVING, [7, 9], 24, 16),
            (HALVING_RIGHT_BOTTOM, [6, 6], 64, 128),
            (POINTWISE, [5, 5], 15, 3),
        ] {
            assert_batch_invariant(|n| forward(geometry, epilogue(7, 0.7), [n, h, w, c], k), 3, &[1, 2], precision);
            assert_batch_invariant(|n| data_gradient(geometry, true, [n, h, w, c], k), 3, &[1], precision);
        }
    }
    // One image is split over blocks, 32 are not (`tiles::tests::the_way_of_launching_may_follow_the_batch`).
    let deep = |n| forward(POINTWISE, epilogue(7, 0.7), [n, 4, 4, 832], 64);
    assert_batch_invariant(deep, 32, &[1, 2], Precision::Bf16);
}
