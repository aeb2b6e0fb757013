//! `warpdiff nll`: bits per dimension.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::progress::Progress;
use crate::data::{self, OpenOptions, Split};
use crate::evaluate::{EvaluateOptions, ImageBound, evaluate, mean_and_error};

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
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Means over the images, in bits/dim unless said otherwise.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Summary {
    images: usize,
    pub bits_per_dim: f64,
    standard_error: f64,
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
        let mean = |f: fn(&ImageBound) -> f64| mean_and_error(bounds.iter().map(f)).0;
        let (bits_per_dim, standard_error) = mean_and_error(bounds.iter().map(ImageBound::total));
        Self {
            images: bounds.len(),
            bits_per_dim,
            standard_error,
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
        println!("bits/dim  {:.4} +- {:.4} ({} images)", self.bits_per_dim, self.standard_error, self.images);
        println!("  L_T             {:<10.3e} how far x_T is from the prior", self.l_t);
        println!("  L_1..L_(T-1)    {:<10.4} rate", self.l_diffusion);
        println!(
            "  L_0             {:<10.3e} distortion ({:.3e} with the tanh approximation)",
            self.l_0, self.l_0_tanh
        );
        println!("mean squared error: eps {:.6}, x_0 {:.6}", self.eps_mse, self.x0_mse);
    }
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
    let bounds = evaluate(&model, data.as_ref(), &options, backend.as_ref(), &mut |done, total| {
        progress
            .get_or_insert_with(|| Progress::new("evaluating", "evals", 0, total as u64, quiet || args.json))
            .at(done as u64, "");
    })?;
    if let Some(p) = &progress {
        p.finish();
    }
    let summary = Summary::of(&bounds);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print();
    }
    Ok(ExitCode::SUCCESS)
}
