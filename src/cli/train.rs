//! `warpdiff train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::device::DeviceArgs;
use super::presets::Preset;
use super::progress::Progress;
use super::{interrupt, parse};
use crate::data::{self, Dataset, OpenOptions};
use crate::diffusion::{
    BetaConfig, BetaSchedule, LossWeighting, Objective, PredictionType, SamplerKind, SchedulerConfig, VarianceType,
};
use crate::train::{Checkpoint, Decay, Ema, EmaWarmup, Existing, NewRun, RunEnd, StepReport, TrainOptions, Trainer};
use crate::unet::{SampleSize, UNetConfig};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveArg {
    /// Squared error of the prediction.
    Simple,
    /// The same plus T/1000 of the bound, which trains a learned variance.
    Hybrid,
    /// The variational bound alone.
    Vlb,
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Data: `digits` (embedded), a folder of MNIST-style IDX files or CIFAR-10 binary batches, or a folder of images with
    /// one sub-folder per class.
    dataset: String,
    /// Where checkpoints go: a model folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on where the checkpoint in --out stopped, with its options; --steps may extend the run.
    #[arg(long)]
    resume: bool,
    /// Replace an earlier run in --out.
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the last step as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// A network known by name; chosen by the image size when nothing is said.
    #[arg(long, value_enum, conflicts_with = "config")]
    preset: Option<Preset>,
    /// A network from a diffusers config.json.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Condition on the classes of the data.
    #[arg(long)]
    class_conditional: bool,
    /// Dropout in the residual blocks.
    #[arg(long, value_name = "P")]
    dropout: Option<f64>,
    /// Resize and crop images of a folder to this side.
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Diffusion")]
struct DiffusionArgs {
    /// Noise schedule: linear, scaled_linear, squaredcos_cap_v2 (or cosine), sigmoid.
    #[arg(long, default_value = "linear", value_parser = parse::schedule)]
    schedule: BetaSchedule,
    /// Timesteps T.
    #[arg(long, default_value_t = 1000)]
    timesteps: usize,
    /// What the network predicts: epsilon, sample or v_prediction.
    #[arg(long, default_value = "epsilon", value_parser = parse::prediction)]
    prediction: PredictionType,
    /// Let the network learn the variance of the reverse steps; use it with --objective hybrid or vlb.
    #[arg(long)]
    learned_variance: bool,
    /// What is minimised.
    #[arg(long, value_enum, default_value = "simple")]
    objective: ObjectiveArg,
    /// Weight timesteps by min(SNR, GAMMA); 5 is usual.
    #[arg(long, value_name = "GAMMA")]
    min_snr: Option<f64>,
    /// Probability of training without the label, for classifier-free guidance; needs --class-conditional.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    label_dropout: f64,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Optimiser")]
struct OptimizerArgs {
    /// Updates of the weights.
    #[arg(long)]
    steps: Option<u64>,
    /// Examples per step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Learning rate after the warm-up.
    #[arg(long, default_value_t = 2e-4)]
    lr: f64,
    /// Steps of linear warm-up.
    #[arg(long, default_value_t = 500)]
    warmup: u64,
    /// Let the learning rate fall along half a cosine to this value.
    #[arg(long, value_name = "LR")]
    cosine_to: Option<f64>,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Largest global norm of the gradients; 0 leaves them alone.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Largest decay of the moving average of the weights.
    #[arg(long, default_value_t = 0.9999)]
    ema_decay: f64,
    /// Mirror every other image.
    #[arg(long)]
    flip: bool,
    /// Seed of weights, order, noise, timesteps, flips and dropout.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 1000, value_name = "STEPS")]
    checkpoint_every: u64,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let backend = args.device.backend()?;
    interrupt::listen()?;
    let size = args.network.size.map(|s| (s, s));
    let dataset: Arc<dyn Dataset> =
        Arc::from(data::open(&args.dataset, &OpenOptions { size, ..OpenOptions::default() })?);
    let (h, w) = (dataset.height(), dataset.width());
    if size.is_some_and(|s| s != (h, w)) {
        bail!("--size: {} has {h}x{w} images; only image folders are resized", args.dataset);
    }
    let mut trainer = if args.resume {
        let mut options = Checkpoint::open(&args.out)?.state.options;
        options.steps = args.optimizer.steps.unwrap_or(options.steps);
        Trainer::resume(backend.as_ref(), &args.out, dataset, options)?
    } else {
        let (config, scheduler) = model(args, dataset.as_ref())?;
        Trainer::new(NewRun {
            backend: backend.as_ref(),
            config,
            scheduler,
            dataset,
            options: options(args),
            folder: args.out.clone(),
            existing: if args.overwrite { Existing::Overwrite } else { Existing::Refuse },
        })?
    };
    if !quiet {
        let weights: usize = trainer.params().iter().map(|p| p.numel()).sum();
        let mib = trainer.executable().memory_bytes() >> 20;
        eprintln!("{:.2} M parameters, {mib} MiB on {}", weights as f64 / 1e6, backend.name());
    }
    let (end, last) = train(&mut trainer, quiet)?;
    if let (true, Some(r)) = (args.json, last) {
        println!(
            "{}",
            serde_json::json!({"step": r.step, "loss": r.loss, "simple": r.simple, "vb": r.vb, "out": args.out})
        );
    }
    let out = args.out.display();
    match end {
        RunEnd::Finished { .. } => {
            if !quiet {
                eprintln!("checkpoint in {out}; next: warpdiff sample {out} --num 64 --out samples.png");
            }
            Ok(ExitCode::SUCCESS)
        }
        RunEnd::Interrupted { step } => {
            eprintln!("stopped after step {step}; go on with: warpdiff train {} --out {out} --resume", args.dataset);
            Ok(ExitCode::from(interrupt::INTERRUPTED))
        }
    }
}

/// Runs a trainer to its end, or to Ctrl-C, and shows how it goes.
pub(super) fn train(trainer: &mut Trainer, quiet: bool) -> Result<(RunEnd, Option<StepReport>)> {
    let mut progress = Progress::new("training", "steps", trainer.steps_done(), trainer.options().steps, quiet);
    let (mut smooth, mut last) = (None::<f64>, None);
    let end = trainer.run(&interrupt::asked, &mut |r| {
        let average = smooth.map_or(r.loss, |s| 0.98 * s + 0.02 * r.loss);
        smooth = Some(average);
        last = Some(*r);
        progress.at(r.step, &format!("loss {average:.4}"));
    });
    progress.finish();
    Ok((end?, last))
}

/// The network and the noise schedule that the arguments ask for.
fn model(args: &Args, dataset: &dyn Dataset) -> Result<(UNetConfig, SchedulerConfig)> {
    let (n, d) = (&args.network, &args.diffusion);
    let mut config = match (&n.config, n.preset) {
        (Some(path), _) => read_config(path)?,
        (None, preset) => preset.unwrap_or(Preset::for_size(dataset.height(), dataset.width())).config(),
    };
    config.sample_size = Some(SampleSize::HeightWidth([dataset.height(), dataset.width()]));
    if dataset.height() == dataset.width() {
        config.sample_size = Some(SampleSize::Side(dataset.height()));
    }
    config.in_channels = dataset.channels();
    config.out_channels = dataset.channels() * if d.learned_variance { 2 } else { 1 };
    if let Some(p) = n.dropout {
        config.dropout = p;
    }
    if n.class_conditional {
        let Some(classes) = dataset.num_classes() else {
            bail!("{} has no classes; put the images of each class into a sub-folder of its own", args.dataset);
        };
        config.null_class = (d.label_dropout > 0.0).then_some(classes);
        config.num_class_embeds = Some(classes + usize::from(config.null_class.is_some()));
    } else if d.label_dropout > 0.0 {
        bail!("--label-dropout needs --class-conditional");
    }
    let scheduler = SchedulerConfig {
        betas: BetaConfig { schedule: d.schedule, num_train_timesteps: d.timesteps, ..BetaConfig::default() },
        prediction_type: d.prediction,
        variance_type: if d.learned_variance { VarianceType::LearnedRange } else { VarianceType::FixedSmall },
        ..SchedulerConfig::new(SamplerKind::Ddpm)
    };
    Ok((config, scheduler))
}

fn read_config(path: &Path) -> Result<UNetConfig> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    UNetConfig::from_json(&text).with_context(|| format!("cannot use {}", path.display()))
}

fn options(args: &Args) -> TrainOptions {
    let (d, o) = (&args.diffusion, &args.optimizer);
    TrainOptions {
        steps: o.steps.unwrap_or(10_000),
        batch_size: o.batch,
        learning_rate: o.lr,
        warmup_steps: o.warmup,
        decay: o.cosine_to.map_or(Decay::Constant, |lr| Decay::Cosine { final_learning_rate: lr }),
        weight_decay: o.weight_decay,
        max_grad_norm: (o.clip != 0.0).then_some(o.clip),
        ema: Ema { max_decay: o.ema_decay, warmup: EmaWarmup::Rational },
        label_dropout: d.label_dropout,
        flip: o.flip,
        objective: match d.objective {
            ObjectiveArg::Simple => Objective::Simple,
            ObjectiveArg::Hybrid => Objective::hybrid(d.timesteps),
            ObjectiveArg::Vlb => Objective::Vlb,
        },
        weighting: d.min_snr.map_or(LossWeighting::None, |gamma| LossWeighting::MinSnr { gamma }),
        seed: o.seed,
        checkpoint_every: o.checkpoint_every,
        ..TrainOptions::default()
    }
}
