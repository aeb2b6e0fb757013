//! The fused sampling step.

use rayon::iter::Either;
use rayon::prelude::*;

use crate::diffusion::step_table::StepInput;
use crate::diffusion::{Clip, StepRow};
use crate::graph::op::{NoiseSource, SamplerStep};
use crate::levels::Levels;
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
    /// A classifier's gradient, or empty.
    pub gradient: &'a [f32],
}

/// What a step advances in place; the last two are empty where the sampler has no such state.
pub(super) struct States<'a> {
    /// x_t, becomes x_next.
    pub x: &'a mut [f32],
    /// The previous x_0, becomes this step's.
    pub x0_prev: &'a mut [f32],
    /// The x_0 of two steps before, becomes the previous one.
    pub x0_prev2: &'a mut [f32],
    /// The saved state.
    pub saved: &'a mut [f32],
}

/// Advances the states by a step, in place.
///
/// `channels` are those of x and of the model output. The scalars are f64, so that a step adds no more than the
/// rounding of its result. `magnitudes` has room for one number per element of x.
pub(super) fn step(
    s: &SamplerStep,
    (c, model_c): (usize, usize),
    t: Operands,
    States { x, x0_prev, x0_prev2, saved }: States,
    magnitudes: &mut [f64],
) {
    let batch = t.sample.len();
    let image = x.len() / batch;
    let output = image / c * model_c;
    let row = s.table.rows[t.step as usize];
    let learned = s.table.learned_variance;
    let gradient_scale = s.classifier_scale.unwrap_or_default();
    x.par_chunks_mut(image)
        .zip(x0_prev.par_chunks_mut(image))
        .zip(magnitudes[..batch * image].par_chunks_mut(image))
        .zip(images(x0_prev2, batch, image))
        .zip(images(saved, batch, image))
        .enumerate()
        .for_each(|(n, ((((x, x0_prev), magnitudes), x0_prev2), saved))| {
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
                    x0_prev2: x0_prev2.get(i).map_or(0.0, |&x0| f64::from(x0)),
                    saved: saved.get(i).map_or(0.0, |&saved| f64::from(saved)),
                    z: f64::from(z),
                    gradient: t.gradient.get(n * image + i).map_or(0.0, |&g| gradient_scale * f64::from(g)),
                };
                let (x_next, x0) = row.apply(&input, s.table.clip, scale, learned);
                if let Some(x0_prev2) = x0_prev2.get_mut(i) {
                    *x0_prev2 = x0_prev[i];
                }
                if let Some(saved) = saved.get_mut(i) {
                    *saved = row.saved_next(&input, x0) as f32;
                }
                (x[i], x0_prev[i]) = (x_next as f32, x0 as f32);
            }
        });
}

/// A state image by image; of a state that is not there, nothing for each.
fn images(state: &mut [f32], batch: usize, image: usize) -> impl IndexedParallelIterator<Item = &mut [f32]> {
    if state.is_empty() {
        Either::Left((0..batch).into_par_iter().map(|_| <&mut [f32]>::default()))
    } else {
        Either::Right(state.par_chunks_mut(image))
    }
}

/// The grey levels of x; `levels` has room for them, or is empty where nobody asked.
pub(super) fn picture(x: &[f32], rule: Levels, levels: &mut [u8]) {
    const CHUNK: usize = 1 << 14;
    let chunks = levels.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(levels, x)| levels.iter_mut().zip(x).for_each(|(level, &x)| *level = rule.byte(x)));
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
