//! Convolutions: forward pass, data gradient, weight and bias gradient.

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::{Backend, Precision};
use warpdiff::graph::{ConvGeometry, Epilogue, Op};

use crate::common::gpu::{check, check_both, devices};
use crate::common::{Case, Operand, build, differentiable};

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

fn conv(geometry: ConvGeometry, epilogue: Epilogue, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let mut operands = vec![vec![n, h, w, c], vec![k, geometry.kernel.0, geometry.kernel.1, c]];
    operands.extend(epilogue.bias.then(|| vec![k]));
    operands.extend(epilogue.per_image.then(|| vec![n, k]));
    operands.extend(epilogue.residual.then(|| vec![n, oh, ow, k]));
    Case {
        name: format!("conv {n}x{h}x{w}x{c} -> {k}, {geometry:?}, {epilogue:?}"),
        op: Op::Conv2d(geometry, epilogue),
        operands: operands.into_iter().map(Operand::Random).collect(),
    }
}

#[test]
fn shared_cases_match_the_reference() {
    for scale in [1, 4] {
        for (i, case) in differentiable(scale).iter().enumerate().filter(|(_, c)| matches!(c.op, Op::Conv2d(..))) {
            check_both(case, true, i as u64);
        }
    }
}

#[test]
fn every_channel_count_matches_the_reference() {
    for (i, (c, k)) in [(1, 3), (3, 128), (8, 8), (15, 24), (24, 15), (128, 3), (24, 72)].into_iter().enumerate() {
        for (j, geometry) in [SAME, POINTWISE, HALVING, HALVING_RIGHT_BOTTOM].into_iter().enumerate() {
            let size = if (i + j) % 2 == 0 { [1, 5, 3, c] } else { [3, 7, 9, c] };
            check_both(&conv(geometry, epilogue(i + j, 1.0), size, k), true, (10 * i + j) as u64);
        }
    }
}

#[test]
fn odd_geometries_match_the_reference() {
    for (i, geometry) in ODD.into_iter().enumerate() {
        for (c, k) in [(3, 5), (8, 16)] {
            check_both(&conv(geometry, epilogue(1, 1.0), [2, 6, 7, c], k), true, i as u64);
        }
    }
}

#[test]
fn every_epilogue_matches_the_reference() {
    for bits in 0..8 {
        // Vector and element-wise stores.
        for k in [8, 3] {
            check_both(&conv(SAME, epilogue(bits, 0.7071), [3, 3, 5, 8], k), true, bits as u64);
        }
    }
}

/// More than one tile of every kind along rows and columns, with ragged ends.
#[test]
fn several_tiles_match_the_reference() {
    check_both(&conv(SAME, epilogue(7, 0.5), [2, 9, 11, 16], 136), true, 1);
    check_both(&conv(POINTWISE, epilogue(1, 1.0), [1, 17, 16, 136], 72), true, 2);
}

/// Deep enough for several segments of the depth, and pixels enough for several splits of the weight gradient.
#[test]
fn split_depths_match_the_reference() {
    check_both(&conv(SAME, epilogue(7, 0.7), [1, 4, 4, 128], 24), true, 3);
    check_both(&conv(HALVING, epilogue(1, 1.0), [1, 4, 4, 128], 128), true, 4);
    check_both(&conv(POINTWISE, epilogue(5, 1.0), [2, 2, 2, 840], 15), true, 5);
    check_both(&conv(SAME, epilogue(1, 1.0), [3, 16, 17, 8], 24), true, 6);
    check_both(&conv(SAME, epilogue(1, 1.0), [3, 16, 17, 3], 5), true, 7);
}

#[test]
fn a_data_gradient_adds_the_other_branch() {
    for (geometry, c, k) in [(SAME, 8, 16), (HALVING, 15, 3), (HALVING, 8, 8), (ODD[0], 8, 8)] {
        let (h, w) = (7, 5);
        let (oh, ow) = geometry.output_size(h, w).unwrap();
        let operands = [vec![2, oh, ow, k], vec![k, geometry.kernel.0, geometry.kernel.1, c], vec![2, h, w, c]];
        let case = Case {
            name: format!("data gradient with residual, {c} <- {k}, {geometry:?}"),
            op: Op::ConvDgrad { geometry, input_size: (h, w), residual: true },
            operands: operands.map(Operand::Random).into(),
        };
        check_both(&case, false, 8);
    }
}

/// Block tiles that only large problems choose, against the reference.
#[test]
fn large_tiles_match_the_reference() {
    check(&conv(SAME, epilogue(3, 1.0), [40, 32, 32, 8], 128), Precision::Bf16, false, 9);
}

/// The values of operand or result `index` that belong to one image.
fn image(values: &[f32], index: usize, images: usize) -> &[f32] {
    let len = values.len() / images;
    &values[index * len..][..len]
}

/// Whether image 2 of a batch has the bits that it has alone: forward and data gradient.
fn assert_batch_invariant(geometry: ConvGeometry, size: [usize; 4], k: usize, precision: Precision) {
    let [n, h, w, c] = size;
    let backend = Gpu::new(devices().swap_remove(0), precision);
    let mut batch = build(&conv(geometry, epilogue(7, 0.7), size, k), &backend, true, 10);
    let mut alone = build(&conv(geometry, epilogue(7, 0.7), [1, h, w, c], k), &backend, true, 11);
    let pairs = batch.operands.iter().zip(&alone.operands).chain(batch.dy.iter().zip(&alone.dy));
    for (i, (&of_batch, &of_one)) in pairs.enumerate() {
        let mut data = vec![0.0; batch.exe.plan().graph().shape(of_batch).numel()];
        batch.exe.read_f32(of_batch, &mut data).unwrap();
        let shared = i == 1 || i == 2;
        alone.exe.write_f32(of_one, if shared { &data } else { image(&data, 2, n) }).unwrap();
    }
    batch.exe.run().unwrap();
    alone.exe.run().unwrap();
    for (of_batch, of_one) in [
        (batch.outputs[0], alone.outputs[0]),
        (batch.gradients[0].unwrap(), alone.gradients[0].unwrap()),
    ] {
        let mut actual = vec![f32::NAN; batch.exe.plan().graph().shape(of_batch).numel()];
        let mut expected = vec![f32::NAN; actual.len() / n];
        batch.exe.read_f32(of_batch, &mut actual).unwrap();
        alone.exe.read_f32(of_one, &mut expected).unwrap();
        let same = image(&actual, 2, n).iter().zip(&expected).all(|(a, e)| a.to_bits() == e.to_bits());
        assert!(same, "{precision}, {geometry:?}, {size:?} -> {k} on {}", backend.name());
        assert!(expected.iter().any(|v| v.abs() > 0.1));
    }
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
            assert_batch_invariant(geometry, [3, h, w, c], k, precision);
        }
    }
    // One image is split over blocks, 32 are not (`tiles::tests::the_way_of_launching_may_follow_the_batch`).
    assert_batch_invariant(POINTWISE, [32, 4, 4, 832], 64, Precision::Bf16);
}
