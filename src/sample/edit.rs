//! Editing given images: inpainting, partial noising, the way into noise and back.
//!
//! Images are f32, `[N, H, W, C]`, in [-1, 1]. Image i of a seed is edited alike in any batch.

use std::ops::Range;

use super::SampleError;
use super::walk::{Guide, Walk};
use crate::backend::Backend;
use crate::diffusion::repaint::{Move, Repaint, Resampling, put_back, renoise};
use crate::diffusion::{Linear2, SamplerKind, Schedule, SchedulerConfig, StepTable};
use crate::model::ModelFolder;
use crate::rng::{Sequence, Stream};

/// How to edit.
#[derive(Clone, Debug)]
pub struct EditOptions {
    /// The schedule; the sampler must be DDPM or DDIM, whose steps need no memory of those before.
    pub scheduler: SchedulerConfig,
    /// Steps from pure noise to an image; an edit that starts between takes fewer.
    pub steps: usize,
    /// DDIM's eta.
    pub eta: f64,
    /// The seed of all noise.
    pub seed: u64,
    /// Class and guidance.
    pub guide: Guide,
    /// Images that are computed at once.
    pub batch: usize,
}

/// A model that edits. `on_step` hears the number of images of each network evaluation, and says whether to go on.
pub struct Editor<'a> {
    /// The model.
    pub model: &'a ModelFolder,
    /// How to edit.
    pub options: EditOptions,
    /// Where to run.
    pub backend: &'a dyn Backend,
    /// Called after every network evaluation.
    pub on_step: &'a mut dyn FnMut(usize) -> bool,
}

