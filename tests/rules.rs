//! The cases that every backend must pass, and the rules that judge it, are themselves as they should be.

mod common;

use std::collections::HashSet;

use common::optimizer::compare_optimizer;
use common::tolerance::{bf16_rule, f32_rule, judge};
use common::{build, cases, compare_all};
use half::bf16;
use warpdiff::backend::Precision;
use warpdiff::compare::rule::Errors;
use warpdiff::graph::{DType, cost};
use warpdiff::reference::Reference;

#[test]
fn every_case_has_its_own_name_and_is_small() {
    let cases = cases::all();
    let mut ids = HashSet::new();
    for (case, gradients) in &cases {
        assert!(ids.insert(case.id.as_str()), "{} is there twice", case.id);
        assert_eq!(case.family(), case.op.name(), "{}", case.id);
        let built = build(case, &Reference::default(), *gradients, 1, Precision::F32);
        let flops = cost::total_flops(built.exe.plan().graph());
        assert!(flops < 120_000_000, "{}: {flops}", case.id);
    }
    let families: HashSet<&str> = cases.iter().map(|(c, _)| c.family()).collect();
    assert_eq!(families.len(), 37, "{families:?}");
}

/// The rule of bf16 kernels can be applied to every case.
#[test]
fn the_rounding_reference_passes_every_case() {
    let rounding = Reference::new(Precision::Bf16);
    compare_all(&rounding);
    compare_optimizer(&rounding).unwrap();
}

/// Numbers without a pattern, and the same rounded to bf16.
fn results(n: usize) -> (Vec<f64>, Vec<f64>) {
    let exact: Vec<f64> = (0..n).map(|i| (1.0 + 12.9898 * i as f64).sin()).collect();
    let rounded = exact.iter().map(|v| bf16::from_f64(*v).to_f64()).collect();
    (exact, rounded)
}

/// Errors `factor` times those of `rounded`.
fn scaled(exact: &[f64], rounded: &[f64], factor: f64) -> Vec<f64> {
    exact.iter().zip(rounded).map(|(e, r)| e + factor * (r - e)).collect()
}

#[test]
fn twice_the_error_of_the_rounding_reference_passes_and_more_fails() {
    let (exact, rounded) = results(999);
    for stored in [DType::Act, DType::F32] {
        let rule = |actual: &[f64]| bf16_rule(stored, false, actual, &exact, &rounded);
        rule(&rounded).unwrap();
        rule(&scaled(&exact, &rounded, 1.99)).unwrap();
        rule(&scaled(&exact, &rounded, -1.99)).unwrap();
        rule(&scaled(&exact, &rounded, 2.01)).unwrap_err();
        rule(&scaled(&exact, &rounded, -3.0)).unwrap_err();
    }
}

#[test]
fn one_bad_element_fails_by_its_own_error() {
    let (exact, rounded) = results(999);
    let yardstick = Errors::between(&rounded, &exact);
    for (at, passes) in [(1.9 * yardstick.worst, true), (2.1 * yardstick.worst, false)] {
        let mut actual = exact.clone();
        actual[998] += at;
        // The largest magnitude is all but 1, and one element does not move the norm.
        assert_eq!(bf16_rule(DType::Act, false, &actual, &exact, &rounded).is_ok(), passes);
    }
}

#[test]
fn many_small_errors_fail_by_the_norm() {
    let (exact, rounded) = results(999);
    let yardstick = Errors::between(&rounded, &exact);
    let shift = 0.9 * yardstick.worst;
    let actual: Vec<f64> = exact.iter().map(|e| e + 2.0 * shift).collect();
    let errors = Errors::between(&actual, &exact);
    assert!(errors.worst < 2.0 * yardstick.worst && errors.norm > 2.0 * yardstick.norm, "{errors:?}");
    bf16_rule(DType::Act, false, &actual, &exact, &rounded).unwrap_err();
}

#[test]
fn results_that_need_no_rounding_may_be_off_by_half_a_unit_of_the_largest() {
    let exact = [0.5, -1.0, 0.25, 0.75];
    let rule = |stored, gradient, error: f64| {
        let actual = [exact[0] + error, exact[1], exact[2], exact[3]];
        bf16_rule(stored, gradient, &actual, &exact, &exact).is_ok()
    };
    assert!(rule(DType::Act, false, 2f64.powi(-9)));
    assert!(!rule(DType::Act, false, 2f64.powi(-9) * 1.01));
    // One element may; all together may not.
    let all: Vec<f64> = exact.iter().map(|e| e + 2f64.powi(-9)).collect();
    bf16_rule(DType::Act, false, &all, &exact, &exact).unwrap_err();
    // What is stored in f32 gets the tolerance of f32.
    for (gradient, error, passes) in
        [(false, 0.9e-5, true), (false, 1.3e-5, false), (true, 0.9e-4, true), (true, 1.3e-4, false)]
    {
        assert_eq!(rule(DType::F32, gradient, error), passes, "{gradient} {error}");
    }
}

#[test]
fn f32_kernels_are_held_to_the_worst_element_and_the_norm() {
    let (exact, _) = results(999);
    let off = |count: usize, error: f64| -> Vec<f64> {
        exact.iter().enumerate().map(|(i, e)| e + if i < count { error } else { 0.0 }).collect()
    };
    f32_rule(false, &off(1, 0.9e-5), &exact).unwrap();
    f32_rule(false, &off(1, 1.1e-5), &exact).unwrap_err();
    f32_rule(false, &off(999, 0.9e-5), &exact).unwrap_err();
    f32_rule(true, &off(1, 0.9e-4), &exact).unwrap();
    f32_rule(true, &off(1, 1.1e-4), &exact).unwrap_err();
}

#[test]
fn bytes_may_be_off_by_one_level_in_few_elements() {
    let exact: Vec<f64> = (0..4000).map(|i| f64::from(i % 256)).collect();
    let off = |count: usize, by: f64| {
        let actual: Vec<f64> = exact.iter().enumerate().map(|(i, e)| e + if i < count { by } else { 0.0 }).collect();
        judge(DType::U8, false, &actual, &exact, None).is_ok()
            && bf16_rule(DType::U8, false, &actual, &exact, &exact).is_ok()
    };
    // An error of 1e-5 in [-1, 1] is 1/784 of a level, to either side: 10 of 4000 elements, and one.
    assert!(off(0, 0.0) && off(1, -1.0) && off(11, 1.0));
    assert!(!off(12, 1.0) && !off(1, 2.0) && !off(1, f64::NAN));
}

#[test]
fn what_is_not_a_number_fails() {
    let (exact, rounded) = results(9);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for at in [0, 8] {
            let mut actual = rounded.clone();
            actual[at] = bad;
            for stored in [DType::Act, DType::F32] {
                bf16_rule(stored, true, &actual, &exact, &rounded).unwrap_err();
                // A yardstick that is not finite would let anything pass.
                bf16_rule(stored, true, &rounded, &exact, &actual).unwrap_err();
            }
            f32_rule(true, &actual, &exact).unwrap_err();
        }
    }
}
