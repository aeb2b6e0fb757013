//! `warpdiff info`: what this machine and a model offer.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use super::model::ReadingArgs;
use crate::backend::cpu::{Cpu, isa};
use crate::backend::gpu::driver::cuda::{Cuda, DeviceInfo};
use crate::backend::gpu::driver::{Driver, DriverError};
use crate::backend::gpu::kernels;
use crate::diffusion::SamplerKind;
use crate::graph::{Region, cost};
use crate::model::ModelFolder;
use crate::program::{Batch, ForwardProgram};
use crate::train::TrainingState;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A model folder to describe, or a .pt file of guided-diffusion.
    #[arg(conflicts_with = "kernels")]
    model: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// List the CUDA kernels of this build, and what each takes of the hardware.
    #[arg(long)]
    kernels: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if args.kernels {
        return list_kernels(args.json);
    }
    let threads = Cpu::new(None)?.threads();
    let vectors = format!("{:?}", isa()).to_lowercase();
    let gpu = Cuda::probe();
    let shifted = shifted_operands(&gpu);
    let mut value = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "devices": {
            "ref": {"precision": "f64"},
            "cpu": {"precision": "f32", "threads": threads, "vectors": vectors},
            "sim": cfg!(feature = "sim").then(|| serde_json::json!({"precision": ["f32", "bf16", "fp8"]})),
            "cuda": cuda_report(&gpu, shifted),
        },
        "kernel_images": {
            "kernels": kernel_count(),
            "targets": kernels::targets(),
            "compiler": kernels::compiler(),
            "missing": kernels::missing(),
        },
    });
    if !args.json {
        println!("warpdiff {}", env!("CARGO_PKG_VERSION"));
        println!("  ref   f64, naive: the yardstick");
        println!("  cpu   f32, {threads} threads, {vectors} kernels");
        let simulator = if cfg!(feature = "sim") { "the CUDA kernels, simulated" } else { "not in this build" };
        println!("  sim   {simulator}");
        println!("  cuda  {}", cuda_summary(&gpu, shifted));
        println!("CUDA kernels: {}", kernel_summary());
    }
    if let Some(path) = &args.model {
        value["model"] = describe(args.reading.open(path)?, path, args.json)?;
    }
    if args.json {
        println!("{value:#}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether one box of pixels serves all taps of a filter: found out by opening the device. Nothing where it has no wgmma, or
/// does not open.
fn shifted_operands(gpu: &Result<DeviceInfo, DriverError>) -> Option<bool> {
    gpu.as_ref().ok().filter(|info| info.features().contains(&"wgmma"))?;
    Some(Cuda::open().ok()?.limits().shifted_operands)
}

/// The GPU, or what is missing; both, if the kernels do not run on it.
fn cuda_report(gpu: &Result<DeviceInfo, DriverError>, shifted: Option<bool>) -> serde_json::Value {
    let info = match gpu {
        Ok(info) => info,
        Err(error) => return serde_json::json!({"available": false, "reason": error.to_string()}),
    };
    let reason = info.check().err().map(|e| e.to_string());
    let ((major, minor), (cuda, point)) = (info.limits.compute_capability, info.driver_version);
    serde_json::json!({
        "available": reason.is_none(),
        "reason": reason,
        "name": info.limits.name,
        "compute_capability": format!("{major}.{minor}"),
        "multiprocessors": info.limits.multiprocessors,
        "shared_bytes_per_block": info.limits.shared_bytes,
        "memory_bytes": info.limits.memory_bytes,
        "memory_bus_bits": info.memory_bus_bits,
        "l2_bytes": info.l2_bytes,
        "clock_khz": info.clock_khz,
        "cuda": format!("{cuda}.{point}"),
        "driver": info.driver_release,
        "features": info.features(),
        "shifted_wgmma_operands": shifted,
        "precision": if major == 9 { vec!["f32", "bf16", "fp8"] } else { vec!["f32", "bf16"] },
    })
}

fn cuda_summary(gpu: &Result<DeviceInfo, DriverError>, shifted: Option<bool>) -> String {
    let info = match gpu {
        Ok(info) => info,
        Err(error) => return format!("not available: {error}"),
    };
    let ((major, minor), (cuda, point)) = (info.limits.compute_capability, info.driver_version);
    let driver = info.driver_release.as_ref().map_or(String::new(), |release| format!(" {release}"));
    let mut text = format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors at up to {} MHz, {:.1} GiB\n        driver{driver} for \
         CUDA {cuda}.{point}; {}",
        info.limits.name,
        info.limits.multiprocessors,
        info.clock_khz / 1000,
        info.limits.memory_bytes as f64 / f64::from(1 << 30),
        info.features().join(", ")
    );
    if let Some(shifted) = shifted {
        let answer = if shifted { "yes" } else { "no" };
        text += &format!("\n        wgmma operands may start between swizzle rows: {answer}");
    }
    if let Err(error) = info.check() {
        text += &format!("\n        not available: {error}");
    }
    text
}

fn kernel_count() -> usize {
    kernels::images().iter().map(|image| image.kernels.len()).sum()
}

/// How many kernels, for what, from where; or why there are none.
fn kernel_summary() -> String {
    match (kernels::missing(), kernels::compiler()) {
        (Some(reason), _) => format!("none: {reason}"),
        (None, compiler) => {
            let targets = kernels::targets().join(", ");
            format!("{} for {targets}, compiled by {}", kernel_count(), compiler.unwrap_or("nvcc"))
        }
    }
}

fn list_kernels(json: bool) -> Result<ExitCode> {
    let text = if json {
        if let Some(reason) = kernels::missing() {
            eprintln!("no CUDA kernels: {reason}");
        }
        let file = |image: &kernels::KernelImage| serde_json::json!({"file": image.file, "kernels": image.kernels, "nvcc_seconds": image.nvcc_seconds});
        let files: Vec<_> = kernels::images().iter().map(file).collect();
        format!("{:#}\n", serde_json::json!({"kernels": kernels::record(), "files": files}))
    } else {
        kernel_table()
    };
    // The list is long: it may be read by a program that stops after the first lines.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn kernel_table() -> String {
    let head = [
        "kernel",
        "arch",
        "registers",
        "shared bytes",
        "stack bytes",
        "spill stores",
        "spill loads",
        "param bytes",
        "instructions",
        "wgmma (loops)",
        "mma (loops)",
        "local",
        "TMA loads",
        "TMA stores",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(kernels::record().iter().map(|r| {
        let figures = [r.registers, r.shared_bytes, r.stack_bytes, r.spill_stores, r.spill_loads, r.param_bytes];
        let [registers, shared, stack, stores, loads, parameters] = figures.map(|n| n.to_string());
        let code = r.code.map(|c| {
            let within = |products: u32, loops: u32| format!("{products} ({loops})");
            let [instructions, local, tma_loads, tma_stores] =
                [c.instructions, c.local, c.tma_loads, c.tma_stores].map(|n| n.to_string());
            [instructions, within(c.wgmma, c.wgmma_loops), within(c.mma, c.mma_loops), local, tma_loads, tma_stores]
        });
        let [instructions, wgmma, mma, local, tma_loads, tma_stores] = code.unwrap_or(["-"; 6].map(String::from));
        let (name, arch) = (r.name.into(), r.arch.into());
        [
            name,
            arch,
            registers,
            shared,
            stack,
            stores,
            loads,
            parameters,
            instructions,
            wgmma,
            mma,
            local,
            tma_loads,
            tma_stores,
        ]
    }));
    let mut text = format!("CUDA kernels: {}\n", kernel_summary());
    if rows.len() == 1 {
        return text;
    }
    let (files, seconds) = (kernels::images().len(), kernels::nvcc_seconds());
    text += &format!("  {files} files took nvcc {seconds:.1} s, added up\n");
    if kernels::record().iter().any(|r| r.code.is_none()) {
        text += "  nvdisasm was not found, so the machine code was not looked at; scripts/setup-cuda installs it\n";
    }
    let widths: Vec<usize> =
        (0..head.len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            text += &if column < 2 { format!("  {cell:width$}") } else { format!("  {cell:>width$}") };
        }
        text += "\n";
    }
    text
}

fn describe(model: ModelFolder, path: &Path, json: bool) -> Result<serde_json::Value> {
    let (h, w) = model.config.height_width().unwrap_or((32, 32));
    let program = ForwardProgram::new(&model.config, Batch { n: 1, h, w }, false)?;
    let graph = program.plan.graph();
    let parameters: usize = graph.params().iter().map(|p| p.numel()).sum();
    let gflop = cost::total_flops(graph) as f64 / 1e9;
    let arena = program.plan.region_bytes(Region::Arena);
    let trained = TrainingState::read(path)?;
    if !json {
        let c = model.config.image_channels();
        println!("{}", path.display());
        println!("  {:.2} M parameters, {gflop:.3} GFLOP a {c}x{h}x{w} image", parameters as f64 / 1e6);
        println!("  {:.1} MiB of activations at batch 1", arena as f64 / f64::from(1 << 20));
        let classes = model.config.classes().map_or("none".into(), |c| c.to_string());
        let null = if model.config.null_class.is_some() { ", with a null class for guidance" } else { "" };
        println!("  classes: {classes}{null}");
        let s = &model.scheduler;
        let schedule = match s.sampler {
            SamplerKind::ScoreSde => format!("sigma {} to {}", s.score_sde.sigma_max, s.score_sde.sigma_min),
            _ => format!("{:?} schedule", s.betas.schedule),
        };
        println!("  scheduler: {}, {schedule}, T = {}", s.sampler, s.betas.num_train_timesteps);
        if let Some(t) = &trained {
            println!("  trained {} of {} steps on {} in {:.0} s", t.step, t.options.steps, t.dataset.name, t.seconds);
        }
    }
    Ok(serde_json::json!({
        "parameters": parameters, "gflop_per_image": gflop, "arena_bytes": arena,
        "image": [model.config.image_channels(), h, w], "classes": model.config.classes(),
        "null_class": model.config.null_class, "sampler": model.scheduler.sampler.class_name(),
        "num_train_timesteps": model.scheduler.betas.num_train_timesteps,
        "steps": trained.as_ref().map(|t| t.step),
    }))
}
