//! `warpdiff edit reconstruct`.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::output::{Edited, side_by_side, write};
use super::{Job, ModelArgs, Options, images};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Images: PNG, JPEG, or .npz.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// How far into noise: the share of the steps. The last levels before pure noise hold next to nothing of the image.
    #[arg(long, default_value_t = 0.95)]
    strength: f64,
    #[command(flatten)]
    options: Options,
}

/// How far an image is from its reconstruction, and how much its latent is like noise.
#[derive(Clone, Copy, Debug, Serialize)]
struct Error {
    /// Root of the mean squared error, of values in [-1, 1].
    rmse: f64,
    /// 20 log10(2 / rmse), in dB.
    psnr: f64,
    /// Mean and standard deviation of the latent; those of noise are 0 and 1.
    latent_mean: f64,
    latent_std: f64,
}

impl Error {
    fn of(image: &[f32], back: &[f32], latent: &[f32]) -> Self {
        let n = image.len() as f64;
        let squares = image.iter().zip(back).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>();
        let mean = latent.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = latent.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let rmse = (squares / n).sqrt();
        Self { rmse, psnr: 20.0 * (2.0 / rmse).log10(), latent_mean: mean, latent_std: variance.sqrt() }
    }
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<()> {
    let job = Job::open(&args.model, &args.options, quiet)?.unclipped();
    let shape = job.image_shape()?;
    let length = shape.iter().product::<usize>();
    let images = images::read(&args.images, shape, args.options.fit)?;
    let steps = (f64::from(args.options.steps) * args.strength).round() as usize;
    let evaluations = 2 * steps * images.len() / length;
    let (latents, results) = job.edit(0.0, evaluations, |editor| {
        let latents = editor.encoded(&images, args.strength)?;
        let back = editor.sampled(&latents, args.strength)?;
        Ok((latents, back))
    })?;
    let thirds = images.chunks_exact(length).zip(results.chunks_exact(length)).zip(latents.chunks_exact(length));
    let errors: Vec<Error> = thirds.map(|((image, back), latent)| Error::of(image, back, latent)).collect();
    let sheet = side_by_side(&[(&images, 1), (&latents, 1), (&results, 1)], length);
    let settings = json!({ "kind": "reconstruct", "strength": args.strength });
    write(&job, &Edited { results, sheet, columns: 3, settings })?;
    if args.options.json {
        println!("{}", json!({ "evaluations": evaluations, "out": args.options.out, "errors": errors }));
    } else {
        println!("image      rmse   psnr dB   latent mean   latent std");
        for (i, Error { rmse, psnr, latent_mean, latent_std }) in errors.iter().enumerate() {
            println!("{i:>5}  {rmse:>8.5}  {psnr:>8.2}  {latent_mean:>12.4}  {latent_std:>11.4}");
        }
    }
    Ok(())
}
