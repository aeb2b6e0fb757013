//! `warpdiff bench gemm`.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use super::product::{self, Options, Wanted};
use crate::bench::{GemmShape, Product};
use crate::peer::PeerKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// NVIDIA's library, the fastest of what its heuristics propose.
    Cublaslt,
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// A linear layer: rows, channels out, channels in, images that the rows belong to (1 if not given). May be given several
    /// times; without it, every linear layer and 1x1 convolution of a network.
    #[arg(long, value_name = "m65536n768k256b256", conflicts_with_all = ["preset", "model", "batch"])]
    shape: Vec<GemmShape>,
    /// Measure this library, too, in turn.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let wanted = Wanted {
        kind: "gemm",
        shapes: args.shape.iter().map(|&shape| Product::Gemm(shape)).collect(),
        takes: |product| matches!(product, Product::Gemm(_)),
        peer: args.peer.map(|Peer::Cublaslt| PeerKind::CublasLt),
    };
    product::run(&wanted, &args.options, quiet)
}
