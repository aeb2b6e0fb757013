//! `warpdiff nll`: bits per dimension.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::progress::Progress;
use crate::data::{self, OpenOptions, Split};
use crate::evaluate::{Estimate, EvaluateOptions, Evaluation, ImageBound, TimestepTerms, evaluate};
use crate::io::curves::{Curves, Panel};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitArg {
    Train,
    Test,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Data, as for `train`.
    dataset: String,
    /// Images to evaluate, the first ones; all of them by default.
    #[arg(long)]
    num: Option<usize>,
    /// Timesteps per image, drawn from as many parts of 1..T; all of them by default, which is exact.
    #[arg(long)]
    timesteps: Option<usize>,
    /// Network evaluations at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Seed of noise and timesteps.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which part of the data, where there are two.
    #[arg(long, value_enum, default_value = "train")]
    split: SplitArg,
    #[command(flatten)]
    device: DeviceArgs,
    /// Draw the terms over the timesteps: bits/dim, errors of eps and of x_0.
    #[arg(long, value_name = "FILE.png")]
    plot: Option<PathBuf>,
    /// Print the result as JSON, with the terms of every timestep.
    #[arg(long)]
    json: bool,
}

/// Means over the images, in bits/dim unless said otherwise.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Summary {
    images: usize,
    pub bits_per_dim: f64,
    standard_error: f64,
    /// Of 95% confidence, over images.
    interval_95: Option<(f64, f64)>,
    l_t: f64,
    l_diffusion: f64,
    l_0: f64,
    l_0_tanh: f64,
    /// Mean squared errors.
    x0_mse: f64,
    eps_mse: f64,
}

impl Summary {
    pub fn of(bounds: &[ImageBound]) -> Self {
        let mean = |f: fn(&ImageBound) -> f64| Estimate::of(bounds.iter().map(f)).mean;
        let total = Estimate::of(bounds.iter().map(ImageBound::total));
        Self {
            images: bounds.len(),
            bits_per_dim: total.mean,
            standard_error: total.standard_error,
            interval_95: total.interval_95,
            l_t: mean(|b| b.prior),
            l_diffusion: mean(|b| b.diffusion),
            l_0: mean(|b| b.decoder),
            l_0_tanh: mean(|b| b.decoder_tanh),
            x0_mse: mean(|b| b.x0_mse),
            eps_mse: mean(|b| b.eps_mse),
        }
    }

    /// The decomposition, one term a line.
    pub fn print(&self) {
        match self.interval_95 {
            Some((low, high)) => println!(
                "bits/dim  {:.4} (95% interval over {} images: {low:.4} to {high:.4})",
                self.bits_per_dim, self.images
            ),
            None => println!("bits/dim  {:.4} (one image)", self.bits_per_dim),
        }
        println!("  L_T             {:<10.3e} how far x_T is from the prior", self.l_t);
        println!("  L_1..L_(T-1)    {:<10.4} rate", self.l_diffusion);
        println!(
            "  L_0             {:<10.3e} distortion ({:.3e} with the tanh approximation)",
            self.l_0, self.l_0_tanh
        );
        println!("mean squared error: eps {:.6}, x_0 {:.6}", self.eps_mse, self.x0_mse);
    }
}

/// Everything that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: Summary,
    timesteps: &'a [TimestepTerms],
}

/// Lines of the table.
const LINES: usize = 10;

/// The terms, a tenth of the timesteps a line: sums of bits, means of errors.
fn print_timesteps(timesteps: &[TimestepTerms]) {
    println!("{:>11}  {:>10}  {:>10}  {:>11}  {:>10}", "timesteps", "mean L_t", "eps MSE", "implied eps", "x_0 MSE");
    for group in timesteps.chunks(timesteps.len().div_ceil(LINES)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let mean = |f: fn(&TimestepTerms) -> f64| group.iter().map(f).sum::<f64>() / group.len() as f64;
        println!(
            "{:>11}  {:>10.3e}  {:>10.3e}  {:>11.3e}  {:>10.3e}",
            if first.t == last.t { first.t.to_string() } else { format!("{}..{}", first.t, last.t) },
            mean(|t| t.bits_per_dim),
            mean(|t| t.eps_mse),
            mean(|t| t.implied_eps_mse),
            mean(|t| t.x0_mse),
        );
    }
}

fn plot(path: &std::path::Path, model: &str, evaluation: &Evaluation) -> Result<()> {
    let summary = Summary::of(&evaluation.images);
    let curve = |f: fn(&TimestepTerms) -> f64| evaluation.timesteps.iter().map(|t| (t.t as f64, f(t))).collect();
    let panel = |name, points| Panel { name, points, log_y: true };
    let curves = Curves {
        title: format!("{model}: {:.4} bits/dim over {} images", summary.bits_per_dim, summary.images),
        x_name: "timestep",
        panels: vec![
            // L_0 is another kind of term, often many powers of ten away.
            panel("L_t in bits/dim", curve(|t| if t.t > 0 { t.bits_per_dim } else { f64::NAN })),
            panel("MSE of eps", curve(|t| t.eps_mse)),
            panel("MSE of x_0", curve(|t| t.x0_mse)),
        ],
    };
    Ok(curves.write_png(path)?)
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let backend = args.device.backend()?;
    let model = args.model.open()?;
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::Test => Split::Test,
    };
    let size = model.config.height_width();
    let data = data::open(&args.dataset, &OpenOptions { split, size, ..OpenOptions::default() })?;
    let options = EvaluateOptions {
        images: args.num.unwrap_or(data.len()),
        strata: args.timesteps,
        batch: args.batch as usize,
        seed: args.seed,
    };
    let mut progress = None;
    let evaluation = evaluate(&model, data.as_ref(), &options, backend.as_ref(), &mut |done, total| {
        progress
            .get_or_insert_with(|| Progress::new("evaluating", "evals", 0, total as u64, quiet || args.json))
            .at(done as u64, "");
    })?;
    if let Some(p) = &progress {
        p.finish();
    }
    if let Some(path) = &args.plot {
        let name = args.model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        plot(path, &name, &evaluation)?;
    }
    let summary = Summary::of(&evaluation.images);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&Report { summary, timesteps: &evaluation.timesteps })?);
    } else {
        summary.print();
        print_timesteps(&evaluation.timesteps);
    }
    Ok(ExitCode::SUCCESS)
}
