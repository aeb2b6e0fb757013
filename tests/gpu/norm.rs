//! Group normalisation: fused and split, with and without vector accesses, and far from zero.

use std::sync::Arc;

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Precision};
use warpdiff::graph::{GroupNorm, Op};
use warpdiff::reference::Reference;

use crate::common::Operand::Random;
use crate::common::gpu::check_both;
use crate::common::{Case, build, differentiable, errors};

fn norm_case(dims: [usize; 4], groups: usize, silu: bool, modulated: bool) -> Case {
    let (n, c) = (dims[0], dims[3]);
    let norm = GroupNorm { groups, eps: 1e-5, silu, modulated };
    let mut operands = vec![Random(dims.to_vec()), Random(vec![c]), Random(vec![c])];
    if modulated {
        operands.push(Random(vec![n, 2 * c]));
    }
    Case { name: format!("group norm of {dims:?}, {norm:?}"), op: Op::GroupNorm(norm), operands }
}

#[test]
fn norms_of_the_shared_cases_match_the_reference() {
    let cases: Vec<Case> =
        [1, 2].into_iter().flat_map(differentiable).filter(|c| matches!(c.op, Op::GroupNorm(_))).collect();
    assert_eq!(cases.len(), 8);
    for (i, case) in cases.iter().enumerate() {
        check_both(case, true, i as u64);
    }
}

/// Odd numbers of pixels and 1, 3, 5, 4 and 12 channels a group, so that runs of a vector have every length.
#[test]
fn fused_norms_match_the_reference() {
    let cases = [
        norm_case([1, 1, 1, 8], 4, false, false),
        norm_case([1, 3, 5, 15], 5, true, false),
        norm_case([3, 7, 5, 24], 8, true, true),
        norm_case([2, 5, 5, 40], 8, false, true),
        norm_case([2, 9, 7, 128], 32, true, true),
        norm_case([1, 2, 3, 96], 8, true, false),
        norm_case([2, 3, 3, 16], 16, true, false),
        norm_case([1, 4, 4, 1], 1, true, true),
    ];
    for (i, case) in cases.iter().enumerate() {
        check_both(case, true, 20 + i as u64);
    }
}

/// Images whose slices do not fit on chip, and groups with more columns than a block has threads.
#[test]
fn split_norms_match_the_reference() {
    let cases = [
        norm_case([1, 67, 65, 8], 2, true, true),
        norm_case([2, 19, 13, 264], 1, true, false),
        norm_case([2, 3, 1, 518], 2, false, true),
        norm_case([1, 130, 85, 3], 1, true, false),
    ];
    for (i, case) in cases.iter().enumerate() {
        check_both(case, true, 40 + i as u64);
    }
}

/// Means of 50 and 500 at a deviation of 0.1: sums of squares would have no correct digit left, and at 500 even a mean
/// rounded to f32 is off by more than the tolerance. The backward pass has only the rounded mean.
#[test]
fn a_mean_far_from_zero_costs_no_accuracy() {
    for (dims, mean) in [([2, 9, 9, 24], 50.0), ([1, 67, 65, 8], 50.0), ([2, 9, 9, 24], 500.0), ([1, 67, 65, 8], 500.0)]
    {
        let case = norm_case(dims, 4, false, false);
        let gradients = mean < 100.0;
        let run = |backend: &dyn Backend| -> Vec<Vec<f64>> {
            let mut built = build(&case, backend, gradients, 3);
            let x: Vec<f32> = (0..dims.iter().product::<usize>())
                .map(|i| {
                    let uniform = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                    mean + 0.35 * (uniform as f32 / (1 << 24) as f32 - 0.5)
                })
                .collect();
            built.exe.write_f32(built.operands[0], &x).unwrap();
            built.exe.run().unwrap();
            let gradients = built.gradients.iter().flatten();
            built.outputs.iter().chain(gradients).map(|&v| built.exe.read_f64(v)).collect()
        };
        let expected = run(&Reference::default());
        let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32);
        let actual = run(&sim);
        assert_eq!(actual.len(), if gradients { 5 } else { 2 });
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            let (worst, total) = errors(a, e);
            let tolerance = if i < 2 { 1e-5 } else { 1e-4 };
            assert!(worst <= tolerance && total <= tolerance, "{dims:?} at {mean}, result {i}: {worst:e}, {total:e}");
        }
    }
}

/// Image 1 of three and the same image alone: the same bits, forward and backward.
#[test]
fn an_image_does_not_depend_on_its_batch() {
    for dims in [[3, 7, 5, 24], [3, 67, 65, 8]] {
        let [n, h, w, c] = dims;
        let groups = 4;
        let results = |batch: usize, image: usize| -> Vec<Vec<f64>> {
            let case = norm_case([batch, h, w, c], groups, true, true);
            let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::Bf16);
            let mut built = build(&case, &sim, true, 3);
            let full = |len: usize, salt: u64| -> Vec<f32> {
                (0..n * len)
                    .map(|i| ((i as u64 + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as f32 / 64.0)
                    .collect()
            };
            let own = |data: Vec<f32>, len: usize| if batch == 1 { data[image * len..][..len].to_vec() } else { data };
            let pixels = h * w * c;
            built.exe.write_f32(built.operands[0], &own(full(pixels, 1), pixels)).unwrap();
            built.exe.write_f32(built.operands[1], &full(c, 2)[..c]).unwrap();
            built.exe.write_f32(built.operands[2], &full(c, 3)[..c]).unwrap();
            built.exe.write_f32(built.operands[3], &own(full(2 * c, 4), 2 * c)).unwrap();
            built.exe.write_f32(built.dy.unwrap(), &own(full(pixels, 5), pixels)).unwrap();
            built.exe.run().unwrap();
            let per_image = [
                (built.outputs[0], pixels),
                (built.outputs[1], groups * 2),
                (built.gradients[0].unwrap(), pixels),
                (built.gradients[3].unwrap(), 2 * c),
            ];
            let at = if batch == 1 { 0 } else { image };
            per_image.map(|(v, len)| built.exe.read_f64(v)[at * len..][..len].to_vec()).into()
        };
        assert_eq!(results(n, 1), results(1, 1), "{dims:?}");
    }
}
