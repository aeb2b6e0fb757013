//! Forward noising and the loss.

use rayon::prelude::*;

use crate::diffusion::{Example, TrainingObjective};
use crate::graph::op::Noising;
use crate::rng::{Sequence, Stream};

/// Results of [`noising`].
pub(super) struct Noised<'a> {
    pub x_t: &'a mut [f32],
    pub t: &'a mut [f32],
    pub eps: &'a mut [f32],
}

/// Draws t and eps of each example; x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
pub(super) fn noising(n: &Noising, x0: &[f32], example: &[u32], key: [u32; 2], out: Noised) {
    let sample = x0.len() / example.len();
    out.x_t
        .par_chunks_mut(sample)
        .zip(out.eps.par_chunks_mut(sample))
        .zip(x0.par_chunks(sample))
        .zip(out.t.par_iter_mut())
        .zip(example)
        .for_each(|((((x_t, eps), x0), t), &example)| {
            let sequence = |stream| Sequence::with_key(key, stream, example, 0);
            let step = sequence(Stream::Timestep).below(0, n.rows.len() as u32);
            let (signal, noise) = n.rows[step as usize];
            let (signal, noise) = (signal as f32, noise as f32);
            *t = step as f32;
            sequence(Stream::TrainingNoise).fill_normal(eps);
            for ((x_t, x0), eps) in x_t.iter_mut().zip(x0).zip(eps) {
                *x_t = signal * x0 + noise * *eps;
            }
        });
}

/// Operands of [`loss`].
pub(super) struct LossOperands<'a> {
    pub out: &'a [f32],
    pub x0: &'a [f32],
    pub x_t: &'a [f32],
    pub eps: &'a [f32],
    pub t: &'a [f32],
}

/// Writes (loss, L_simple, bound) of each example and the gradient of the mean loss.
///
/// A timestep outside the schedule makes the loss NaN, which stops a training loop.
pub(super) fn loss(o: &TrainingObjective, x: LossOperands, channels: usize, losses: &mut [f32], dout: &mut [f32]) {
    let batch = x.t.len();
    let (image, output) = (x.x0.len() / batch, x.out.len() / batch);
    losses.par_chunks_mut(3).zip(dout.par_chunks_mut(output)).enumerate().for_each(|(n, (losses, dout))| {
        let of = |t: &[f32], len: usize| n * len..(n + 1) * len.min(t.len());
        let example = Example {
            t: x.t[n] as usize,
            x0: &x.x0[of(x.x0, image)],
            x_t: &x.x_t[of(x.x_t, image)],
            eps: &x.eps[of(x.eps, image)],
            out: &x.out[of(x.out, output)],
            channels,
        };
        let row = match o.example(example, 1.0 / batch as f64, dout) {
            Ok(l) => [l.loss, l.simple, l.vb],
            Err(_) => [f64::NAN; 3],
        };
        losses.copy_from_slice(&row.map(|v| v as f32));
    });
}
