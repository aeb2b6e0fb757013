//! Operations that map, move or add elements.

use std::sync::Arc;

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::graph::{Fir, Op};

use crate::common::Operand::{Integers, Positive, Random};
use crate::common::gpu::check_both;
use crate::common::{Case, build, differentiable, forward_only};

const MAPS: [&str; 15] = [
    "silu",
    "add",
    "affine",
    "to_act",
    "repeat_batch",
    "add_per_image",
    "divide_by_time",
    "sum_pixels",
    "upsample2x",
    "avg_pool2x",
    "fir_upsample2x",
    "fir_downsample2x",
    "concat",
    "slice",
    "dropout",
];

fn case(name: &str, op: Op, operands: Vec<crate::common::Operand>) -> Case {
    Case { name: name.into(), op, operands }
}

#[test]
fn the_shared_cases_match_the_reference() {
    let mapped = |c: &Case| MAPS.contains(&c.op.name());
    let cases: Vec<Case> = [1, 3, 8].into_iter().flat_map(differentiable).filter(mapped).collect();
    assert!(cases.len() >= 24);
    for (i, case) in cases.iter().enumerate() {
        check_both(case, !matches!(case.op, Op::ToAct), i as u64);
    }
    let cases: Vec<Case> = forward_only().into_iter().filter(mapped).collect();
    assert!(cases.len() >= 3);
    for (i, case) in cases.iter().enumerate() {
        check_both(case, false, 90 + i as u64);
    }
}

/// One image or many, one pixel or many, with whole vectors of both types, of one, of neither.
#[test]
fn odd_and_even_shapes_match_the_reference() {
    for (i, dims) in [[1, 1, 1, 1], [3, 5, 3, 15], [2, 3, 7, 24], [1, 9, 5, 128], [5, 1, 3, 4]].into_iter().enumerate()
    {
        let [n, h, w, c] = dims;
        let x = || Random(dims.to_vec());
        let large = || Random(vec![n, 2 * h, 2 * w, c]);
        let taps = [1.0, 3.0, 2.0, 0.5];
        let examples = || Integers((0..n as u32).map(|i| 4_000_000_000 + i).collect());
        let cases = [
            case("silu", Op::Silu, vec![x()]),
            case("add", Op::Add, vec![x(), x()]),
            case("affine", Op::Affine { mul: 2.5, add: -0.75 }, vec![x()]),
            case("add per image", Op::AddPerImage, vec![x(), Random(vec![n, c])]),
            case("divide by time", Op::DivideByTime, vec![x(), Positive(vec![n])]),
            case("upsample", Op::Upsample2x, vec![x()]),
            case("average pool", Op::AvgPool2x, vec![large()]),
            case("fir up", Op::Fir(Fir::up(taps)), vec![x()]),
            case("fir down", Op::Fir(Fir::down(taps)), vec![large()]),
            case("concat", Op::Concat, vec![x(), Random(vec![n, h, w, 8])]),
            case("concat, odd", Op::Concat, vec![Random(vec![n, h, w, 3]), x()]),
            case("dropout", Op::Dropout { p: 0.4, layer: 5 }, vec![x(), examples(), Integers(vec![9, u32::MAX])]),
        ];
        for case in cases {
            let name = format!("{} of {dims:?}", case.name);
            check_both(&Case { name, ..case }, true, 100 + i as u64);
        }
        check_both(&case("repeat batch", Op::RepeatBatch, vec![x()]), false, 110 + i as u64);
        check_both(&case("to act", Op::ToAct, vec![x()]), false, 120 + i as u64);
    }
}

#[test]
fn slices_match_the_reference_whatever_their_start() {
    for (c, start, len) in [(24, 8, 8), (24, 16, 8), (24, 4, 12), (24, 3, 8), (15, 0, 15), (7, 6, 1)] {
        let name = format!("channels {start}..{} of {c}", start + len);
        check_both(&case(&name, Op::Slice { start, len }, vec![Random(vec![2, 3, 5, c])]), false, 7);
    }
}

/// Enough pixels for several chunks, and channels that fill several slices.
#[test]
fn sums_over_large_images_match_the_reference() {
    for (i, dims) in [[1, 67, 65, 8], [2, 37, 113, 3], [2, 9, 5, 136]].into_iter().enumerate() {
        check_both(&case(&format!("sum over {dims:?}"), Op::SumPixels, vec![Random(dims.to_vec())]), false, i as u64);
    }
}

/// The mask of example 12 is the same alone and among others.
#[test]
fn a_dropout_mask_belongs_to_its_example() {
    let mask = |examples: Vec<u32>| {
        let (n, elements) = (examples.len(), 5 * 3 * 7);
        let operands = vec![Random(vec![n, 5, 3, 7]), Integers(examples), Integers(vec![1, 2])];
        let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32);
        let mut built = build(&case("dropout", Op::Dropout { p: 0.5, layer: 0 }, operands), &sim, false, 1);
        built.exe.write_f32(built.operands[0], &vec![1.0; n * elements]).unwrap();
        built.exe.run().unwrap();
        built.exe.read_f64(built.outputs[0]).chunks(elements).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    let (alone, among) = (mask(vec![12]), mask(vec![3, 12, 5]));
    assert_eq!(alone[0], among[1]);
    assert_ne!(among[0], among[1]);
    let kept = among.iter().flatten().filter(|&&v| v == 2.0).count();
    let zeros = among.iter().flatten().filter(|&&v| v == 0.0).count();
    assert_eq!(kept + zeros, 3 * 105);
    assert!((110..206).contains(&kept), "{kept} of 315 kept");
}
