//! Convolutions and linear layers on the kernels of Hopper, whose channels are multiples of 8 from 32 on. Each shape
//! takes the variant that would be chosen for it; that all variants agree in every bit is tested where they are chosen
//! by hand.

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::{ConvGeometry, Epilogue, Op};

use crate::common::gpu::{check_hopper, device};
use crate::common::{Case, Operand, build};

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) };
const HALVING_RIGHT_BOTTOM: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };
const UNEVEN: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 1, padding: (0, 2, 2, 1) };

fn case(op: Op, operands: Vec<Vec<usize>>) -> Case {
    let id = format!("hopper/{operands:?}/{op:?}");
    Case { id, op, operands: operands.into_iter().map(Operand::Random).collect() }
}

/// Every epilogue is some number of 0..8: bias, per image, residual.
fn forward(geometry: ConvGeometry, bits: usize, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let epilogue = Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale: 0.7 };
    let mut operands = vec![vec![n, h, w, c], vec![k, geometry.kernel.0, geometry.kernel.1, c]];
    operands.extend(epilogue.bias.then(|| vec![k]));
    operands.extend(epilogue.per_image.then(|| vec![n, k]));
    operands.extend(epilogue.residual.then(|| vec![n, oh, ow, k]));
    case(Op::Conv2d(geometry, epilogue), operands)
}

/// From k channels of dy to c channels of dx.
fn backward(geometry: ConvGeometry, residual: bool, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let mut operands = vec![vec![n, oh, ow, k], vec![k, geometry.kernel.0, geometry.kernel.1, c]];
    operands.extend(residual.then(|| vec![n, h, w, c]));
    case(Op::ConvDgrad { geometry, input_size: (h, w), residual }, operands)
}

fn check_bf16(case: &Case, seed: u64) {
    check_hopper(case, seed);
}

#[test]
fn every_channel_count_matches_the_reference() {
    let channels = [(32, 3), (40, 8), (72, 24), (128, 128), (136, 136), (32, 200), (40, 27)];
    for (i, (c, k)) in channels.into_iter().enumerate() {
        check_bf16(&forward(SAME, i % 8, [3, 5, 7, c], k), i as u64);
        if k % 8 == 0 {
            // Source channels are those of dy.
            check_bf16(&backward(SAME, i % 2 == 0, [3, 5, 7, k], c), i as u64);
        }
    }
}

#[test]
fn every_image_size_matches_the_reference() {
    let sizes = [[9, 1, 1], [9, 3, 5], [9, 4, 4], [3, 7, 7], [3, 8, 8], [1, 9, 17], [1, 16, 16], [1, 33, 8]];
    for (i, [n, h, w]) in sizes.into_iter().enumerate() {
        let geometry = if i % 3 == 2 { UNEVEN } else { SAME };
        if geometry.output_size(h, w).is_some() {
            check_bf16(&forward(geometry, 7 - i % 8, [n, h, w, 40], 72), i as u64);
            check_bf16(&backward(geometry, i % 2 == 1, [n, h, w, 72], 40), i as u64);
        }
        check_bf16(&forward(POINTWISE, i % 8, [n, h, w, 72], 40), i as u64);
    }
}

#[test]
fn strides_match_the_reference() {
    for (i, geometry) in [HALVING, HALVING_RIGHT_BOTTOM].into_iter().enumerate() {
        for (j, [n, h, w]) in [[1, 8, 8], [3, 7, 9], [2, 16, 6], [1, 3, 2]].into_iter().enumerate() {
            check_bf16(&forward(geometry, 2 * i + j, [n, h, w, 40], 72), j as u64);
            check_bf16(&backward(geometry, j % 2 == 0, [n, h, w, 72], 40), j as u64);
        }
    }
}

#[test]
fn every_epilogue_matches_the_reference() {
    for bits in 0..8 {
        // Staged and direct stores.
        for k in [72, 3] {
            check_bf16(&forward(SAME, bits, [3, 3, 5, 32], k), bits as u64);
        }
    }
}

#[test]
fn linear_layers_match_the_reference() {
    for (i, (rows, inputs, outputs)) in
        [(vec![1], 128, 136), (vec![9], 512, 40), (vec![3, 17], 72, 200), (vec![2, 130], 32, 24)]
            .into_iter()
            .enumerate()
    {
        let with = |channels: usize| [&rows[..], &[channels]].concat();
        let epilogue = Epilogue { bias: true, per_image: i % 2 == 0, residual: i % 2 == 1, scale: 1.0 };
        let mut operands = vec![with(inputs), vec![outputs, inputs], vec![outputs]];
        operands.extend(epilogue.per_image.then(|| vec![rows[0], outputs]));
        operands.extend(epilogue.residual.then(|| with(outputs)));
        check_bf16(&case(Op::Linear(epilogue), operands), i as u64);
        let operands = vec![with(outputs), vec![outputs, inputs], with(inputs)];
        check_bf16(&case(Op::LinearDgrad { residual: true }, operands), i as u64);
    }
}

/// The values that belong to one of several images.
fn image(values: &[f32], index: usize, images: usize) -> &[f32] {
    let len = values.len() / images;
    &values[index * len..][..len]
}

/// Every image of a batch has the bits that it has alone. `of(n)` is the operation on n images, operands `shared` the
/// same for all of them.
fn assert_batch_invariant(of: impl Fn(usize) -> Case, images: usize, shared: &[usize]) {
    let backend = Gpu::new(device(), Precision::Bf16);
    let mut batch = build(&of(images), &backend, false, 10, Precision::Bf16);
    batch.exe.run().unwrap();
    let together = batch.exe.read_f64(batch.outputs[0]).unwrap();
    for index in [0, images - 1] {
        let mut alone = build(&of(1), &backend, false, 11, Precision::Bf16);
        for (i, (&of_batch, &of_one)) in batch.operands.iter().zip(&alone.operands).enumerate() {
            let mut data = vec![0.0; batch.exe.plan().graph().shape(of_batch).numel()];
            batch.exe.read_f32(of_batch, &mut data).unwrap();
            let mine = if shared.contains(&i) { &data } else { image(&data, index, images) };
            alone.exe.write_f32(of_one, mine).unwrap();
        }
        alone.exe.run().unwrap();
        let expected = alone.exe.read_f64(alone.outputs[0]).unwrap();
        let actual = &together[index * expected.len()..][..expected.len()];
        assert!(actual.iter().zip(&expected).all(|(a, e)| a.to_bits() == e.to_bits()), "{}", of(images).id);
        assert!(expected.iter().any(|v| v.abs() > 0.1));
    }
}

#[test]
fn an_image_of_five_does_not_depend_on_its_batch() {
    for (geometry, [h, w], c, k) in [(SAME, [8, 8], 136, 72), (SAME, [4, 4], 72, 128), (HALVING, [9, 7], 40, 40)] {
        assert_batch_invariant(|n| forward(geometry, 7, [n, h, w, c], k), 5, &[1, 2]);
        assert_batch_invariant(|n| backward(geometry, true, [n, h, w, k], c), 5, &[1]);
    }
}
