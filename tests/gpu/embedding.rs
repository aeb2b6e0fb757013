//! Embeddings of timesteps and labels.

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::{Backend, Precision};
use warpdiff::compare::rule::Errors;
use warpdiff::graph::Op;
use warpdiff::graph::op::TimeEmbedding;
use warpdiff::reference::Reference;

use crate::common::Operand::{Integers, Random, Values};
use crate::common::gpu::{check, check_families, device};
use crate::common::{Case, check_rows_of_timesteps, results};

#[test]
fn embeddings_match_the_reference() {
    check_families(&["time_embedding", "fourier_embedding", "embedding"], 10);
}

#[test]
fn timesteps_meet_their_rows() {
    for precision in [Precision::F32, Precision::Bf16] {
        check_rows_of_timesteps(&Gpu::new(device(), precision));
    }
}

/// Repeated, missing and last rows; more indices than a warp has lanes; more columns than a block has threads.
#[test]
fn tables_with_many_indices_and_columns_match_the_reference() {
    let many = (0..70).map(|i| i * i % 11).collect();
    for (dims, index) in [(vec![12, 8], many), (vec![3, 300], vec![2]), (vec![1, 1], vec![0; 33])] {
        let id = format!("embedding/{dims:?}");
        let case = Case { id, op: Op::Embedding, operands: vec![Random(dims), Integers(index)] };
        check(&case, Precision::F32, true, 5);
        check(&case, Precision::Bf16, true, 5);
    }
}

/// Timesteps up to 4000 and noise levels over six orders of magnitude, where a float angle is off by 1e-4.
#[test]
fn large_angles_keep_their_accuracy() {
    let times = Values(vec![6], vec![0.0, 1.0, 999.0, 3999.0, 4000.0, 1234.567]);
    let sigmas = Values(vec![6], vec![1e-3, 0.01, 0.5, 1.0, 80.0, 1000.0]);
    let frequencies = Values(vec![40], (0..40).map(|i| 16.0 * (i as f32 * 0.7).sin()).collect());
    let embedding = TimeEmbedding { dim: 128, flip_sin_to_cos: true, freq_shift: 0.0, scale: 1.0 };
    for (op, operands) in
        [(Op::TimeEmbedding(embedding), vec![times]), (Op::FourierEmbedding, vec![sigmas, frequencies])]
    {
        let case = Case { id: format!("{}/large", op.name()), op, operands };
        let run = |backend: &dyn Backend| results(&case, backend, false, 1, Precision::F32).remove(0).data;
        let sim = Gpu::new(device(), Precision::F32);
        let errors = Errors::between(&run(&sim), &run(&Reference::default()));
        assert!(errors.worst < 4e-7 && errors.norm < 4e-7, "{}: {errors:?}", case.id);
    }
}
