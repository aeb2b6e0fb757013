//! Initial weights of a network that is to be trained.

use crate::graph::ParamSpec;
use crate::rng::{Sequence, Stream};

/// Initial values of parameter `index`, in the graph's layout.
///
/// Matrices, convolutions and their biases are uniform in ±1/sqrt(fan-in), norms are the identity, class embeddings
/// and Fourier frequencies normal: what users of PyTorch start from. `fan_in` of a bias is that of its weight.
pub fn initial_weights(params: &[ParamSpec], index: usize, seed: u64) -> Vec<f32> {
    let spec = &params[index];
    let random = Sequence::new(seed, Stream::Weights, index as u32, 0);
    let uniform = |fan_in: usize| -> Vec<f32> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        (0..spec.numel()).map(|i| (2.0 * random.uniform(i) - 1.0) * bound).collect()
    };
    let normal = |std: f32| -> Vec<f32> {
        let mut x = vec![0.0; spec.numel()];
        random.fill_normal(&mut x);
        x.iter_mut().for_each(|v| *v *= std);
        x
    };
    let fan_in = |s: &ParamSpec| s.numel() / s.shape.batch();
    let weight_of_bias = |s: &ParamSpec| {
        let weight = s.name.strip_suffix("bias").map(|stem| format!("{stem}weight"));
        params.iter().find(|p| Some(&p.name) == weight.as_ref())
    };
    match (spec.name.as_str(), spec.shape.rank()) {
        ("class_embedding.weight", _) => normal(1.0),
        ("time_proj.weight", _) => normal(16.0),
        (name, 1) => match weight_of_bias(spec) {
            Some(weight) if weight.shape.rank() > 1 => uniform(fan_in(weight)),
            Some(_) => vec![0.0; spec.numel()],
            None if name.ends_with("weight") => vec![1.0; spec.numel()],
            None => vec![0.0; spec.numel()],
        },
        _ => uniform(fan_in(spec)),
    }
}
