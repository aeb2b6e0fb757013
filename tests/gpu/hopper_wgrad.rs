//! Weight gradients on Hopper's kernels.

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::{ConvGeometry, Op};

use crate::common::gpu::{check_hopper, devices};
use crate::common::{Case, Operand, build};

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) };
const HALVING_RIGHT_BOTTOM: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };
const POINTWISE_HALVING: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 2, padding: (0, 0, 0, 0) };

fn gradient(geometry: ConvGeometry, bias: bool, [n, h, w, c]: [usize; 4], k: usize) -> Case {
    let (oh, ow) = geometry.output_size(h, w).unwrap();
    let op = Op::ConvWgrad { geometry, bias };
    let operands = vec![Operand::Random(vec![n, oh, ow, k]), Operand::Random(vec![n, h, w, c])];
    Case { id: format!("weight gradient/{n}x{h}x{w}x{c}->{k}/{op:?}"), op, operands }
}

fn linear(bias: bool, rows: &[usize], c: usize, k: usize) -> Case {
    let with = |channels: usize| Operand::Random([rows, &[channels]].concat());
    let op = Op::LinearWgrad { bias };
    Case { id: format!("weight gradient/{rows:?}x{c}->{k}/{op:?}"), op, operands: vec![with(k), with(c)] }
}

/// Ragged tiles of rows and channels: less than one, one and a little more than one.
#[test]
fn every_channel_count_matches_the_reference() {
    for (i, (c, k)) in [(32, 136), (40, 128), (72, 40), (128, 32), (136, 72)].into_iter().enumerate() {
        check_hopper(&gradient(SAME, i % 2 == 0, [1, 3, 5, c], k), i as u64);
        check_hopper(&gradient(POINTWISE, i % 2 == 1, [3, 4, 4, c], k), i as u64);
    }
}

/// Patches of every kind: one pixel, images that fill none, one or several, and such that run over the edges.
#[test]
fn every_image_size_matches_the_reference() {
    let sizes = [(9, 1, 1), (1, 3, 5), (9, 4, 4), (3, 7, 7), (3, 8, 8), (1, 9, 17), (1, 16, 16)];
    for (i, (n, h, w)) in sizes.into_iter().enumerate() {
        check_hopper(&gradient(SAME, true, [n, h, w, 40], 32), i as u64);
    }
}

/// With stride 2 each tap reads one of four views of x; small images leave some of them without pixels.
#[test]
fn strided_layers_match_the_reference() {
    for (i, geometry) in [HALVING, HALVING_RIGHT_BOTTOM, POINTWISE_HALVING].into_iter().enumerate() {
        for (n, h, w) in [(3, 2, 2), (1, 7, 10), (2, 16, 16)] {
            check_hopper(&gradient(geometry, i == 0, [n, h, w, 32], 40), i as u64);
        }
    }
    check_hopper(&gradient(HALVING, true, [3, 1, 1, 32], 40), 3);
    check_hopper(&gradient(HALVING, true, [3, 1, 6, 32], 40), 4);
}

#[test]
fn linear_layers_match_the_reference() {
    check_hopper(&linear(true, &[1], 32, 136), 1);
    check_hopper(&linear(true, &[9], 512, 128), 2);
    check_hopper(&linear(false, &[3, 49], 72, 40), 3);
}

/// Splits of several patches, the last one shorter; several row tiles.
#[test]
fn long_depths_match_the_reference() {
    check_hopper(&gradient(SAME, true, [29, 8, 8, 32], 136), 1);
    check_hopper(&gradient(POINTWISE, true, [2, 32, 32, 72], 32), 2);
}

/// The same bits under every order of threads and asynchronous work, and again.
#[test]
fn sums_have_one_order() {
    let case = gradient(SAME, true, [3, 8, 8, 72], 40);
    let mut all = Vec::new();
    for device in devices() {
        let backend = Gpu::new(device, Precision::Bf16);
        let mut built = build(&case, &backend, false, 5, Precision::Bf16);
        for _ in 0..2 {
            built.exe.run().unwrap();
            let values = built.outputs.iter().map(|&v| built.exe.read_f64(v).unwrap());
            all.push(values.flatten().map(f64::to_bits).collect::<Vec<u64>>());
        }
    }
    assert!(all.iter().all(|bits| *bits == all[0]));
}
