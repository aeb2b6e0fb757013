//! Forward noising and the loss.

use rayon::prelude::*;

use crate::diffusion::{Example, TrainingObjective};
use crate::graph::op::Noising;
use crate::rng::{Sequence, Stream};

/// Results of [`noising`].
pub(super) struct Noised<'a> {
    pub x_t: &'a mut [f32],
    pub t: &'a mut [f32],
    /// Empty if it is not asked for.
    pub eps: &'a mut [f32],
}

/// The noisy image of one example, and its noise where `eps` has room for it.
fn noise_image(x0: &[f32], example: u32, key: [u32; 2], row: (f64, f64), x_t: &mut [f32], eps: &mut [f32]) {
    let sequence = Sequence::with_key(key, Stream::TrainingNoise, example, 0);
    let (signal, noise) = (row.0 as f32, row.1 as f32);
    for (block, (x_t, x0)) in x_t.chunks_mut(4).zip(x0.chunks(4)).enumerate() {
        let normals = sequence.normals(block as u32);
        for ((x_t, x0), e) in x_t.iter_mut().zip(x0).zip(normals) {
            *x_t = signal * x0 + noise * e;
        }
        if let Some(eps) = eps.get_mut(4 * block..4 * block + x0.len()) {
            eps.copy_from_slice(&normals[..x0.len()]);
        }
    }
}

/// Draws t and eps of each example; x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
pub(super) fn noising(n: &Noising, x0: &[f32], examples: &[u32], key: [u32; 2], out: Noised) {
    let image = x0.len() / examples.len();
    let timestep = |example| Sequence::with_key(key, Stream::Timestep, example, 0).below(0, n.rows.len() as u32);
    out.t.iter_mut().zip(examples).for_each(|(t, &example)| *t = timestep(example) as f32);
    let images = out.x_t.par_chunks_mut(image).zip(x0.par_chunks(image)).zip(examples);
    let draw = |((x_t, x0), &example): ((&mut [f32], &[f32]), &u32), eps: &mut [f32]| {
        noise_image(x0, example, key, n.rows[timestep(example) as usize], x_t, eps);
    };
    if n.eps {
        images.zip(out.eps.par_chunks_mut(image)).for_each(|(i, eps)| draw(i, eps));
    } else {
        images.for_each(|i| draw(i, &mut []));
    }
}

/// Operands of [`loss`].
pub(super) struct LossOperands<'a> {
    pub out: &'a [f32],
    pub x0: &'a [f32],
    pub noise: Noise<'a>,
    pub t: &'a [f32],
}

/// Where x_t and eps of the loss come from.
pub(super) enum Noise<'a> {
    Given {
        x_t: &'a [f32],
        eps: &'a [f32],
    },
    /// Drawn again into `room`, which holds both.
    Redrawn {
        examples: &'a [u32],
        key: [u32; 2],
        room: &'a mut [f32],
    },
}

/// Writes (loss, L_simple, bound) of each example and the gradient of the mean loss.
///
/// What is no timestep of the schedule makes the losses NaN, which stops a training loop, and the gradient zero.
pub(super) fn loss(o: &TrainingObjective, x: LossOperands, channels: usize, losses: &mut [f32], dout: &mut [f32]) {
    let batch = x.t.len();
    let (image, output) = (x.x0.len() / batch, x.out.len() / batch);
    let (x_t, eps): (&[f32], &[f32]) = match x.noise {
        Noise::Given { x_t, eps } => (x_t, eps),
        Noise::Redrawn { examples, key, room } => {
            let (x_t, eps) = room[..2 * x.x0.len()].split_at_mut(x.x0.len());
            let images = x_t.par_chunks_mut(image).zip(eps.par_chunks_mut(image)).zip(x.x0.par_chunks(image));
            images.zip(examples).zip(x.t).for_each(|((((x_t, eps), x0), &example), &t)| {
                let alpha_bar = o.timestep(f64::from(t)).map_or(f64::NAN, |t| o.schedule().alpha_bars[t]);
                noise_image(x0, example, key, (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()), x_t, eps);
            });
            (x_t, eps)
        }
    };
    losses.par_chunks_mut(3).zip(dout.par_chunks_mut(output)).enumerate().for_each(|(n, (losses, dout))| {
        let image = n * image..(n + 1) * image;
        let example = |t| Example {
            t,
            x0: &x.x0[image.clone()],
            x_t: &x_t[image.clone()],
            eps: &eps[image],
            out: &x.out[n * output..(n + 1) * output],
            channels,
        };
        let found = o.timestep(f64::from(x.t[n])).map(|t| o.example(example(t), 1.0 / batch as f64, dout));
        let row = match found {
            Some(Ok(l)) => [l.loss, l.simple, l.vb],
            _ => {
                dout.fill(0.0);
                [f64::NAN; 3]
            }
        };
        losses.copy_from_slice(&row.map(|v| v as f32));
    });
}
