//! `warpdiff edit img2img`.

use std::path::PathBuf;

use anyhow::Result;
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
    /// How far into noise: the share of the steps that are taken. 0 leaves the image, 1 leaves little of it.
    #[arg(long, default_value_t = 0.5)]
    strength: f64,
    /// Results for each image.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    num: u32,
    /// DDIM's eta: 0 deterministic after the first noise, 1 as random as DDPM.
    #[arg(long, default_value_t = 0.0)]
    eta: f64,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<()> {
    let job = Job::open(&args.model, &args.options, quiet)?;
    let shape = job.image_shape()?;
    let length = shape.iter().product::<usize>();
    let images = images::read(&args.images, shape, args.options.fit)?;
    let num = args.num as usize;
    let each: Vec<f32> = images.chunks_exact(length).flat_map(|image| image.repeat(num)).collect();
    let evaluations = (f64::from(args.options.steps) * args.strength).round() as usize * each.len() / length;
    let results = job.edit(args.eta, evaluations, |editor| editor.img2img(&each, args.strength))?;
    let sheet = side_by_side(&[(&images, 1), (&results, num)], length);
    let settings = json!({ "kind": "img2img", "strength": args.strength, "eta": args.eta });
    write(&job, &Edited { results, sheet, columns: 1 + num, settings })?;
    if args.options.json {
        println!("{}", json!({ "evaluations": evaluations, "out": args.options.out }));
    }
    Ok(())
}
