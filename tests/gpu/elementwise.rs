//! Operations that map, move or add elements.

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::graph::Op;

use crate::common::Operand::{Integers, Random, Values};
use crate::common::gpu::{check, check_families, device};
use crate::common::{Case, build};

#[test]
fn maps_match_the_reference() {
    check_families(&["silu", "mish", "gelu", "relu", "add", "affine", "to_act", "repeat_batch", "constant"], 60);
}

#[test]
fn values_of_an_image_match_the_reference() {
    check_families(&["add_per_image", "divide_by_time", "dropout"], 24);
}

#[test]
fn resampling_matches_the_reference() {
    check_families(&["upsample2x", "avg_pool2x", "fir_upsample2x", "fir_downsample2x"], 40);
}

#[test]
fn channels_side_by_side_match_the_reference() {
    check_families(&["concat", "slice"], 12);
}

/// Whole vectors from an aligned start, from one that is not, and ranges that reach either end.
#[test]
fn slices_match_the_reference_whatever_their_start() {
    for (c, start, len) in [(24, 16, 8), (24, 4, 12), (24, 3, 8), (32, 8, 16), (15, 0, 15), (7, 6, 1)] {
        let id = format!("slice/{start}..{} of {c}", start + len);
        let case = Case { id, op: Op::Slice { start, len }, operands: vec![Random(vec![2, 3, 5, c])] };
        check(&case, Precision::F32, false, 7);
        check(&case, Precision::Bf16, false, 7);
    }
}

/// Enough pixels for several chunks, and channels that fill several slices.
#[test]
fn sums_over_pixels_match_the_reference() {
    check_families(&["sum_pixels"], 6);
    for dims in [[1, 67, 65, 8], [2, 37, 113, 3], [2, 9, 5, 136]] {
        let case =
            Case { id: format!("sum_pixels/{dims:?}"), op: Op::SumPixels, operands: vec![Random(dims.to_vec())] };
        check(&case, Precision::F32, false, 8);
        check(&case, Precision::Bf16, false, 8);
    }
}

/// With more elements than one vector a thread, and none beyond the last whole vector; and NaN is never lost.
#[test]
fn the_largest_magnitude_matches_the_reference() {
    check_families(&["abs_max"], 6);
    for dims in [[1, 64, 64, 40], [3, 51, 47, 33]] {
        let case = Case { id: format!("abs_max/{dims:?}"), op: Op::AbsMax, operands: vec![Random(dims.to_vec())] };
        check(&case, Precision::F32, false, 9);
        check(&case, Precision::Bf16, false, 9);
    }
    for at in [0, 700, 1001] {
        let mut values = vec![-1.0; 1002];
        values[at] = f32::NAN;
        let case = Case { id: "abs_max/nan".into(), op: Op::AbsMax, operands: vec![Values(vec![1002], values)] };
        for precision in [Precision::F32, Precision::Bf16] {
            let mut built = build(&case, &Gpu::new(device(), precision), false, 1, precision);
            built.exe.run().unwrap();
            assert!(built.exe.read_f64(built.outputs[0]).unwrap()[0].is_nan(), "{at}");
        }
    }
}

/// The mask of example 12 is the same alone and among others, and half of the elements are dropped.
#[test]
fn a_dropout_mask_belongs_to_its_example() {
    let mask = |examples: Vec<u32>| {
        let (n, elements) = (examples.len(), 5 * 3 * 7);
        let ones = Values(vec![n, 5, 3, 7], vec![1.0; n * elements]);
        let operands = vec![ones, Integers(examples), Integers(vec![1, 2])];
        let case = Case { id: "dropout/mask".into(), op: Op::Dropout { p: 0.5, layer: 0 }, operands };
        let sim = Gpu::new(device(), Precision::F32);
        let mut built = build(&case, &sim, false, 1, Precision::F32);
        built.exe.run().unwrap();
        built.exe.read_f64(built.outputs[0]).unwrap().chunks(elements).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    let (alone, among) = (mask(vec![12]), mask(vec![3, 12, 5]));
    assert_eq!(alone[0], among[1]);
    assert_ne!(among[0], among[1]);
    let count = |value: f64| among.iter().flatten().filter(|&&v| v == value).count();
    assert_eq!(count(2.0) + count(0.0), 315);
    // Five standard deviations of a binomial distribution.
    assert!(count(2.0).abs_diff(157) < 45, "{} of 315 kept", count(2.0));
}
