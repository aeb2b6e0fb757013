//! AdamW, clipping and the moving average in one pass over the parameters.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::graph::AdamW;

/// Elements of one task; also the unit of the norm's partial sums, which makes the norm independent of the threads.
const CHUNK: usize = 1 << 15;

/// Number of partial sums of a buffer.
pub(super) fn partial_sums(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// The 2-norm of all gradients.
pub(super) fn global_norm(grads: &[f32], partial: &mut [f64]) -> f32 {
    let partial = &mut partial[..partial_sums(grads.len())];
    grads.par_chunks(CHUNK).zip(partial.par_iter_mut()).for_each(|(g, sum)| *sum = sum_of_squares(g));
    partial.iter().sum::<f64>().sqrt() as f32
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn sum_of_squares(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    for chunk in x.chunks(16) {
        for (l, v) in lanes.iter_mut().zip(chunk) {
            *l += f64::from(*v) * f64::from(*v);
        }
    }
    lanes.iter().sum()
}

/// One parameter with its gradient and state.
pub(super) struct Tensors<'a> {
    pub p: &'a mut [f32],
    pub g: &'a [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
    pub ema: &'a mut [f32],
}

/// The step's scalars.
#[derive(Clone, Copy)]
struct Scalars {
    clip: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    step_size: f32,
    inv_root_correction2: f32,
    ema_decay: f32,
}

/// Updates one parameter in place; `hyper` as [`AdamW`] describes.
pub(super) fn adamw(o: &AdamW, norm: f32, hyper: [f32; 4], t: Tensors) {
    let [lr, correction1, correction2, ema_decay] = hyper;
    let s = Scalars {
        clip: (o.max_grad_norm as f32 / (norm + 1e-6)).min(1.0),
        beta1: o.beta1 as f32,
        beta2: o.beta2 as f32,
        eps: o.eps as f32,
        decay: 1.0 - lr * o.weight_decay as f32,
        step_size: lr / correction1,
        inv_root_correction2: 1.0 / correction2.sqrt(),
        ema_decay,
    };
    t.p.par_chunks_mut(CHUNK)
        .zip(t.g.par_chunks(CHUNK))
        .zip(t.m.par_chunks_mut(CHUNK))
        .zip(t.v.par_chunks_mut(CHUNK))
        .zip(t.ema.par_chunks_mut(CHUNK))
        .for_each(|((((p, g), m), v), ema)| update(s, p, g, m, v, ema));
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn update(s: Scalars, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], ema: &mut [f32]) {
    let n = p.len();
    let (g, m, v, ema) = (&g[..n], &mut m[..n], &mut v[..n], &mut ema[..n]);
    for i in 0..n {
        let g = g[i] * s.clip;
        m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
        v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
        p[i] = p[i] * s.decay - s.step_size * m[i] / (v[i].sqrt() * s.inv_root_correction2 + s.eps);
        ema[i] = s.ema_decay * ema[i] + (1.0 - s.ema_decay) * p[i];
    }
}