impl Editor<'_> {
    /// Fills in what a mask leaves open (RePaint, 2201.09865): 1 keeps the image, 0 makes it up. `masks` have the images' shape.
    ///
    /// # Errors
    /// [`SampleError`].
    ///
    /// # Panics
    /// Slices that are no whole number of images, or of different lengths.
    pub fn inpaint(&mut self, images: &[f32], masks: &[f32], resampling: Resampling) -> Result<Vec<f32>, SampleError> {
        assert_eq!(images.len(), masks.len(), "not one mask an image");
        let Repaint { table, moves } =
            Repaint::new(&self.options.scheduler, self.options.steps, self.options.eta, resampling)?;
        let seed = self.options.seed;
        let draw = |indices: &Range<usize>, stream, step, length| noise(seed, stream, indices, step, length);
        self.each_batch(images, table, &mut |walk, indices, image, on_step| {
            let length = walk.image_len();
            let mask = &masks[indices.start * length..indices.end * length];
            let mut x = draw(&indices, Stream::InitialNoise, 0, length);
            let mut draws = 0..;
            let mut next = || draw(&indices, Stream::EditNoise, draws.next().unwrap_or_default(), length);
            walk.start(indices.clone(), 0, &x)?;
            for m in &moves {
                match m {
                    Move::Denoise { known, .. } => {
                        walk.replace(&x)?;
                        walk.step()?;
                        x = walk.x()?;
                        put_back(&mut x, *known, image, mask, &next());
                        on_step(indices.len())?;
                    }
                    Move::Renoise { draws, .. } => draws.iter().for_each(|by| renoise(&mut x, *by, &next())),
                }
            }
            Ok(x)
        })
    }

    /// Noises the images part of the way and samples from there (SDEdit, 2108.01073): `strength` is the share of the steps that are
    /// taken, 0 leaves the image, 1 leaves little of it.
    ///
    /// # Errors
    /// [`SampleError`]; a strength outside 0..=1.
    pub fn img2img(&mut self, images: &[f32], strength: f64) -> Result<Vec<f32>, SampleError> {
        let noised = self.noised(images, strength)?;
        self.sampled(&noised, strength)
    }

    /// The images noised to the level from which the last `strength` of the steps start: q(x_t given x_0).
    ///
    /// # Errors
    /// [`SampleError`]; a strength outside 0..=1.
    pub fn noised(&self, images: &[f32], strength: f64) -> Result<Vec<f32>, SampleError> {
        let table = self.table()?;
        let Some(row) = table.rows.get(first_row(table.rows.len(), strength)?) else { return Ok(images.to_vec()) };
        let schedule = Schedule::new(&self.options.scheduler.betas)?;
        let alpha_bar = schedule.alpha_bar(row.timestep as usize)?;
        let length = self.image_len()?;
        let count = images.len() / length;
        let eps = noise(self.options.seed, Stream::InitialNoise, &(0..count), 0, length);
        let mut x = images.to_vec();
        renoise(&mut x, Linear2 { first: alpha_bar.sqrt(), second: (1.0 - alpha_bar).sqrt() }, &eps);
        Ok(x)
    }

    /// Takes the last `strength` of the steps from `x`.
    ///
    /// # Errors
    /// [`SampleError`]; a strength outside 0..=1.
    pub fn sampled(&mut self, x: &[f32], strength: f64) -> Result<Vec<f32>, SampleError> {
        let table = self.table()?;
        let rows = first_row(table.rows.len(), strength)?..table.rows.len();
        self.walked(x, table, rows)
    }

    /// Runs deterministic DDIM upwards through the first `strength` of the levels: the latents that [`sampled`](Self::sampled) with
    /// DDIM and eta 0 takes back to the images, up to the error of finite steps.
    ///
    /// # Errors
    /// [`SampleError`]; a strength outside 0..=1.
    pub fn encoded(&mut self, images: &[f32], strength: f64) -> Result<Vec<f32>, SampleError> {
        let table = StepTable::ddim_inverse(&self.options.scheduler, self.options.steps)?;
        let rows = 0..table.rows.len() - first_row(table.rows.len(), strength)?;
        self.walked(images, table, rows)
    }

    fn table(&self) -> Result<StepTable, SampleError> {
        let EditOptions { scheduler, steps, eta, .. } = &self.options;
        if !matches!(scheduler.sampler, SamplerKind::Ddpm | SamplerKind::Ddim) {
            return Err(SampleError::Condition(format!(
                "{} needs the steps before; images are edited with ddim or ddpm",
                scheduler.sampler.class_name()
            )));
        }
        Ok(StepTable::build(scheduler, *steps, *eta)?)
    }

    /// Elements of an image.
    fn image_len(&self) -> Result<usize, SampleError> {
        let (h, w) = self.model.config.height_width().ok_or(SampleError::NoSize)?;
        Ok(h * w * self.model.config.in_channels)
    }

    fn walked(&mut self, x: &[f32], table: StepTable, rows: Range<usize>) -> Result<Vec<f32>, SampleError> {
        self.each_batch(x, table, &mut |walk, indices, x, on_step| {
            walk.start(indices.clone(), rows.start, x)?;
            for _ in rows.clone() {
                walk.step()?;
                on_step(indices.len())?;
            }
            walk.x()
        })
    }

    /// Edits batch by batch: `edit` gets the loop, the numbers of the images, and these.
    fn each_batch(&mut self, images: &[f32], table: StepTable, edit: &mut Edit<'_>) -> Result<Vec<f32>, SampleError> {
        let length = self.image_len()?;
        assert!(images.len().is_multiple_of(length), "not a whole number of images");
        let count = images.len() / length;
        let EditOptions { guide, seed, batch, .. } = self.options;
        let batch = batch.clamp(1, count.max(1));
        let mut walk = Walk::new(self.model, table, guide, seed, batch, self.backend)?;
        let mut edited = Vec::with_capacity(images.len());
        for first in (0..count).step_by(batch) {
            let indices = first..count.min(first + batch);
            let part = &images[indices.start * length..indices.end * length];
            let mut on_step = |images| if (self.on_step)(images) { Ok(()) } else { Err(SampleError::Stopped) };
            edited.extend(edit(&mut walk, indices, part, &mut on_step)?);
        }
        Ok(edited)
    }
}

/// Edits one batch.
type Edit<'a> = dyn FnMut(
        &mut Walk,
        Range<usize>,
        &[f32],
        &mut dyn FnMut(usize) -> Result<(), SampleError>,
    ) -> Result<Vec<f32>, SampleError>
    + 'a;

/// The row from which the last `strength` of `rows` rows start; at least one where the strength is not 0.
fn first_row(rows: usize, strength: f64) -> Result<usize, SampleError> {
    if !(0.0..=1.0).contains(&strength) {
        return Err(SampleError::Condition(format!("the strength {strength} is not between 0 and 1")));
    }
    let taken = (rows as f64 * strength).round() as usize;
    Ok(rows - if strength > 0.0 { taken.max(1) } else { taken })
}

/// Normal noise for some images, NHWC.
fn noise(seed: u64, stream: Stream, indices: &Range<usize>, step: u32, length: usize) -> Vec<f32> {
    let mut z = vec![0.0; indices.len() * length];
    for (image, index) in z.chunks_mut(length).zip(indices.clone()) {
        Sequence::new(seed, stream, index as u32, step).fill_normal(image);
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strength_is_a_share_of_the_steps() {
        let rows = |strength| first_row(50, strength).unwrap();
        assert_eq!([0.0, 0.001, 0.5, 0.99, 1.0].map(rows), [50, 49, 25, 0, 0]);
        for strength in [-0.1, 1.1, f64::NAN] {
            assert!(first_row(50, strength).is_err());
        }
    }
}
