//! The command line: one file a subcommand.

mod bench;
mod compare;
mod compare_fp8;
mod conditions;
mod convert;
mod demo;
mod device;
mod edit;
mod explain;
mod info;
mod interrupt;
mod join;
mod memory;
mod model;
mod network;
mod nll;
mod parse;
mod presets;
mod profile;
mod progress;
mod roof;
mod sample;
mod train;
mod verify;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::backend::BackendError;
use crate::peer::PeerError;

/// Exit code of a run that could not start: a device that is not there, an input that cannot be read.
const UNUSABLE: u8 = 2;

/// Trains and samples denoising diffusion models (DDPM, Improved DDPM, ADM).
#[derive(Parser)]
#[command(name = "warpdiff", version, about, arg_required_else_help = true)]
struct Cli {
    /// Print results and errors only: no progress, no hints.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the embedded digits for a few minutes and look at the result: start here.
    Demo(demo::Args),
    /// Train a model, or go on with one.
    Train(train::Args),
    /// Draw samples from a model folder.
    Sample(sample::Args),
    /// Edit images: inpaint, img2img, interpolate, reconstruct.
    Edit(edit::Args),
    /// Join the outputs of `sample --shard` to the one that a single run would have written.
    Join(join::Args),
    /// Bits per dimension of a model on data, with the terms of the bound.
    Nll(nll::Args),
    /// Replay golden cases and compare with what they recorded.
    Verify(verify::Args),
    /// Compare two devices operation by operation: which kernel is off, and by how much.
    Compare(compare::Args),
    /// Write any model that can be read as a diffusers folder.
    Convert(convert::Args),
    /// What this machine offers; with a model folder, what it holds.
    Info(info::Args),
    /// Which kernel computes what, why, and how long it should take: a convolution, a product, a network.
    Explain(explain::Args),
    /// Where the time of a network goes: every kernel with its share and its floor, as a table or a page.
    Profile(profile::Args),
    /// Measure speed and memory.
    Bench(bench::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args, cli.quiet),
        Command::Train(args) => train::run(&args, cli.quiet),
        Command::Sample(args) => sample::run(&args, cli.quiet),
        Command::Edit(args) => edit::run(&args, cli.quiet),
        Command::Join(args) => join::run(&args, cli.quiet),
        Command::Nll(args) => nll::run(&args, cli.quiet),
        Command::Info(args) => info::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Compare(args) => compare::run(&args, cli.quiet),
        Command::Convert(args) => convert::run(&args, cli.quiet),
        Command::Profile(args) => profile::run(&args, cli.quiet),
        Command::Bench(args) => bench::run(&args, cli.quiet),
        Command::Verify(args) => verify::run(&args, cli.quiet),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Prints a long text, which may be read by a program that stops after the first lines.
fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The error with its causes, without those that it quotes already.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<BackendError>() {
        Some(BackendError::Unavailable { .. } | BackendError::Precision { .. }) => UNUSABLE,
        _ if matches!(error.downcast_ref(), Some(PeerError::Missing { .. })) => UNUSABLE,
        _ => 1,
    }
}
