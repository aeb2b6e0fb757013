//! `warpdiff bench conv`.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use super::product::{self, Options, Wanted};
use crate::bench::{ConvShape, Product};
use crate::peer::PeerKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// NVIDIA's library, the fastest of what its heuristics propose.
    Cudnn,
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// A convolution: batch, height, width, channels in and out, filter, stride, padding (p0.0.1.1: top, left, bottom,
    /// right). May be given several times; without it, every convolution of a network.
    #[arg(long, value_name = "n256h32w32c128k128r3s1p1", conflicts_with_all = ["preset", "model", "batch"])]
    shape: Vec<ConvShape>,
    /// Measure this library, too, in turn.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let wanted = Wanted {
        kind: "conv",
        shapes: args.shape.iter().map(|&shape| Product::Conv(shape)).collect(),
        takes: |product| matches!(product, Product::Conv(_)),
        peer: args.peer.map(|Peer::Cudnn| PeerKind::Cudnn),
    };
    product::run(&wanted, &args.options, quiet)
}
