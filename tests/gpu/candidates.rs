//! Every candidate that a tuning table may name computes the same bits as the cost model's choice, which the other tests
//! hold to the reference. Toy shapes never choose the largest tiles; here they run.

use std::collections::BTreeSet;

use warpdiff::backend::Precision;
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::choice::{Product, Tuning};
use warpdiff::graph::{ConvGeometry, Epilogue, Op};

use crate::common::gpu::{check_hopper, device};
use crate::common::{Case, Operand, build};

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const HALVING: ConvGeometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) };

fn case(op: Op, operands: [Vec<usize>; 2]) -> Case {
    Case {
        id: format!("candidates/{operands:?}/{op:?}"),
        op,
        operands: operands.into_iter().map(Operand::Random).collect(),
    }
}

/// Runs all alternatives of a case; returns the tiles of those that computed the bits of the first.
fn tiles(case: &Case, seed: u64) -> BTreeSet<String> {
    check_hopper(case, seed);
    let gpu = Gpu::new(device(), Precision::Bf16);
    let bits = |gpu: &Gpu| {
        let mut built = build(case, gpu, false, seed, Precision::Bf16);
        built.exe.run().unwrap();
        let values = built.exe.read_f64(built.outputs[0]).unwrap();
        values.into_iter().map(f64::to_bits).collect::<Vec<u64>>()
    };
    let expected = bits(&gpu);
    let limits = gpu.driver().limits();
    let built = build(case, &gpu, false, seed, Precision::Bf16);
    let graph = built.exe.plan().graph();
    let product = graph.nodes().iter().find_map(|node| Product::of(graph, node, Precision::Bf16)).unwrap();
    let all = product.alternatives(limits);
    let mut seen = BTreeSet::new();
    for candidate in &all {
        let table = Tuning::of(&product, &candidate.name, limits).unwrap();
        assert_eq!(product.plan(limits, Some(&table)).config(), candidate.name);
        // One patch, way and ring of each tile and boxes is enough for a simulator.
        let parts: Vec<&str> = candidate.name.split('.').take(2).collect();
        let kind = match &product {
            Product::Image(_) => parts.join("."),
            Product::Pixel(_) => parts[0].to_string(),
        };
        let kind = if candidate.name.contains(".split.") { format!("{kind}.split") } else { kind };
        if seen.insert(kind) {
            assert!(bits(&gpu.clone().with_tuning(table)) == expected, "{}: {} differs", case.id, candidate.name);
        }
    }
    seen
}

fn expect(case: &Case, seed: u64, wanted: &[&str]) {
    let seen = tiles(case, seed);
    if !device().limits().shifted_operands {
        return;
    }
    for tile in wanted {
        assert!(seen.contains(*tile), "{}: no {tile} among {seen:?}", case.id);
    }
}

#[test]
fn convolutions_have_the_same_bits_on_every_tile() {
    let forward = |geometry: ConvGeometry, [n, h, w, c]: [usize; 4], k: usize| {
        case(Op::Conv2d(geometry, Epilogue::bias(false)), [vec![n, h, w, c], vec![k, 3, 3, c]])
    };
    let large = ["128x128.halo", "128x128.taps", "128x64.halo", "64x64.halo", "64x64.taps"];
    expect(&forward(SAME, [1, 9, 17, 72], 136), 1, &large);
    expect(&forward(HALVING, [2, 16, 14, 40], 72), 2, &["128x128.taps", "64x64.taps"]);
    // Few pixels and a long depth: segments as items of their own, or one after the other.
    expect(&forward(SAME, [3, 8, 8, 128], 72), 3, &["128x64.halo", "128x64.halo.split", "128x128.halo.split"]);
    let dgrad = Op::ConvDgrad { geometry: SAME, input_size: (9, 17), residual: false };
    expect(&case(dgrad, [vec![1, 9, 17, 136], vec![136, 3, 3, 72]]), 4, &["128x128.halo", "64x64.taps"]);
}

#[test]
fn weight_gradients_have_the_same_bits_on_every_tile() {
    let wgrad = Op::ConvWgrad { geometry: SAME, bias: false };
    expect(&case(wgrad, [vec![2, 9, 10, 136], vec![2, 9, 10, 136]]), 1, &["128", "64"]);
}
