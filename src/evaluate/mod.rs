//! The variational bound of a model on data, in bits per dimension.
//!
//! For every image: L_T and L_0 exactly, and the sum of L_1 .. L_{T-1} from `strata` timesteps, one drawn uniformly from
//! each of that many parts of 1..T and weighted with the part's size. That is unbiased, and exact when there are as many
//! parts as timesteps. Parts grow with t, since the terms of small t are the large ones.

mod terms;

use std::ops::Range;
use std::rc::Rc;

use thiserror::Error;

use crate::backend::{Backend, BackendError};
use crate::data::{DataError, Dataset, pixel_to_value};
use crate::diffusion::vlb::prior_bpd;
use crate::diffusion::{DiffusionError, SamplerKind, Schedule, Vlb};
use crate::model::{ModelError, ModelFolder, bind_weights};
use crate::program::{Batch, ForwardProgram};
use crate::rng::{Sequence, Stream};
use crate::unet::ConfigError;
use terms::Sums;
pub use terms::{Estimate, TimestepTerms};

/// Why the bound cannot be evaluated.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The configuration makes no network for these images.
    #[error("the model does not fit the data: {0}")]
    Config(#[from] ConfigError),
    /// The noise schedule is refused.
    #[error(transparent)]
    Schedule(#[from] DiffusionError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Data and model do not fit together.
    #[error("{0}")]
    Mismatch(String),
}

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct EvaluateOptions {
    /// Images to evaluate, the first ones of the data set.
    pub images: usize,
    /// Timesteps per image between L_0 and L_T; `None` for all of them.
    pub strata: Option<usize>,
    /// Network evaluations at once.
    pub batch: usize,
    /// Seed of noise and timesteps.
    pub seed: u64,
}

/// The bound of one image, in bits per dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImageBound {
    /// L_T: how far q(x_T | x_0) is from the prior.
    pub prior: f64,
    /// L_1 + .. + L_{T-1}.
    pub diffusion: f64,
    /// L_0 with the exact normal distribution function.
    pub decoder: f64,
    /// L_0 with the tanh approximation of published figures.
    pub decoder_tanh: f64,
    /// Mean squared error of the clipped x_0 estimate over all timesteps, estimated as the bound is.
    pub x0_mse: f64,
    /// Mean squared error of eps over all timesteps, L_simple, estimated as the bound is.
    pub eps_mse: f64,
}

impl ImageBound {
    /// The bound on -log p(x_0).
    pub fn total(&self) -> f64 {
        self.prior + self.diffusion + self.decoder
    }
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The bound of each image, in the data set's order.
    pub images: Vec<ImageBound>,
    /// Means over the images, by ascending timestep; only of the timesteps that were drawn where not all are evaluated.
    pub timesteps: Vec<TimestepTerms>,
}

/// One network evaluation: an image, a timestep, and its weight in the sum.
#[derive(Clone, Copy, Debug)]
struct Visit {
    image: usize,
    t: usize,
    weight: f64,
}

