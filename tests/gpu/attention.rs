//! Self-attention and its gradient.

use rand::SeedableRng;
use rand::rngs::StdRng;
use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::Op;

use crate::common::cases::uniform;
use crate::common::gpu::{check, check_families, check_gradients_before_hopper, check_hopper_gradients, device};
use crate::common::{Case, Operand, results};

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Queries and keys uniform in -`spread`..`spread`, values in -1..1.
fn case(heads: usize, width: usize, images: usize, (h, w): (usize, usize), spread: f32) -> Case {
    let channels = heads * width;
    let mut data = uniform(&mut StdRng::seed_from_u64(width as u64), images * h * w * 3 * channels, -1.0..1.0);
    for token in data.chunks_exact_mut(3 * channels) {
        token[..2 * channels].iter_mut().for_each(|v| *v *= spread);
    }
    let id = format!("attention/{heads}x{width}/{}-tokens-{images}/{spread}", h * w);
    Case { id, op: Op::Attention { heads }, operands: vec![Operand::Values(vec![images, h, w, 3 * channels], data)] }
}

fn check_both(case: &Case, gradients: bool) {
    for precision in PRECISIONS {
        check(case, precision, gradients, 3);
    }
}

#[test]
fn shared_cases_match_the_reference() {
    check_families(&["attention"], 16);
}

/// Every class of kernels, rows that are no multiple of 16 bytes, tokens that fill no tile.
#[test]
fn odd_head_sizes_match_the_reference() {
    let sizes = [
        (2, 1, 1, (1, 2)),
        (1, 3, 2, (1, 17)),
        (3, 7, 1, (5, 13)),
        (2, 8, 1, (1, 130)),
        (1, 16, 2, (1, 5)),
        (3, 21, 1, (1, 17)),
        (2, 40, 1, (5, 13)),
        (3, 64, 1, (8, 8)),
        (1, 65, 1, (1, 33)),
        (1, 129, 1, (1, 40)),
        (1, 257, 1, (1, 18)),
        (2, 260, 1, (3, 11)),
        (1, 511, 1, (1, 3)),
    ];
    for (heads, width, images, size) in sizes {
        check_both(&case(heads, width, images, size, 1.0), true);
    }
}

/// The attention of DDPM on CIFAR-10: one head of 256 channels over 16 x 16 and 4 x 4 pixels.
#[test]
fn one_wide_head_matches_the_reference() {
    check_both(&case(1, 256, 1, (16, 16), 1.0), true);
    check_both(&case(1, 256, 2, (4, 4), 1.0), true);
    check_both(&case(1, 512, 1, (5, 13), 1.0), true);
}

/// Logits of hundreds: the softmax is one-hot but for near ties, and dP - delta cancels.
#[test]
fn saturated_softmax_matches_the_reference() {
    for (heads, width, size) in [(2, 8, (1, 65)), (1, 64, (1, 130)), (1, 256, (5, 13))] {
        for spread in [0.25, 8.0] {
            check_both(&case(heads, width, 1, size, spread), true);
        }
    }
    // f32 scores of thousands are off by 1e-4, so that only bf16 can be held to its limits.
    check(&case(1, 64, 1, (1, 65), 64.0), Precision::Bf16, true, 3);
}

/// Every class of the kernels of Hopper, padded and filled, with tokens that fill no tile, one tile and several; each block
/// with one item and with several. The kernels for chips before it take the same heads there.
#[test]
fn heads_of_hopper_match_the_reference() {
    let sizes = [
        (2, 40, 3, (1, 1)),
        (3, 64, 2, (5, 13)),
        (1, 64, 1, (16, 17)),
        (2, 72, 2, (1, 127)),
        (1, 128, 3, (1, 129)),
        (2, 136, 2, (8, 8)),
        (1, 200, 2, (5, 13)),
        (2, 256, 2, (1, 67)),
        (1, 256, 3, (8, 16)),
    ];
    for (heads, width, images, size) in sizes {
        for spread in [0.05, 1.0, 8.0] {
            let case = case(heads, width, images, size, spread);
            check_hopper_gradients(&case, 3);
            check_gradients_before_hopper(&case, Precision::Bf16, 3);
        }
    }
}

/// The first image alone and among others, whose number changes the launch.
#[test]
fn an_image_does_not_depend_on_its_batch() {
    for (heads, width, images, size) in [(3, 8, 22, (5, 13)), (1, 64, 132, (1, 65)), (1, 260, 66, (3, 11))] {
        let many = case(heads, width, images, size, 2.0);
        let one = case(heads, width, 1, size, 2.0);
        for precision in PRECISIONS {
            let gpu = Gpu::new(device(), precision);
            let run = |case| results(case, &gpu, true, 5, precision);
            for (many, one) in run(&many).iter().zip(run(&one)) {
                let same = many.data.iter().zip(&one.data).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same && many.data.len() == images * one.data.len(), "{width} in {precision}: {}", many.what);
            }
        }
    }
}
