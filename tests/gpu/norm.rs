//! Group normalisation: fused and split, with and without vector accesses, and far from zero.

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::{GroupNorm, Op};

use crate::common::Operand::{Random, Values};
use crate::common::gpu::{check, check_families, device};
use crate::common::{Case, build};

fn norm_case(dims: [usize; 4], groups: usize, silu: bool, modulated: bool) -> Case {
    let (n, c) = (dims[0], dims[3]);
    let norm = GroupNorm { groups, eps: 1e-5, silu, modulated };
    let mut operands = vec![Random(dims.to_vec()), Random(vec![c]), Random(vec![c])];
    if modulated {
        operands.push(Random(vec![n, 2 * c]));
    }
    Case { id: format!("group_norm/{dims:?} {norm:?}"), op: Op::GroupNorm(norm), operands }
}

/// Different numbers at every position, between 0 and 1.
fn spread(n: usize, salt: usize) -> impl Iterator<Item = f32> {
    (0..n).map(move |i| ((i + salt) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40).map(|u| u as f32 / 16_777_216.0)
}

#[test]
fn norms_match_the_reference() {
    check_families(&["group_norm"], 40);
}

/// Runs of every length within a vector (4, 12, 1 and 40 channels a group), and slices that end before the block does.
#[test]
fn groups_of_any_width_match_the_reference() {
    for case in [
        norm_case([1, 1, 1, 8], 4, false, false),
        norm_case([2, 9, 7, 128], 32, true, true),
        norm_case([1, 2, 3, 96], 8, true, false),
        norm_case([2, 3, 3, 16], 16, true, false),
        norm_case([1, 4, 5, 80], 2, false, true),
        norm_case([1, 4, 4, 1], 1, true, true),
    ] {
        check(&case, Precision::F32, true, 20);
        check(&case, Precision::Bf16, true, 20);
    }
}

/// Images whose slices do not fit on chip, and groups with more columns than a block has threads.
#[test]
fn split_norms_match_the_reference() {
    for case in [
        norm_case([1, 67, 65, 8], 2, true, true),
        norm_case([2, 19, 13, 264], 1, true, false),
        norm_case([2, 3, 1, 518], 2, false, true),
        norm_case([1, 130, 85, 3], 1, true, false),
    ] {
        check(&case, Precision::F32, true, 40);
        check(&case, Precision::Bf16, true, 40);
    }
}

/// Means of 50 and 500 at a deviation of 0.1: sums of squares would have no correct digit left, and at 500 even a mean
/// rounded to f32 is off by more than the tolerance. The backward pass has only the rounded mean.
#[test]
fn a_mean_far_from_zero_costs_no_accuracy() {
    for (mean, gradients) in [(50.0, true), (500.0, false)] {
        for dims in [[2, 9, 9, 24], [1, 67, 65, 8]] {
            let mut case = norm_case(dims, 4, false, false);
            let x = spread(dims.iter().product(), 0).map(|u| mean + 0.35 * (u - 0.5));
            case.operands[0] = Values(dims.to_vec(), x.collect());
            check(&case, Precision::F32, gradients, 3);
        }
    }
}

/// Image 1 of three and the same image alone: the same bits, forward and backward.
#[test]
fn an_image_does_not_depend_on_its_batch() {
    let groups = 4;
    for [h, w, c] in [[7, 5, 24], [67, 65, 8]] {
        let pixels = h * w * c;
        let results = |first: usize, batch: usize| -> Vec<Vec<f64>> {
            let images = |len: usize, salt: usize| -> Vec<f32> {
                spread(3 * len, salt).skip(first * len).take(batch * len).map(|u| 2.0 * u - 1.0).collect()
            };
            let mut case = norm_case([batch, h, w, c], groups, true, true);
            case.operands[0] = Values(vec![batch, h, w, c], images(pixels, 1));
            case.operands[3] = Values(vec![batch, 2 * c], images(2 * c, 2));
            // Gamma and beta: the same numbers in every batch.
            case.operands[1] = Values(vec![c], spread(c, 3).collect());
            case.operands[2] = Values(vec![c], spread(c, 4).collect());
            let sim = Gpu::new(device(), Precision::Bf16);
            let mut built = build(&case, &sim, true, 3, Precision::Bf16);
            built.exe.write_f32(built.dy.unwrap(), &images(pixels, 5)).unwrap();
            built.exe.run().unwrap();
            [
                (built.outputs[0], pixels),
                (built.outputs[1], groups * 2),
                (built.gradients[0].unwrap(), pixels),
                (built.gradients[3].unwrap(), 2 * c),
            ]
            .map(|(v, len)| built.exe.read_f64(v).unwrap()[(1 - first) * len..][..len].to_vec())
            .into()
        };
        assert_eq!(results(0, 3), results(1, 1), "{h}x{w}x{c}");
    }
}