/// Evaluates a model; `on_batch` hears how many network evaluations are done, of how many.
///
/// # Errors
/// [`EvaluateError`].
pub fn evaluate(
    model: &ModelFolder,
    data: &dyn Dataset,
    options: &EvaluateOptions,
    backend: &dyn Backend,
    on_batch: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation, EvaluateError> {
    let config = &model.config;
    if model.scheduler.sampler == SamplerKind::ScoreSde {
        let text = "the bound is that of a chain of betas; the model's scheduler, ScoreSdeVeScheduler, has none";
        return Err(EvaluateError::Mismatch(text.into()));
    }
    let schedule = Schedule::new(&model.scheduler.betas)?;
    let batch = Batch { n: options.batch.max(1), h: data.height(), w: data.width() };
    check(model, data, options)?;
    let program = ForwardProgram::new(config, batch, false)?;
    let mut exe = backend.compile(program.plan.clone())?;
    bind_weights(exe.as_mut(), &model.weights()?)?;
    let scheduler = &model.scheduler;
    let vlb = Vlb::new(&schedule, scheduler.prediction_type, scheduler.variance_type, true, data.levels())?;

    let visits = visits(options, schedule.num_timesteps());
    let mut bounds = vec![ImageBound::default(); options.images];
    let mut sums = Sums::new(schedule.num_timesteps());
    let (channels, pixels) = (data.channels(), batch.h * batch.w);
    let out_channels = config.out_channels;
    let mut out = vec![0.0; batch.numel(out_channels)];
    // Visits of an image follow each other, so each image is decoded once.
    let mut image: Option<Rc<Image>> = None;
    for (done, group) in visits.chunks(batch.n).enumerate() {
        let mut noised = Vec::with_capacity(group.len());
        for visit in group {
            if image.as_ref().is_none_or(|i| i.index != visit.image) {
                image = Some(Rc::new(Image::read(data, visit.image)?));
            }
            noised.extend(image.iter().map(|i| Noised::new(i, &schedule, options.seed, *visit)));
        }
        let padded = || noised.iter().chain(std::iter::repeat(&noised[0])).take(batch.n);
        exe.write_f32(program.x, &padded().flat_map(|n| n.x_t.iter().map(|&v| v as f32)).collect::<Vec<_>>())?;
        exe.write_f32(program.t, &padded().map(|n| n.visit.t as f32).collect::<Vec<_>>())?;
        if let Some(class) = program.class {
            exe.write_u32(class, &padded().map(|n| label(model, n)).collect::<Result<Vec<_>, _>>()?)?;
        }
        exe.run()?;
        exe.read_f32(program.out, &mut out)?;
        for (n, out) in noised.iter().zip(out.chunks_exact(pixels * out_channels)) {
            let part = |first: usize| -> Vec<f32> {
                (0..pixels * channels).map(|i| out[i / channels * out_channels + first + i % channels]).collect()
            };
            let v = if out_channels > channels { part(channels) } else { Vec::new() };
            let term = vlb.term(n.visit.t, &n.image.x0, &n.x_t, &part(0), &v)?;
            sums.add(n.visit.t, &term);
            let bound = &mut bounds[n.visit.image];
            if n.visit.t == 0 {
                bound.prior = prior_bpd(&schedule, &n.image.x0);
                (bound.decoder, bound.decoder_tanh) = (term.vb_exact, term.vb_tanh);
            } else {
                bound.diffusion += n.visit.weight * term.vb_exact;
            }
            let share = n.visit.weight / schedule.num_timesteps() as f64;
            bound.x0_mse += share * term.x0_mse;
            bound.eps_mse += share * term.eps_mse;
        }
        on_batch((done * batch.n + group.len()).min(visits.len()), visits.len());
    }
    match bounds.iter().position(|b| !b.total().is_finite()) {
        None => Ok(Evaluation { images: bounds, timesteps: sums.means(&schedule)? }),
        Some(image) => Err(EvaluateError::Mismatch(format!(
            "the bound of image {image} is not finite: the model's variance or its output overflows"
        ))),
    }
}

fn check(model: &ModelFolder, data: &dyn Dataset, options: &EvaluateOptions) -> Result<(), EvaluateError> {
    let config = &model.config;
    let mismatch = |text: String| Err(EvaluateError::Mismatch(text));
    if config.condition_channels > 0 {
        return mismatch("the model is conditioned on low-resolution images, and the data have none".into());
    }
    if data.channels() != config.in_channels {
        return mismatch(format!("the images have {} channels, the model {}", data.channels(), config.in_channels));
    }
    if options.images == 0 || options.images > data.len() {
        return mismatch(format!(
            "{} images of {} cannot be evaluated; ask for 1 to {}",
            options.images,
            data.len(),
            data.len()
        ));
    }
    if options.strata == Some(0) {
        return mismatch("0 timesteps leave out L_1 to L_(T-1); ask for at least one".into());
    }
    let (image, out) = (config.in_channels, config.out_channels);
    let variance = model.scheduler.variance_type;
    if out != 2 * image && (out != image || variance.is_learned()) {
        return mismatch(format!(
            "{out} output channels for {image} image channels do not fit the scheduler's variance_type {variance:?}: a \
             learned one needs twice the channels, a fixed one as many or twice as many"
        ));
    }
    if config.class_embed_type.is_some() {
        return mismatch("the model is conditioned on numbers or vectors, not on classes".into());
    }
    Ok(())
}

fn label(model: &ModelFolder, n: &Noised) -> Result<u32, EvaluateError> {
    // Without the null class: data have no images of it.
    let classes = model.config.classes().unwrap_or_default();
    match n.image.label {
        Some(label) if (label as usize) < classes => Ok(label),
        Some(label) => Err(EvaluateError::Mismatch(format!(
            "image {} has the label {label}, the model knows {classes} classes, counted from 0; evaluate it on the data \
                 it was trained on",
            n.visit.image
        ))),
        None => Err(EvaluateError::Mismatch("the model is class-conditional, the data have no labels".into())),
    }
}

/// An image of the data, NHWC.
struct Image {
    index: usize,
    label: Option<u32>,
    x0: Vec<f64>,
}

impl Image {
    fn read(data: &dyn Dataset, index: usize) -> Result<Self, DataError> {
        let mut pixels = vec![0; data.image_len()];
        let label = data.pixels(index, &mut pixels)?;
        let x0 = pixels.iter().map(|&p| f64::from(pixel_to_value(p, data.levels()))).collect();
        Ok(Self { index, label, x0 })
    }
}

/// An image mixed with noise, for one visit.
struct Noised {
    visit: Visit,
    image: Rc<Image>,
    x_t: Vec<f64>,
}

impl Noised {
    fn new(image: &Rc<Image>, schedule: &Schedule, seed: u64, visit: Visit) -> Self {
        let alpha_bar = schedule.alpha_bars[visit.t];
        let mut eps = vec![0.0f32; image.x0.len()];
        Sequence::new(seed, Stream::BoundNoise, visit.image as u32, visit.t as u32).fill_normal(&mut eps);
        let mix = |(x, e): (&f64, &f32)| alpha_bar.sqrt() * x + (1.0 - alpha_bar).sqrt() * f64::from(*e);
        let x_t = image.x0.iter().zip(&eps).map(mix).collect();
        Self { visit, image: Rc::clone(image), x_t }
    }
}

/// All network evaluations: t = 0 and one timestep of each stratum, for every image.
fn visits(options: &EvaluateOptions, timesteps: usize) -> Vec<Visit> {
    let inner = timesteps - 1;
    let strata = options.strata.unwrap_or(inner).min(inner);
    let strata = partition(inner, strata);
    let strata = &strata;
    (0..options.images)
        .flat_map(|image| {
            // The step 0xffff_ffff belongs to no timestep, so these draws are apart from the noise.
            let draw = Sequence::new(options.seed, Stream::BoundNoise, image as u32, u32::MAX);
            let first = Visit { image, t: 0, weight: 1.0 };
            std::iter::once(first).chain(strata.iter().enumerate().map(move |(k, range)| {
                let t = range.start + draw.below(k, range.len() as u32) as usize;
                Visit { image, t, weight: range.len() as f64 }
            }))
        })
        .collect()
}

/// Cuts `1..=inner` into `parts` parts whose bounds rise with the cube of their number, each at least one long.
fn partition(inner: usize, parts: usize) -> Vec<Range<usize>> {
    let mut begin = 1;
    (1..=parts)
        .map(|k| {
            let cube = 1 + (inner as f64 * (k as f64 / parts as f64).powi(3)).round() as usize;
            let range = begin..cube.max(begin + 1);
            begin = range.end;
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strata_cover_every_timestep_once() {
        for (timesteps, strata) in [(10, None), (10, Some(3)), (1000, Some(7)), (5, Some(99)), (1, None)] {
            let options = EvaluateOptions { images: 3, strata, batch: 4, seed: 9 };
            let visits = visits(&options, timesteps);
            for image in 0..3 {
                let mine: Vec<&Visit> = visits.iter().filter(|v| v.image == image).collect();
                assert_eq!((mine[0].t, mine[0].weight), (0, 1.0));
                assert_eq!(mine[1..].iter().map(|v| v.weight).sum::<f64>(), (timesteps - 1) as f64);
                assert!(mine[1..].windows(2).all(|w| w[0].t < w[1].t) && mine.iter().all(|v| v.t < timesteps));
            }
        }
    }

    #[test]
    fn drawn_timesteps_are_uniform_within_a_stratum() {
        let options = EvaluateOptions { images: 4000, strata: Some(1), batch: 1, seed: 1 };
        let mut counts = [0; 5];
        visits(&options, 6).iter().filter(|v| v.t > 0).for_each(|v| counts[v.t - 1] += 1);
        assert!(counts.iter().all(|&c| (c - 800i32).abs() < 5 * 26), "{counts:?}");
    }
}
