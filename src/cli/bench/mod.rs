//! `warpdiff bench`: how fast, and how much memory.

mod conv;
mod gemm;
mod machine;
mod product;
mod report;
mod tune;
mod unet;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The network: one evaluation, or one training step.
    Unet(unet::Args),
    /// Convolutions, one by one, in turn with cuDNN.
    Conv(conv::Args),
    /// Linear layers as matrix products, one by one, in turn with cuBLASLt.
    Gemm(gemm::Args),
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    match &args.what {
        What::Unet(args) => unet::run(args, quiet),
        What::Conv(args) => conv::run(args, quiet),
        What::Gemm(args) => gemm::run(args, quiet),
    }
}
