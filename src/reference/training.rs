//! Forward noising and the loss, with the randomness drawn from the counters.

use super::Tensor;
use crate::diffusion::{Example, TrainingObjective};
use crate::graph::op::Noising;
use crate::rng::{Sequence, Stream};

/// Inputs: x0, example_index, key. Draws t and eps; x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
pub(super) fn noising(n: &Noising, x: &[Tensor]) -> Vec<Vec<f64>> {
    let key = [x[2].data[0] as u32, x[2].data[1] as u32];
    let (mut x_t, mut t, mut eps) = (Vec::new(), Vec::new(), Vec::new());
    let sample = x[0].data.len() / x[1].data.len();
    for (image, example) in x[0].data.chunks(sample).zip(x[1].data) {
        let sequence = |stream| Sequence::with_key(key, stream, *example as u32, 0);
        let step = sequence(Stream::Timestep).below(0, n.rows.len() as u32);
        let (signal, noise) = n.rows[step as usize];
        t.push(f64::from(step));
        for (i, x0) in image.iter().enumerate() {
            let e = sequence(Stream::TrainingNoise).normal_f64(i);
            eps.push(e);
            x_t.push(signal * x0 + noise * e);
        }
    }
    vec![x_t, t, eps]
}

/// Inputs: out, x0, x_t, eps, t.
pub(super) fn loss(o: &TrainingObjective, x: &[Tensor]) -> Vec<Vec<f64>> {
    let batch = x[0].shape.batch();
    let mut dout = vec![0.0; x[0].data.len()];
    let mut losses = Vec::new();
    let per_image = |t: &Tensor| t.data.len() / batch;
    for (n, dout) in dout.chunks_mut(per_image(&x[0])).enumerate() {
        let image = |i: usize| &x[i].data[n * per_image(&x[i])..][..per_image(&x[i])];
        let example = Example {
            t: x[4].data[n] as usize,
            x0: image(1),
            x_t: image(2),
            eps: image(3),
            out: image(0),
            channels: x[1].shape.channels(),
        };
        match o.example(example, 1.0 / batch as f64, dout) {
            Ok(l) => losses.extend([l.loss, l.simple, l.vb]),
            Err(_) => losses.extend([f64::NAN; 3]),
        }
    }
    vec![losses, dout]
}
