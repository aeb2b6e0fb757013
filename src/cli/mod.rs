//! The command line: one file a subcommand.

mod bench;
mod device;
mod memory;
mod presets;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Measure speed and memory.
    Bench(bench::Args),
    /// Replay golden cases and compare with what they recorded.
    Verify(verify::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Bench(args) => bench::run(&args, cli.quiet),
        Command::Verify(args) => verify::run(&args, cli.quiet),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<crate::backend::BackendError>() {
        Some(crate::backend::BackendError::Unavailable { .. }) => UNUSABLE,
        _ => 1,
    }
}
