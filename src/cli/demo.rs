//! `warpdiff demo`: the whole road on the embedded digits, in minutes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::device::DeviceArgs;
use super::nll::Summary;
use super::presets::Preset;
use super::progress::Progress;
use super::{interrupt, sample, train};
use crate::backend::Backend;
use crate::data::{Dataset, Digits};
use crate::diffusion::{BetaConfig, SamplerKind, SchedulerConfig};
use crate::evaluate::{EvaluateOptions, evaluate};
use crate::io::gif::{Timing, write_gif};
use crate::io::plot::LossPlot;
use crate::model::ModelFolder;
use crate::sample::{LabelChoice, SampleOptions, Sampler};
use crate::train::{Decay, Ema, EmaWarmup, Existing, NewRun, RunEnd, TrainOptions, Trainer};
use crate::unet::UNetConfig;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where everything goes; an earlier demo there is replaced.
    #[arg(long, default_value = "out/demo", value_name = "DIR")]
    out: PathBuf,
    /// Training steps.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Seed of training and sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print a summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Samples of the pictures: ten of each digit.
const SAMPLES: usize = 100;
/// Samples of the animation.
const ANIMATED: usize = 40;
/// Images and timesteps of the bound; enough for two digits.
const EVALUATED: (usize, usize) = (256, 32);

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let backend = args.device.backend()?;
    interrupt::listen()?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let dataset: Arc<dyn Dataset> = Arc::new(Digits::load()?);
    let folder = args.out.join("model");
    let begin = Instant::now();
    let mut trainer = trainer(args, backend.as_ref(), Arc::clone(&dataset), &folder)?;
    let (end, last) = train::train(&mut trainer, quiet)?;
    if let RunEnd::Interrupted { step } = end {
        let folder = folder.display();
        eprintln!("stopped after step {step}; go on with: warpdiff train digits --out {folder} --resume");
        return Ok(ExitCode::from(interrupt::INTERRUPTED));
    }
    let train_seconds = begin.elapsed().as_secs_f64();
    let points: Vec<(f64, f64)> = trainer.log().iter().map(|r| (r.step as f64, r.loss)).collect();
    LossPlot { log_y: true, ..LossPlot::new("training loss, embedded digits", &points) }
        .write_png(&args.out.join("loss.png"))?;
    drop(trainer);

    let model = ModelFolder::open(&folder)?;
    let sample_seconds = pictures(args, &model, &dataset.class_names(), backend.as_ref(), quiet)?;
    let summary = bound(&model, dataset.as_ref(), backend.as_ref(), quiet)?;
    let rate = SAMPLES as f64 / sample_seconds;
    if args.json {
        let value = serde_json::json!({
            "steps": args.steps, "loss": last.map(|r| r.loss), "train_seconds": train_seconds,
            "sample_img_s": rate, "bits_per_dim": summary.bits_per_dim,
            "seconds": begin.elapsed().as_secs_f64(), "out": args.out,
        });
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    let examples = 64.0 * args.steps as f64;
    println!("trained   {} steps in {train_seconds:.0} s ({:.0} img/s)", args.steps, examples / train_seconds);
    println!("sampled   {SAMPLES} images in {sample_seconds:.1} s, DDIM with 50 steps ({rate:.0} img/s)");
    summary.print();
    let out = args.out.display();
    println!("look at   {out}/samples.png  {out}/denoising.gif  {out}/loss.png");
    println!("next      warpdiff sample {out}/model --num 16 --label 7 --guidance 2 --out sevens.png");
    Ok(ExitCode::SUCCESS)
}

fn trainer(args: &Args, backend: &dyn Backend, dataset: Arc<dyn Dataset>, folder: &Path) -> Result<Trainer> {
    let classes = dataset.num_classes().unwrap_or_default();
    let config =
        UNetConfig { num_class_embeds: Some(classes + 1), null_class: Some(classes), ..Preset::DigitsSmall.config() };
    let scheduler = SchedulerConfig { betas: BetaConfig::cosine(1000), ..SchedulerConfig::new(SamplerKind::Ddim) };
    let options = TrainOptions {
        steps: args.steps,
        batch_size: 64,
        learning_rate: 2e-3,
        warmup_steps: 100,
        decay: Decay::Cosine { final_learning_rate: 1e-5 },
        weight_decay: 1e-4,
        ema: Ema { max_decay: 0.995, warmup: EmaWarmup::Rational },
        label_dropout: 0.1,
        seed: args.seed,
        checkpoint_every: 500,
        ..TrainOptions::default()
    };
    let run = NewRun {
        backend,
        config,
        scheduler,
        dataset,
        options,
        folder: folder.to_path_buf(),
        existing: Existing::Overwrite,
    };
    Ok(Trainer::new(run)?)
}

/// Writes the grid and the animation; returns the seconds that sampling took.
fn pictures(args: &Args, model: &ModelFolder, names: &[String], backend: &dyn Backend, quiet: bool) -> Result<f64> {
    let options = SampleOptions {
        scheduler: model.scheduler.clone(),
        steps: 50,
        eta: 0.0,
        seed: args.seed,
        labels: LabelChoice::Balanced,
        guidance: 1.0,
        guidance_rescale: 0.0,
        batch: SAMPLES,
    };
    let mut sampler = Sampler::new(model, options, backend)?;
    let labels = sampler.labels(0..SAMPLES)?;
    let steps = sampler.steps();
    let mut progress = Progress::new("sampling", "evals", 0, (SAMPLES * steps) as u64, quiet);
    let begin = Instant::now();
    let frames =
        sample::frames(&mut sampler, SAMPLES, &mut |step, count| progress.at(((step + 1) * count) as u64, ""))?;
    let seconds = begin.elapsed().as_secs_f64();
    progress.finish();
    let [c, h, w] = sampler.image_shape();
    let draw = |name: &str, frame: &[u8], count: usize| {
        let (pictures, labels) = (&frame[..count * c * h * w], labels.as_deref().map(|l| &l[..count]));
        sample::grid(&args.out.join(name), pictures, &sampler, labels, Some(names), Some(names.len()))
    };
    if let Some(last) = frames.last() {
        draw("samples.png", last, SAMPLES)?.write_png(&args.out.join("samples.png"))?;
    }
    let canvases = frames.iter().map(|f| draw("denoising.gif", f, ANIMATED)).collect::<Result<Vec<_>>>()?;
    write_gif(&args.out.join("denoising.gif"), canvases, Timing::default())?;
    Ok(seconds)
}

fn bound(model: &ModelFolder, data: &dyn Dataset, backend: &dyn Backend, quiet: bool) -> Result<Summary> {
    let options = EvaluateOptions { images: EVALUATED.0, strata: Some(EVALUATED.1), batch: 128, seed: 0 };
    let mut progress = Progress::new("bits/dim", "evals", 0, (EVALUATED.0 * (EVALUATED.1 + 1)) as u64, quiet);
    let evaluation = evaluate(model, data, &options, backend, &mut |done, _| progress.at(done as u64, ""))?;
    progress.finish();
    Ok(Summary::of(&evaluation.images))
}
