//! The fused sampling step.

use rayon::prelude::*;

use crate::diffusion::step_table::StepInput;
use crate::diffusion::{Clip, StepRow};
use crate::graph::op::{NoiseSource, SamplerStep};
use crate::levels::to_byte;
use crate::rng::{Sequence, Stream};

/// Operands of [`step`].
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// Model output; with guidance the conditional half, then the unconditional.
    pub model: &'a [f32],
    /// Row of the step table.
    pub step: u32,
    /// Global index of each sample.
    pub sample: &'a [u32],
    /// The seed.
    pub key: [u32; 2],
    /// Given noise, or empty.
    pub z: &'a [f32],
}

/// Advances x_t to x_next and the previous x_0 to this step's, both in place.
///
/// `channels` are those of x and of the model output. The scalars are f64, so that a step adds no more than the
/// rounding of its result. `magnitudes` has room for one number per element of x.
pub(super) fn step(
    s: &SamplerStep,
    (c, model_c): (usize, usize),
    t: Operands,
    x: &mut [f32],
    x0_prev: &mut [f32],
    magnitudes: &mut [f64],
) {
    let batch = t.sample.len();
    let image = x.len() / batch;
    let output = image / c * model_c;
    let row = s.table.rows[t.step as usize];
    let learned = s.table.learned_variance;
    x.par_chunks_mut(image)
        .zip(x0_prev.par_chunks_mut(image))
        .zip(magnitudes[..batch * image].par_chunks_mut(image))
        .enumerate()
        .for_each(|(n, ((x, x0_prev), magnitudes))| {
            let conditional = &t.model[n * output..][..output];
            let unconditional = s.guidance.map(|g| (g, &t.model[(batch + n) * output..][..output]));
            let model = |i: usize| {
                let m = f64::from(conditional[i]);
                unconditional.map_or(m, |(g, u)| f64::from(u[i]) + g * (m - f64::from(u[i])))
            };
            let at = |i: usize| i / c * model_c + i % c;
            let scale = clip_scale(s.table.clip, &row, x, |i| model(at(i)), magnitudes);
            let sequence = Sequence::with_key(t.key, Stream::SamplerNoise, t.sample[n], t.step);
            let mut normals = [0.0; 4];
            for i in 0..image {
                if row.noise && s.noise == NoiseSource::Philox && i.is_multiple_of(4) {
                    normals = sequence.normals((i / 4) as u32);
                }
                let z = match s.noise {
                    NoiseSource::Philox => normals[i % 4],
                    NoiseSource::Given => t.z[n * image + i],
                };
                let input = StepInput {
                    x_t: f64::from(x[i]),
                    model: model(at(i)),
                    // Only the prediction is guided; the variance stays the conditional one.
                    v: learned.map_or(0.0, |_| f64::from(conditional[at(i) + c])),
                    x0_prev: f64::from(x0_prev[i]),
                    z: f64::from(z),
                };
                let (x_next, x0) = row.apply(&input, s.table.clip, scale, learned);
                (x[i], x0_prev[i]) = (x_next as f32, x0 as f32);
            }
        });
}

/// The grey levels of x; `levels` has room for them, or is empty where nobody asked.
pub(super) fn picture(x: &[f32], levels: &mut [u8]) {
    const CHUNK: usize = 1 << 14;
    let chunks = levels.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(levels, x)| levels.iter_mut().zip(x).for_each(|(level, &x)| *level = to_byte(x)));
}

/// The divisor of dynamic thresholding; 1 for every other clip.
fn clip_scale(clip: Clip, row: &StepRow, x: &[f32], model: impl Fn(usize) -> f64, magnitudes: &mut [f64]) -> f64 {
    if !matches!(clip, Clip::Dynamic { .. }) {
        return 1.0;
    }
    for (i, m) in magnitudes.iter_mut().enumerate() {
        *m = row.x0(f64::from(x[i]), model(i)).abs();
    }
    clip.dynamic_scale(magnitudes)
}
