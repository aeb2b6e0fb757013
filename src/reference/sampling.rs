//! One step of a sampler, read off its table.

use super::Tensor;
use crate::diffusion::StepTable;
use crate::diffusion::step_table::ImageStates;
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
    let half = sample / channels * model_channels * t[0].shape.batch();
    let key = [t[5].data[0] as u32, t[5].data[1] as u32];
    for (n, (x, x0)) in x.chunks_mut(sample).zip(x0.chunks_mut(sample)).enumerate() {
        let at = |i: usize, extra: usize| (n * sample + i) / channels * model_channels + i % channels + extra;
        let model: Vec<f64> = (0..sample)
            .map(|i| match s.guidance {
                None => t[1].data[at(i, 0)],
                Some(scale) => {
                    let (conditional, unconditional) = (t[1].data[at(i, 0)], t[1].data[half + at(i, 0)]);
                    unconditional + scale * (conditional - unconditional)
                }
            })
            .collect();
        let v: Vec<f64> = match s.table.learned_variance {
            Some(_) => (0..sample).map(|i| t[1].data[at(i, channels)]).collect(),
            None => Vec::new(),
        };
        let sequence = Sequence::with_key(key, Stream::SamplerNoise, t[4].data[n] as u32, step as u32);
        let z: Vec<f64> = (0..sample)
            .map(|i| match s.noise {
                NoiseSource::Given => t[6].data[n * sample + i],
                NoiseSource::Philox => sequence.normal_f64(i),
            })
            .collect();
        let [x0_prev2, saved] = history.each_mut().map(|state| state.chunks_mut(sample).nth(n).unwrap_or_default());
        let gradient: Vec<f64> = match (s.gradient_operand(), s.classifier_scale) {
            (Some(at), Some(scale)) => t[at].data[n * sample..][..sample].iter().map(|g| scale * g).collect(),
            _ => Vec::new(),
        };
        s.table.step_states(step, ImageStates { x, x0_prev: x0, x0_prev2, saved }, &model, &v, &z, &gradient);
    }
    // Of the f32 that a reader of x gets, so that both show the same picture.
    let picture = s.picture.map(|levels| x.iter().map(|&x| f64::from(levels.byte(x as f32))).collect());
    let used = history.into_iter().filter(|state| !state.is_empty());
    [x, x0].into_iter().chain(picture).chain(used).collect()
}
