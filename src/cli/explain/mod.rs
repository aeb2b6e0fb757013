//! `warpdiff explain`: which kernel computes what, why, and how long it should take. Needs no GPU.

mod network;
mod product;
pub(super) mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};

use super::presets::Preset;
use crate::backend::Precision;
use crate::backend::gpu::choice::Tuning;
use crate::backend::gpu::choice::shape::{GemmShape, Layer};
use crate::backend::gpu::driver::DeviceLimits;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// A model folder: every operation of its network.
    model: Option<PathBuf>,
    /// A network known by name.
    #[arg(long, value_enum, conflicts_with = "model")]
    preset: Option<Preset>,
    /// Images at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// A training step rather than one evaluation.
    #[arg(long)]
    train: bool,
    #[command(flatten)]
    on: On,
}

#[derive(Subcommand)]
enum What {
    /// The three passes of a convolution, all candidates.
    Conv {
        /// As in n256h32w32c128k128r3s1p1; r, s and p are 3, 1 and half the kernel if they are not given.
        shape: Layer,
        #[command(flatten)]
        on: On,
    },
    /// The three passes of a linear layer, all candidates.
    Gemm {
        /// As in m65536n768k256b256: rows, columns, depth, and the images that the rows belong to, 1 if not given.
        shape: GemmShape,
        #[command(flatten)]
        on: On,
    },
}

/// A GPU architecture that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Architecture {
    /// A100 and newer: the kernels of mma.sync.
    #[value(name = "sm_80")]
    Sm80,
    /// H100 and H200: the kernels of wgmma and TMA.
    #[value(name = "sm_90a")]
    Sm90a,
}

/// What is assumed of the device.
#[derive(Clone, Debug, clap::Args)]
struct On {
    /// Architecture.
    #[arg(long, value_enum, default_value = "sm_90a")]
    device: Architecture,
    /// Name of the GPU, as measured tables have it.
    #[arg(long, value_name = "NAME", default_value = "NVIDIA H200")]
    gpu: String,
    /// Assume that wgmma cannot read operands at a shift, so that halo boxes are out.
    #[arg(long)]
    no_shifted_operands: bool,
    /// Arithmetic of the network.
    #[arg(long, default_value = "bf16", value_parser = PossibleValuesParser::new(["f32", "bf16"]).map(precision))]
    precision: Precision,
    /// A measured table, instead of those in this build.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

fn precision(name: String) -> Precision {
    if name == "f32" { Precision::F32 } else { Precision::Bf16 }
}

impl On {
    fn limits(&self) -> DeviceLimits {
        let hopper = self.device == Architecture::Sm90a;
        DeviceLimits {
            name: self.gpu.clone(),
            compute_capability: if hopper { (9, 0) } else { (8, 0) },
            multiprocessors: if hopper { 132 } else { 108 },
            shared_bytes: (if hopper { 227 } else { 163 }) << 10,
            memory_bytes: 80 << 30,
            shifted_operands: hopper && !self.no_shifted_operands,
        }
    }

    fn architecture(&self) -> &'static str {
        match self.device {
            Architecture::Sm80 => "sm_80",
            Architecture::Sm90a => "sm_90a",
        }
    }

    fn tuning(&self) -> Result<Tuning> {
        let limits = self.limits();
        let Some(path) = &self.tuning else { return Ok(Tuning::embedded(&limits)) };
        let file = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the table {file}"))?;
        Ok(Tuning::parse(&file, &text, &limits)?)
    }

    /// What every report begins with.
    fn heading(&self) -> String {
        let (arch, precision) = (self.architecture(), self.precision);
        let shifted = match (self.device, self.no_shifted_operands) {
            (Architecture::Sm80, _) => "",
            (Architecture::Sm90a, false) => ", if it reads shifted operands",
            (Architecture::Sm90a, true) => ", without shifted operands",
        };
        format!("{arch}{shifted}, {precision}; times are predicted, not measured")
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let text = match &args.what {
        Some(What::Conv { shape, on }) => product::explain(&format!("conv {shape}"), shape, on)?,
        Some(What::Gemm { shape, on }) => product::explain(&format!("gemm {shape}"), &shape.conv().into(), on)?,
        None => network::explain(args)?,
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
