//! `warpdiff sample`.

mod stream;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::conditions::ConditionArgs;
use super::device::{Device, DeviceArgs};
use super::model::ModelArgs;
use super::progress::Progress;
use super::{interrupt, parse};
use crate::diffusion::{Algorithm, Compat, SamplerKind, SchedulerConfig};
use crate::io::gif::{Timing, write_gif};
use crate::io::grid::{GridStyle, draw_grid};
use crate::io::provenance::Provenance;
use crate::io::sink::OutputKind;
use crate::io::{Canvas, ImageBatch};
use crate::model::ModelFolder;
use crate::sample::{
    CALIBRATION_SAMPLES, CALIBRATION_STEPS, LabelChoice, SampleError, SampleOptions, Sampler, calibrate,
};
use crate::train::TrainingState;
use stream::{End, draw_batches, stream};

pub(super) use stream::Shard;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamplerArg {
    /// Ancestral sampling.
    Ddpm,
    /// Deterministic, or partly random with --eta.
    Ddim,
    /// DPM-Solver++ multistep, of the order in the model's file or 2: the fewest steps.
    #[value(name = "dpm++")]
    DpmSolverPp,
    /// DPM-Solver++ singlestep.
    #[value(name = "dpm++-single")]
    DpmSolverSinglestep,
    /// The SDE form of DPM-Solver++ multistep: random.
    #[value(name = "dpm++-sde")]
    DpmSolverSde,
    /// UniPC: DPM-Solver++ with a corrector that costs nothing.
    Unipc,
    /// Euler's method.
    Euler,
    /// Euler's method with noise added back: random.
    EulerA,
    /// Heun's method: two evaluations a step.
    Heun,
    /// Predictor and corrector of the variance-exploding SDE, of models that come with it: random.
    Ve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompatArg {
    /// The methods as published.
    Paper,
    /// diffusers, its known deviations included.
    Diffusers,
    /// guided-diffusion: ddpm and ddim over a respaced chain, pictures cut down to bytes.
    GuidedDiffusion,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Number of samples.
    #[arg(long, default_value_t = 64)]
    num: usize,
    /// The sampler; that of the model's scheduler_config.json when nothing is said.
    #[arg(long, value_enum)]
    sampler: Option<SamplerArg>,
    /// Steps per sample, each a network evaluation (with heun two); by default 50 for ddim, all timesteps for ddpm, else 20.
    #[arg(long)]
    steps: Option<usize>,
    /// The timesteps to keep, as guided-diffusion's --timestep_respacing: 250, ddim25, or 10,10,15 of three sections.
    #[arg(long, value_name = "SPEC", conflicts_with = "steps")]
    respacing: Option<String>,
    /// DDIM's eta: 0 deterministic, 1 as random as DDPM.
    #[arg(long, default_value_t = 0.0)]
    eta: f64,
    /// What counts where implementations depart from the published method (docs/samplers.md lists the places): paper, and
    /// guided-diffusion for a model of its own.
    #[arg(long, value_enum)]
    compat: Option<CompatArg>,
    /// Seed; sample i of a seed is the same in any batch.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A class, or `balanced` for all in turn.
    #[arg(long, default_value = "balanced", value_parser = parse::label)]
    label: LabelChoice,
    /// Classifier-free guidance scale; 1 is none.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    /// With guidance, how far predictions are brought back to the deviation of the conditional ones (2305.08891), 0 to 1.
    #[arg(long, default_value_t = 0.0, value_name = "PHI")]
    guidance_rescale: f64,
    /// Samples computed at once; on a GPU as many as fit its memory by default, up to 2^20 pixels.
    #[arg(long)]
    batch: Option<usize>,
    /// Where they go, by extension: .png (a grid), .npz (bytes, for evaluation), .safetensors (floats), .gif (of the
    /// denoising), or none for a folder of PNGs.
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    /// Go on with an interrupted run of the same options, if there is one.
    #[arg(long)]
    resume: bool,
    /// Make only part I of N parts, counted from 1, as OUT.shard-I-of-N; `join` puts them together.
    #[arg(long, value_name = "I/N", value_parser = parse::shard)]
    shard: Option<Shard>,
    #[command(flatten)]
    conditions: ConditionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print a summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Samples that a grid or an animation may hold.
const MAX_DRAWN: usize = 4096;

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let kind = OutputKind::of(&args.out)?;
    if args.num == 0 {
        bail!("--num 0: ask for at least one sample");
    }
    if u32::try_from(args.num).is_err() {
        bail!("--num {}: samples are numbered with 32 bits; ask for at most {}", args.num, u32::MAX);
    }
    let drawn = matches!(kind, OutputKind::Grid | OutputKind::Animation);
    if drawn && args.num > MAX_DRAWN {
        bail!("{} samples do not fit one picture; use .npz or a folder for more than {MAX_DRAWN}", args.num);
    }
    if drawn && (args.resume || args.shard.is_some()) {
        bail!(
            "one picture is drawn in one piece; --resume and --shard need an .npz, a .safetensors or a folder as --out"
        );
    }
    let (range, out) = match args.shard {
        Some(shard) => (shard.range(args.num), shard.name(&args.out)),
        None => (0..args.num, args.out.clone()),
    };
    if range.is_empty() {
        bail!("--num {} leaves nothing for this shard; ask for fewer shards", args.num);
    }
    let device = args.device.open()?;
    interrupt::listen()?;
    let model = args.model.open()?;
    let scheduler = scheduler(args, &model)?;
    let conditions = args.conditions.open(&model, args.model.reading.lenient)?;
    let steps = args.steps.unwrap_or(match scheduler.sampler {
        SamplerKind::Ddpm => scheduler.betas.num_train_timesteps,
        SamplerKind::Ddim => 50.min(scheduler.betas.num_train_timesteps),
        _ => 20.min(scheduler.betas.num_train_timesteps),
    });
    let options = SampleOptions {
        scheduler,
        steps,
        eta: args.eta,
        seed: args.seed,
        labels: args.label,
        guidance: args.guidance,
        guidance_rescale: args.guidance_rescale,
        batch: batch_size(args, range.len(), &model, kind)?,
    };
    let backend = device.calibrated(|bf16| {
        if !conditions.is_empty() {
            bail!("fp8 samples without a classifier and without low-resolution images; take --precision bf16");
        }
        let scales = calibrate(&model, &options, bf16)?;
        if !quiet && !args.json {
            eprintln!(
                "fp8: {} convolutions, their scales from {CALIBRATION_SAMPLES} samples in {CALIBRATION_STEPS} steps of bf16",
                scales.len()
            );
        }
        Ok(scales)
    })?;
    let mut settings =
        options.settings(&model, &conditions, args.num, (backend.name(), args.device.precision.name()))?;
    let mut sampler = match args.batch {
        Some(_) => Sampler::with_conditions(&model, options, conditions, backend.as_ref())?,
        None if kind == OutputKind::Animation => {
            Sampler::with_conditions(&model, options, conditions, backend.as_ref())?
        }
        None => Sampler::fitting(&model, options, conditions, backend.as_ref())?,
    };
    if sampler.mixes_images() {
        settings.insert("batch".into(), sampler.batch().into());
    }
    let names = TrainingState::read(&args.model.path)?.map(|s| s.dataset.class_names).filter(|n| !n.is_empty());
    let begin = Instant::now();
    let samples = range.len();
    let drawn = |done| if done { End::Complete(samples) } else { End::Interrupted("nothing was written".into()) };
    let end = match kind {
        OutputKind::Animation => drawn(animate(args, &mut sampler, names.as_deref(), quiet)?),
        OutputKind::Grid => {
            let pictures = draw_all(args, &mut sampler, quiet)?;
            if let Some(pictures) = &pictures {
                let labels = sampler.labels(0..args.num)?;
                let origin = Provenance { settings, range }.to_json();
                grid(&args.out, pictures, &sampler, labels.as_deref(), names.as_deref(), None)?
                    .write_png_with(&args.out, Some(&origin))?;
            }
            drawn(pictures.is_some())
        }
        OutputKind::Npz | OutputKind::Tensors | OutputKind::Folder => {
            stream(args, &out, range, settings, &mut sampler, quiet)?
        }
    };
    let drawn = match end {
        End::Complete(drawn) => drawn,
        End::Interrupted(what) => {
            eprintln!("interrupted: {what}");
            return Ok(ExitCode::from(interrupt::INTERRUPTED));
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    let rate = drawn as f64 / seconds;
    if args.json {
        let summary = serde_json::json!({
            "samples": samples, "drawn": drawn, "steps": sampler.steps(), "batch": sampler.batch(), "seed": args.seed,
            "seconds": seconds, "img_s": rate, "out": out,
        });
        println!("{summary}");
    } else if !quiet && drawn == 0 {
        eprintln!("{} is complete already: nothing to do", out.display());
    } else if !quiet {
        eprintln!("{drawn} samples in {seconds:.1} s ({rate:.1} img/s) -> {}", out.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn scheduler(args: &Args, model: &ModelFolder) -> Result<SchedulerConfig> {
    let kind = args.sampler.map(|s| match s {
        SamplerArg::Ddpm => SamplerKind::Ddpm,
        SamplerArg::Ddim => SamplerKind::Ddim,
        SamplerArg::DpmSolverPp | SamplerArg::DpmSolverSde => SamplerKind::DpmSolverPp,
        SamplerArg::DpmSolverSinglestep => SamplerKind::DpmSolverSinglestep,
        SamplerArg::Unipc => SamplerKind::UniPc,
        SamplerArg::Euler => SamplerKind::Euler,
        SamplerArg::EulerA => SamplerKind::EulerAncestral,
        SamplerArg::Heun => SamplerKind::Heun,
        SamplerArg::Ve => SamplerKind::ScoreSde,
    });
    let trained = model.scheduler.sampler;
    if kind.is_some_and(|kind| (kind == SamplerKind::ScoreSde) != (trained == SamplerKind::ScoreSde)) {
        bail!(
            "the model's scheduler is {}, and its network {}: leave --sampler away, or take another one",
            trained.class_name(),
            if trained == SamplerKind::ScoreSde {
                "gives scores at noise levels, which --sampler ve alone reads"
            } else {
                "does not give the scores that --sampler ve reads"
            }
        );
    }
    let mut scheduler = model.scheduler.with_sampler(kind.unwrap_or(model.scheduler.sampler));
    if scheduler.sampler == SamplerKind::DdimInverse {
        bail!("the model's scheduler is DDIM inversion, which encodes images: choose a --sampler");
    }
    if args.sampler == Some(SamplerArg::DpmSolverSde) {
        scheduler.dpm_solver.algorithm = Algorithm::SdeX0;
    }
    scheduler.compat = match args.compat {
        None => model.scheduler.compat,
        Some(CompatArg::Paper) => Compat::Paper,
        Some(CompatArg::Diffusers) => Compat::Diffusers,
        Some(CompatArg::GuidedDiffusion) => Compat::GuidedDiffusion,
    };
    if args.steps.is_some() {
        scheduler.respacing = None;
    }
    if let Some(spec) = &args.respacing {
        let respaced = matches!(scheduler.sampler, SamplerKind::Ddpm | SamplerKind::Ddim);
        if scheduler.compat != Compat::GuidedDiffusion || !respaced {
            bail!(
                "--respacing {spec}: ddpm and ddim are respaced, with --compat guided-diffusion; others take --steps"
            );
        }
        scheduler.respacing = Some(spec.clone());
    }
    Ok(scheduler)
}

/// Pixels of a batch that keep the caches of a CPU busy.
const PIXELS_ON_A_CPU: usize = 1 << 14;
/// Pixels of a batch beyond which a GPU gains nothing: its floors are flat from 256 images of 32x32 on.
const PIXELS_ON_A_GPU: usize = 1 << 20;

/// The batch that was asked for, or one of so many pixels as the device likes; split so that the last batch is as full as the
/// others. On a GPU it is an upper bound: what does not fit its memory is taken in smaller batches.
fn batch_size(args: &Args, samples: usize, model: &ModelFolder, kind: OutputKind) -> Result<usize> {
    if kind == OutputKind::Animation {
        return Ok(args.num);
    }
    let (h, w) = model.config.height_width().unwrap_or((32, 32));
    let pixels = if args.device.device == Device::Cuda { PIXELS_ON_A_GPU } else { PIXELS_ON_A_CPU };
    let batch = args.batch.unwrap_or((pixels / (h * w)).max(1));
    if batch == 0 {
        bail!("--batch 0: at least one sample must be computed at a time");
    }
    let batches = samples.div_ceil(batch);
    Ok(samples.div_ceil(batches))
}

fn progress(args: &Args, sampler: &Sampler, quiet: bool) -> Progress {
    Progress::new("sampling", "evals", 0, (args.num * sampler.steps()) as u64, quiet || args.json)
}

/// `None` for a run that was asked to stop.
fn unless_stopped<T>(result: Result<T, SampleError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(SampleError::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The pictures of all samples; `None` if somebody asked to stop.
fn draw_all(args: &Args, sampler: &mut Sampler, quiet: bool) -> Result<Option<Vec<u8>>> {
    let mut progress = progress(args, sampler, quiet);
    let mut pictures = Vec::new();
    let done = draw_batches(sampler, 0..args.num, 0, &mut progress, &mut |drawn| {
        pictures.extend(drawn.pictures()?);
        Ok(())
    })?;
    progress.finish();
    Ok(done.then_some(pictures))
}

/// A grid of pictures with the names of their classes; nearly square unless `columns` says otherwise.
pub(super) fn grid(
    path: &Path,
    pictures: &[u8],
    sampler: &Sampler,
    labels: Option<&[u32]>,
    names: Option<&[String]>,
    columns: Option<usize>,
) -> Result<Canvas> {
    let [c, h, w] = sampler.image_shape();
    let name = |&label: &u32| {
        let known = names.and_then(|n| n.get(label as usize));
        known.cloned().unwrap_or_else(|| label.to_string())
    };
    let text: Option<Vec<String>> = labels.map(|l| l.iter().map(name).collect());
    Ok(draw_grid(
        path,
        ImageBatch::from_bytes(pictures, c, h, w),
        text.as_deref(),
        GridStyle { columns, ..GridStyle::default() },
    )?)
}

/// At most this many frames: enough to see, few enough to load.
const FRAMES: usize = 50;

fn animate(args: &Args, sampler: &mut Sampler, names: Option<&[String]>, quiet: bool) -> Result<bool> {
    let mut progress = progress(args, sampler, quiet);
    let labels = sampler.labels(0..args.num)?;
    let frames = frames(sampler, args.num, &mut |step, count| progress.at(((step + 1) * count) as u64, ""));
    progress.finish();
    let Some(frames) = unless_stopped(frames)? else { return Ok(false) };
    let draw = |f: &Vec<u8>| grid(&args.out, f, sampler, labels.as_deref(), names, None);
    let canvases = frames.iter().map(draw).collect::<Result<Vec<_>>>()?;
    write_gif(&args.out, canvases, Timing::default())?;
    Ok(true)
}

/// The pictures of the first `count` samples along the way, the last frame the result.
pub(super) fn frames(
    sampler: &mut Sampler,
    count: usize,
    on_step: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<u8>>, SampleError> {
    let steps = sampler.steps();
    let every = steps.div_ceil(FRAMES);
    let mut frames = Vec::new();
    let last = sampler.run(0..count, &mut |step, pictures| {
        if (step + 1).is_multiple_of(every) || step + 1 == steps {
            frames.push(pictures());
        }
        on_step(step, count);
        !interrupt::asked() && frames.last().is_none_or(Result::is_ok)
    });
    // A frame that could not be fetched says why the run was stopped.
    let frames = frames.into_iter().collect::<Result<Vec<_>, _>>()?;
    last?;
    Ok(frames)
}
