//! `warpdiff bench`: how fast, and how much memory.

mod all;
mod change;
mod conv;
mod gemm;
mod line;
mod loops;
mod machine;
mod measure;
mod operation;
mod options;
mod product;
mod report;
mod row;
mod summary;
mod tune;
mod unet;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::bench::Family;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The network: one evaluation, or one training step.
    Unet(unet::Args),
    /// Whole batches of pictures: every step of a sampler, with the pictures on the host.
    SampleLoop(loops::Args),
    /// Convolutions, one by one, in turn with cuDNN.
    Conv(conv::Args),
    /// Linear layers as matrix products, one by one, in turn with cuBLASLt.
    Gemm(gemm::Args),
    /// Group norms with what is fused to them, forward and backward.
    Norm(operation::NormArgs),
    /// Attention, forward and backward.
    Attention(operation::AttentionArgs),
    /// The updates of the samplers.
    SamplerStep(operation::Args),
    /// Forward noising, and the loss.
    Noise(operation::Args),
    /// The norm of all gradients, and AdamW with the moving average.
    Optim(operation::Args),
    /// Everything that reads and writes each element once.
    Elementwise(operation::Args),
    /// Embeddings of timesteps and classes.
    Embedding(operation::Args),
    /// All of these for one network, in one report.
    All(all::Args),
    /// Two reports: what became slower or faster, beyond the noise.
    Compare(change::Args),
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    match &args.what {
        What::Unet(args) => unet::run(args, quiet),
        What::SampleLoop(args) => loops::run(args, quiet),
        What::Conv(args) => conv::run(args, quiet),
        What::Gemm(args) => gemm::run(args, quiet),
        What::Norm(args) => operation::run_norm(args, quiet),
        What::Attention(args) => operation::run_attention(args, quiet),
        What::SamplerStep(args) => operation::run(Family::SamplerStep, args, quiet),
        What::Noise(args) => operation::run(Family::Noise, args, quiet),
        What::Optim(args) => operation::run(Family::Optim, args, quiet),
        What::Elementwise(args) => operation::run(Family::Elementwise, args, quiet),
        What::Embedding(args) => operation::run(Family::Embedding, args, quiet),
        What::All(args) => all::run(args, quiet),
        What::Compare(args) => change::run(args, quiet),
    }
}
