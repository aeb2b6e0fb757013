//! `warpdiff edit interpolate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;

use super::output::{Edited, write};
use super::{Job, ModelArgs, Options, images};
use crate::diffusion::interpolation::slerp;

/// How an image gets a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Encoder {
    /// DDIM inversion: deterministic, both ends come back.
    Ddim,
    /// Noise, q(x_t given x_0): the more of it, the freer the way.
    Noise,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The first image: PNG or JPEG.
    from: PathBuf,
    /// The last image.
    to: PathBuf,
    /// Images on the way, both ends included.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..))]
    num: u32,
    /// How the images get their latents.
    #[arg(long, value_enum, default_value = "ddim")]
    encode: Encoder,
    /// How far into noise: the share of the steps. The last levels before pure noise hold next to nothing of an image.
    #[arg(long, default_value_t = 0.95)]
    strength: f64,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<()> {
    let job = Job::open(&args.model, &args.options, quiet)?;
    let job = if args.encode == Encoder::Ddim { job.unclipped() } else { job };
    let shape = job.image_shape()?;
    let length = shape.iter().product::<usize>();
    let ends = images::read(&[args.from.clone(), args.to.clone()], shape, args.options.fit)?;
    if ends.len() != 2 * length {
        bail!("an interpolation goes from one image to another; {} were given", ends.len() / length);
    }
    let num = args.num as usize;
    let steps = (f64::from(args.options.steps) * args.strength).round() as usize;
    let encoded = if args.encode == Encoder::Ddim { 2 * steps } else { 0 };
    let results = job.edit(0.0, encoded + num * steps, |editor| {
        let latents = match args.encode {
            Encoder::Ddim => editor.encoded(&ends, args.strength)?,
            Encoder::Noise => editor.noised(&ends, args.strength)?,
        };
        let (first, last) = latents.split_at(length);
        let share = |k: usize| k as f64 / (num - 1) as f64;
        let way: Vec<f32> = (0..num).flat_map(|k| slerp(first, last, share(k))).collect();
        editor.sampled(&way, args.strength)
    })?;
    let sheet = [&ends[..length], &results, &ends[length..]].concat();
    let encoder = if args.encode == Encoder::Ddim { "ddim" } else { "noise" };
    let settings = json!({ "kind": "interpolate", "encode": encoder, "strength": args.strength });
    write(&job, &Edited { results, sheet, columns: num + 2, settings })?;
    if args.options.json {
        println!("{}", json!({ "evaluations": encoded + num * steps, "out": args.options.out }));
    }
    Ok(())
}
