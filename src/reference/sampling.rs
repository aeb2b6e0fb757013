//! One step of a sampler, read off its table.

use super::Tensor;
use crate::diffusion::score_sde::norm;
use crate::diffusion::step_table::ImageStates;
use crate::diffusion::{NormScope, StepTable};
use crate::graph::NoiseSource;
use crate::graph::op::SamplerStep;
use crate::rng::{Sequence, Stream};

pub(super) fn timestep(table: &StepTable, batch: usize, step: Tensor) -> Vec<Vec<f64>> {
    let row = &table.rows[step.data[0] as usize];
    vec![vec![f64::from(row.timestep); batch]]
}

/// Inputs: x, model, x0_prev, step, sample_index, key, (z), (x0_prev2), (saved), (gradient).
pub(super) fn step(s: &SamplerStep, t: &[Tensor]) -> Vec<Vec<f64>> {
    let (mut x, mut x0) = (t[0].data.to_vec(), t[2].data.to_vec());
    let mut history = s.history_operands().map(|at| at.map_or(Vec::new(), |at| t[at].data.to_vec()));
    let step = t[3].data[0] as usize;
    let channels = t[0].shape.channels();
    let model_channels = t[1].shape.channels();
    let sample = x.len() / t[0].shape.batch();
    let key = [t[5].data[0] as u32, t[5].data[1] as u32];
    let guided = guided(s, t, sample, channels);
    let draw = |n: usize, i: usize| match s.noise {
        NoiseSource::Given => t[6].data[n * sample + i],
        NoiseSource::Philox => {
            Sequence::with_key(key, Stream::SamplerNoise, t[4].data[n] as u32, step as u32).normal_f64(i)
        }
    };
    let images = t[0].shape.batch();
    let mean = |of: &dyn Fn(usize) -> f64| (0..images).map(of).sum::<f64>() / images as f64;
    let batch_norms = (s.table.norms == NormScope::Batch && s.table.rows[step].snr != 0.0).then(|| {
        let of_noise = mean(&|n| norm((0..sample).map(|i| draw(n, i))));
        (of_noise, mean(&|n| norm(guided[n].iter().copied())))
    });
    for (n, (x, x0)) in x.chunks_mut(sample).zip(x0.chunks_mut(sample)).enumerate() {
        let at = |i: usize, extra: usize| (n * sample + i) / channels * model_channels + i % channels + extra;
        let v: Vec<f64> = match s.table.learned_variance {
            Some(_) => (0..sample).map(|i| t[1].data[at(i, channels)]).collect(),
            None => Vec::new(),
        };
        let z: Vec<f64> = (0..sample).map(|i| draw(n, i)).collect();
        let [x0_prev2, saved] = history.each_mut().map(|state| state.chunks_mut(sample).nth(n).unwrap_or_default());
        let gradient: Vec<f64> = match (s.gradient_operand(), s.classifier_scale) {
            (Some(at), Some(scale)) => t[at].data[n * sample..][..sample].iter().map(|g| scale * g).collect(),
            _ => Vec::new(),
        };
        let states = ImageStates { x, x0_prev: x0, x0_prev2, saved };
        match batch_norms {
            None => s.table.step_states(step, states, &guided[n], &v, &z, &gradient),
            Some((z_norm, model_norm)) => {
                let row = s.table.rows[step].with_norms(z_norm, model_norm);
                s.table.states_by_row(&row, states, &guided[n], &v, &z, &gradient);
            }
        }
    }
    // Of the f32 that a reader of x gets, so that both show the same picture.
    let picture = s.picture.map(|levels| x.iter().map(|&x| f64::from(levels.byte(x as f32))).collect());
    let used = history.into_iter().filter(|state| !state.is_empty());
    [x, x0].into_iter().chain(picture).chain(used).collect()
}

/// The prediction of each image, guided where there is guidance.
fn guided(s: &SamplerStep, t: &[Tensor], sample: usize, channels: usize) -> Vec<Vec<f64>> {
    let (images, model_channels) = (t[0].shape.batch(), t[1].shape.channels());
    let half = sample / channels * model_channels * images;
    let image = |n: usize| {
        let at = move |i: usize| (n * sample + i) / channels * model_channels + i % channels;
        let pairs = (0..sample).map(|i| (t[1].data[at(i)], t[1].data.get(half + at(i)).copied().unwrap_or_default()));
        match s.guidance {
            None => pairs.map(|(conditional, _)| conditional).collect(),
            Some(guidance) => {
                let factor = guidance.factor_of(pairs.clone());
                pairs
                    .map(|(conditional, unconditional)| factor * guidance.combine(conditional, unconditional))
                    .collect()
            }
        }
    };
    (0..images).map(image).collect()
}
