//! `warpdiff convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use super::model::{ReadingArgs, print_warnings};
use crate::model::{StoredAs, convert_with};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// 32 bits: nothing is lost.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// A model folder in any layout that is read, or a .pt file of guided-diffusion.
    source: PathBuf,
    /// The new folder.
    destination: PathBuf,
    /// Type of the weights.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    #[command(flatten)]
    reading: ReadingArgs,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let stored = match args.dtype {
        Dtype::F32 => StoredAs::F32,
        Dtype::F16 => StoredAs::F16,
        Dtype::Bf16 => StoredAs::Bf16,
    };
    let done = convert_with(&args.source, &args.destination, stored, &args.reading.options())?;
    print_warnings(&done.warnings);
    if !quiet {
        let parameters = done.parameters as f64 / 1e6;
        let scheduler = if done.scheduler { "" } else { ", without a scheduler, since there is none" };
        eprintln!(
            "{} tensors, {parameters:.2} M parameters -> {}{scheduler}",
            done.tensors,
            args.destination.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
