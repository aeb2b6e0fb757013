//! `warpdiff edit`: what a model makes of images that are given.

mod images;
mod img2img;
mod inpaint;
mod interpolate;
mod output;
mod reconstruct;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;

use super::device::DeviceArgs;
use super::interrupt;
use super::model::ModelArgs;
use super::progress::Progress;
use crate::backend::Backend;
use crate::diffusion::{Compat, SamplerKind, SchedulerConfig};
use crate::model::ModelFolder;
use crate::sample::{EditOptions, Editor, Guide, SampleError};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Fill in a part of an image so that it fits the rest (RePaint).
    Inpaint(inpaint::Args),
    /// Noise an image part of the way, and sample from there (SDEdit).
    Img2img(img2img::Args),
    /// Go from one image to another through the latents between theirs.
    Interpolate(interpolate::Args),
    /// Encode an image by DDIM inversion, decode it, and report the error.
    Reconstruct(reconstruct::Args),
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let done = match &args.what {
        What::Inpaint(args) => inpaint::run(args, quiet),
        What::Img2img(args) => img2img::run(args, quiet),
        What::Interpolate(args) => interpolate::run(args, quiet),
        What::Reconstruct(args) => reconstruct::run(args, quiet),
    };
    match done {
        Err(error) if matches!(error.downcast_ref(), Some(SampleError::Stopped)) => {
            eprintln!("interrupted: nothing was written");
            Ok(ExitCode::from(interrupt::INTERRUPTED))
        }
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

/// How to edit, and where the result goes.
#[derive(clap::Args)]
struct Options {
    /// Steps from pure noise to an image.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Seed of all noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The class of the result; without it a class-conditional model uses its null class.
    #[arg(long)]
    label: Option<u32>,
    /// Classifier-free guidance scale towards the label; 1 is none.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    /// Images computed at once.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Cut, scale and convert pictures to the model's size and channels.
    #[arg(long)]
    fit: bool,
    /// Where the result goes, by extension: .png (with the input beside it), .npz, .safetensors, or none for a folder of PNGs.
    #[arg(long, default_value = "edited.png")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print a summary as JSON.
    #[arg(long)]
    json: bool,
}

/// A model that is ready to edit.
struct Job<'a> {
    options: &'a Options,
    model: ModelFolder,
    backend: Box<dyn Backend>,
    scheduler: SchedulerConfig,
    quiet: bool,
}

impl<'a> Job<'a> {
    fn open(model: &ModelArgs, options: &'a Options, quiet: bool) -> Result<Self> {
        output::check(&options.out)?;
        let backend = options.device.backend()?;
        interrupt::listen()?;
        let model = model.open()?;
        if model.scheduler.sampler == SamplerKind::ScoreSde {
            bail!(
                "edits walk a chain of betas, and the model's scheduler, {}, has none; `warpdiff sample` draws from it",
                model.scheduler.sampler.class_name()
            );
        }
        let mut scheduler = model.scheduler.with_sampler(SamplerKind::Ddim);
        if scheduler.compat == Compat::GuidedDiffusion {
            // Edits walk the training timesteps, which a respaced chain has not.
            scheduler.compat = Compat::Paper;
        }
        if options.guidance.is_finite() {
            Ok(Self { options, model, backend, scheduler, quiet: quiet || options.json })
        } else {
            bail!("the guidance scale {} is not finite", options.guidance)
        }
    }

    /// The same without a limit on x_0: a clipped step forgets what it clipped, and the way back cannot know it.
    fn unclipped(mut self) -> Self {
        self.scheduler.clip_sample = false;
        self.scheduler.thresholding = false;
        self
    }

    /// Channels, height and width of the model's images.
    fn image_shape(&self) -> Result<[usize; 3]> {
        let (h, w) = self.model.config.height_width().ok_or(SampleError::NoSize)?;
        Ok([self.model.config.image_channels(), h, w])
    }

    /// Runs `edit`, which evaluates the network for `evaluations` images in all.
    fn edit<T>(
        &self,
        eta: f64,
        evaluations: usize,
        edit: impl FnOnce(&mut Editor<'_>) -> Result<T, SampleError>,
    ) -> Result<T> {
        let [_, h, w] = self.image_shape()?;
        let Options { steps, seed, label, guidance, batch, .. } = *self.options;
        let options = EditOptions {
            scheduler: self.scheduler.clone(),
            steps: steps as usize,
            eta,
            seed,
            guide: Guide { label, scale: (guidance != 1.0).then_some(guidance) },
            batch: batch.map_or((16_384 / (h * w)).max(1), |batch| batch as usize),
        };
        let mut progress = Progress::new("editing", "evals", 0, evaluations as u64, self.quiet);
        let mut done = 0;
        let mut on_step = |images: usize| {
            done += images as u64;
            progress.at(done, "");
            !interrupt::asked()
        };
        let edited =
            edit(&mut Editor { model: &self.model, options, backend: self.backend.as_ref(), on_step: &mut on_step })?;
        progress.finish();
        Ok(edited)
    }
}
