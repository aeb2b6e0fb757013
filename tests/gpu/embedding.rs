//! Embeddings of timesteps and labels.

use std::sync::Arc;

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Precision};
use warpdiff::graph::Op;
use warpdiff::graph::op::TimeEmbedding;
use warpdiff::reference::Reference;

use crate::common::Operand::{Integers, Positive, Random};
use crate::common::gpu::check_both;
use crate::common::{Case, build, errors, forward_only};

#[test]
fn embeddings_of_the_shared_cases_match_the_reference() {
    let embeds = |op: &Op| matches!(op, Op::TimeEmbedding(_) | Op::FourierEmbedding);
    let cases: Vec<Case> = forward_only().into_iter().filter(|c| embeds(&c.op)).collect();
    assert_eq!(cases.len(), 5);
    for (i, case) in cases.iter().enumerate() {
        check_both(case, false, i as u64);
    }
}

/// Repeated, missing and last rows; more indices than a warp has lanes; more columns than a block has threads.
#[test]
fn tables_and_their_gradients_match_the_reference() {
    let many = (0..70).map(|i| i * i % 11).collect();
    for (i, (dims, index)) in
        [(vec![5, 3], vec![4, 0, 4]), (vec![12, 8], many), (vec![3, 300], vec![2]), (vec![1, 1], vec![0; 33])]
            .into_iter()
            .enumerate()
    {
        let name = format!("embedding of {dims:?}");
        check_both(&Case { name, op: Op::Embedding, operands: vec![Random(dims), Integers(index)] }, true, i as u64);
    }
}

/// Timesteps up to 4000 and noise levels over six orders of magnitude, where a float angle is off by 1e-4.
#[test]
fn large_angles_keep_their_accuracy() {
    let times = [0.0, 1.0, 999.0, 3999.0, 4000.0, 1234.567];
    let sigmas = [1e-3, 0.01, 0.5, 1.0, 80.0, 1000.0];
    let embedding = TimeEmbedding { dim: 128, flip_sin_to_cos: true, freq_shift: 0.0 };
    let frequencies: Vec<f32> = (0..40).map(|i| 16.0 * (i as f32 * 0.7).sin()).collect();
    for fourier in [false, true] {
        let op = if fourier { Op::FourierEmbedding } else { Op::TimeEmbedding(embedding) };
        let t: &[f32] = if fourier { &sigmas } else { &times };
        let mut operands = vec![Positive(vec![t.len()])];
        if fourier {
            operands.push(Random(vec![frequencies.len()]));
        }
        let case = Case { name: "large angles".into(), op, operands };
        let run = |backend: &dyn Backend| {
            let mut built = build(&case, backend, false, 1);
            built.exe.write_f32(built.operands[0], t).unwrap();
            if fourier {
                built.exe.write_f32(built.operands[1], &frequencies).unwrap();
            }
            built.exe.run().unwrap();
            built.exe.read_f64(built.outputs[0])
        };
        let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32);
        let (worst, total) = errors(&run(&sim), &run(&Reference::default()));
        assert!(worst < 4e-7 && total < 4e-7, "Fourier {fourier}: {worst:e}, {total:e}");
    }
}
