//! The fused sampling step.

use rayon::iter::Either;
use rayon::prelude::*;

use crate::diffusion::score_sde::norm;
use crate::diffusion::step_table::StepInput;
use crate::diffusion::{Clip, NormScope, StepRow};
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
    let prediction = Prediction { s, model: t.model, channels: (c, model_c), image, batch };
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
            let at = |i: usize| i / c * model_c + i % c;
            let model = prediction.of(n);
            let row = corrected(&row, s, &t, &prediction, n);
            let scale = clip_scale(s.table.clip, &row, x, &model, magnitudes);
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
                    model: model(i),
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

/// The network's prediction, guided where there is guidance.
struct Prediction<'a> {
    s: &'a SamplerStep,
    model: &'a [f32],
    /// Channels of x and of the model output.
    channels: (usize, usize),
    /// Elements of an image, and images.
    image: usize,
    batch: usize,
}

impl<'a> Prediction<'a> {
    /// The elements of image n.
    fn of(&self, n: usize) -> impl Fn(usize) -> f64 + use<'a> {
        let ((c, model_c), image) = (self.channels, self.image);
        let output = image / c * model_c;
        let at = move |i: usize| i / c * model_c + i % c;
        let conditional = &self.model[n * output..][..output];
        let guidance = self.s.guidance.map(|g| (g, &self.model[(self.batch + n) * output..][..output]));
        let pair = move |i: usize, u: &[f32]| (f64::from(conditional[at(i)]), f64::from(u[at(i)]));
        let factor = guidance.map_or(1.0, |(g, u)| g.factor_of((0..image).map(|i| pair(i, u))));
        move |i| match guidance {
            None => f64::from(conditional[at(i)]),
            Some((g, u)) => {
                let (conditional, unconditional) = pair(i, u);
                factor * g.combine(conditional, unconditional)
            }
        }
    }
}

/// The row of image n: that of a corrector has the step that follows from the norms.
fn corrected(row: &StepRow, s: &SamplerStep, t: &Operands, prediction: &Prediction, n: usize) -> StepRow {
    if row.snr == 0.0 {
        return *row;
    }
    let (image, batch) = (prediction.image, prediction.batch);
    let norms = |n: usize| {
        let model = prediction.of(n);
        let of_noise = match s.noise {
            NoiseSource::Given => norm(t.z[n * image..][..image].iter().map(|&z| f64::from(z))),
            NoiseSource::Philox => {
                let sequence = Sequence::with_key(t.key, Stream::SamplerNoise, t.sample[n], t.step);
                let blocks = (0..image.div_ceil(4) as u32).flat_map(|block| sequence.normals(block));
                norm(blocks.take(image).map(f64::from))
            }
        };
        (of_noise, norm((0..image).map(model)))
    };
    let (z, model) = match s.table.norms {
        NormScope::Image => norms(n),
        // Each image adds them up again, which costs little beside the network and needs no room.
        NormScope::Batch => {
            let sum = (0..batch).map(norms).fold((0.0, 0.0), |sum, norms| (sum.0 + norms.0, sum.1 + norms.1));
            (sum.0 / batch as f64, sum.1 / batch as f64)
        }
    };
    row.with_norms(z, model)
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
fn clip_scale(clip: Clip, row: &StepRow, x: &[f32], model: &impl Fn(usize) -> f64, magnitudes: &mut [f64]) -> f64 {
    if !matches!(clip, Clip::Dynamic { .. }) {
        return 1.0;
    }
    for (i, m) in magnitudes.iter_mut().enumerate() {
        *m = row.x0(f64::from(x[i]), model(i)).abs();
    }
    clip.dynamic_scale(magnitudes)
}
