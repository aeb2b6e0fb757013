//! `warpdiff info`: what this machine and a model offer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::backend::cpu::{Cpu, isa};
use crate::graph::{Region, cost};
use crate::model::ModelFolder;
use crate::program::{Batch, ForwardProgram};
use crate::train::TrainingState;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A model folder to describe.
    model: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let threads = Cpu::new(None)?.threads();
    let vectors = format!("{:?}", isa()).to_lowercase();
    let mut value = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "devices": {
            "ref": {"precision": "f64"},
            "cpu": {"precision": "f32", "threads": threads, "vectors": vectors},
            "sim": null,
            "cuda": null,
        },
    });
    if !args.json {
        println!("warpdiff {}", env!("CARGO_PKG_VERSION"));
        println!("  ref   f64, naive: the yardstick");
        println!("  cpu   f32, {threads} threads, {vectors} kernels");
        println!("  sim   not in this build");
        println!("  cuda  not in this build");
    }
    if let Some(path) = &args.model {
        value["model"] = describe(path, args.json)?;
    }
    if args.json {
        println!("{value:#}");
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(path: &Path, json: bool) -> Result<serde_json::Value> {
    let model = ModelFolder::open(path)?;
    let (h, w) = model.config.height_width().unwrap_or((32, 32));
    let program = ForwardProgram::new(&model.config, Batch { n: 1, h, w }, false)?;
    let graph = program.plan.graph();
    let parameters: usize = graph.params().iter().map(|p| p.numel()).sum();
    let gflop = cost::total_flops(graph) as f64 / 1e9;
    let arena = program.plan.region_bytes(Region::Arena);
    let trained = TrainingState::read(path)?;
    if !json {
        let c = model.config.in_channels;
        println!("{}", path.display());
        println!("  {:.2} M parameters, {gflop:.3} GFLOP a {c}x{h}x{w} image", parameters as f64 / 1e6);
        println!("  {:.1} MiB of activations at batch 1", arena as f64 / f64::from(1 << 20));
        let classes = model.config.classes().map_or("none".into(), |c| c.to_string());
        let null = if model.config.null_class.is_some() { ", with a null class for guidance" } else { "" };
        println!("  classes: {classes}{null}");
        let s = &model.scheduler;
        println!("  scheduler: {}, {:?} schedule, T = {}", s.sampler, s.betas.schedule, s.betas.num_train_timesteps);
        if let Some(t) = &trained {
            println!("  trained {} of {} steps on {} in {:.0} s", t.step, t.options.steps, t.dataset.name, t.seconds);
        }
    }
    Ok(serde_json::json!({
        "parameters": parameters, "gflop_per_image": gflop, "arena_bytes": arena,
        "image": [model.config.in_channels, h, w], "classes": model.config.classes(),
        "null_class": model.config.null_class, "sampler": model.scheduler.sampler.class_name(),
        "num_train_timesteps": model.scheduler.betas.num_train_timesteps,
        "steps": trained.as_ref().map(|t| t.step),
    }))
}
