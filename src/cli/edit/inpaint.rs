//! `warpdiff edit inpaint`.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::output::{Edited, side_by_side, write};
use super::{Job, ModelArgs, Options, images};
use crate::diffusion::repaint::{Repaint, Resampling};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Images: PNG, JPEG, or .npz.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// What to keep: a picture of the model's size, white where the image stays and black where it is made up. One for all
    /// images, or one for each.
    #[arg(long, required = true)]
    mask: Vec<PathBuf>,
    /// Keep what is black, make up what is white.
    #[arg(long)]
    invert_mask: bool,
    /// Results for each image.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    num: u32,
    /// Levels that the chain goes back at once.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    jump_length: u32,
    /// How often it passes every level: more make the new part fit better; 1 never goes back.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    resamplings: u32,
    /// DDIM's eta: 1 as random as DDPM, as published; 0 adds no noise in steps.
    #[arg(long, default_value_t = 1.0)]
    eta: f64,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<()> {
    let job = Job::open(&args.model, &args.options, quiet)?;
    let shape = job.image_shape()?;
    let length = shape.iter().product::<usize>();
    let images = images::read(&args.images, shape, args.options.fit)?;
    let mut masks = images::read_masks(&args.mask, shape, images.len() / length, args.options.fit)?;
    if args.invert_mask {
        masks.iter_mut().for_each(|m| *m = 1.0 - *m);
    }
    let num = args.num as usize;
    let each = |all: &[f32]| -> Vec<f32> { all.chunks_exact(length).flat_map(|image| image.repeat(num)).collect() };
    let resampling = Resampling { jump_length: args.jump_length as usize, times: args.resamplings as usize };
    let walk = Repaint::new(&job.scheduler, args.options.steps as usize, args.eta, resampling)?;
    let evaluations = walk.table.rows.len() * images.len() / length * num;
    let results =
        job.edit(args.eta, evaluations, |editor| editor.inpaint(&each(&images), &each(&masks), resampling))?;
    // Grey is the middle of the range.
    let masked: Vec<f32> = images.iter().zip(&masks).map(|(x, m)| x * m).collect();
    let sheet = side_by_side(&[(&images, 1), (&masked, 1), (&results, num)], length);
    let settings = json!({
        "kind": "inpaint", "jump_length": args.jump_length, "resamplings": args.resamplings, "eta": args.eta,
    });
    write(&job, &Edited { results, sheet, columns: 2 + num, settings })?;
    if args.options.json {
        println!("{}", json!({ "evaluations": evaluations, "out": args.options.out }));
    }
    Ok(())
}
