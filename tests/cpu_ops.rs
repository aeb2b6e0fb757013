//! Every operation of the CPU backend against the f64 reference, forward and backward.

mod common;

use common::{Case, build, differentiable, errors, forward_only};
use warpdiff::backend::cpu::Cpu;
use warpdiff::reference::Reference;

/// The rule of f32 kernels: 1e-5 of the norm, and no element off by more than 1e-5 of the largest.
const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;

fn compare(case: &Case, cpu: &Cpu, gradients: bool, seed: u64) {
    let mut actual = build(case, cpu, gradients, seed);
    let mut expected = build(case, &Reference::default(), gradients, seed);
    actual.exe.run().unwrap();
    expected.exe.run().unwrap();
    let forward = actual.outputs.iter().zip(&expected.outputs).map(|(a, e)| (*a, *e, FORWARD));
    let backward = actual.gradients.iter().zip(&expected.gradients);
    let backward = backward.filter_map(|(a, e)| Some(((*a)?, (*e)?, GRADIENT)));
    let mut compared = 0;
    for (a, e, tolerance) in forward.chain(backward) {
        let (worst, total) = errors(&actual.exe.read_f64(a), &expected.exe.read_f64(e));
        assert!(
            worst <= tolerance && total <= tolerance,
            "{}: result {compared}: worst element {worst:e}, norm {total:e}",
            case.name
        );
        compared += 1;
    }
    assert!(compared > usize::from(gradients), "{}: {compared} results compared", case.name);
}

#[test]
fn differentiable_operations_match_the_reference() {
    let cpu = Cpu::new(Some(2)).unwrap();
    for scale in [1, 4] {
        for (i, case) in differentiable(scale).iter().enumerate() {
            compare(case, &cpu, true, 100 * scale as u64 + i as u64);
        }
    }
}

#[test]
fn forward_only_operations_match_the_reference() {
    let cpu = Cpu::new(Some(2)).unwrap();
    for (i, case) in forward_only().iter().enumerate() {
        compare(case, &cpu, false, i as u64);
    }
}

/// The kernels that split work by rows or queries, at a size where they do.
#[test]
fn large_norms_and_attention_match_the_reference() {
    use common::Operand::Random;
    use warpdiff::graph::{GroupNorm, Op};
    let cpu = Cpu::new(Some(2)).unwrap();
    let norm = GroupNorm { groups: 8, eps: 1e-6, silu: true, modulated: true };
    let (n, h, w, c) = (2, 19, 33, 64);
    let cases = [
        Case {
            name: "large group norm".into(),
            op: Op::GroupNorm(norm),
            operands: vec![Random(vec![n, h, w, c]), Random(vec![c]), Random(vec![c]), Random(vec![n, 2 * c])],
        },
        Case {
            name: "attention over 300 tokens".into(),
            op: Op::Attention { heads: 2 },
            operands: vec![Random(vec![2, 15, 20, 3 * 48])],
        },
    ];
    for case in &cases {
        compare(case, &cpu, true, 5);
    }
}
