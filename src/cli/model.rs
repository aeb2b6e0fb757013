//! The model folder that most commands take.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::model::adm::WeightKind;
use crate::model::{ModelError, ModelFolder, OpenOptions};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsArg {
    /// The moving average, `ema_*.pt`: what samples are drawn from.
    Ema,
    /// The weights themselves, `model*.pt`.
    Raw,
}

/// A model, and how its files are read.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelArgs {
    /// A model folder: config.json, weights and scheduler_config.json, as diffusers or `train` write them; or a .pt file of
    /// guided-diffusion or improved-diffusion, or the folder that holds it.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How a model's files are read.
#[derive(Clone, Debug, Args)]
pub(super) struct ReadingArgs {
    /// Ignore tensors and configuration keys that are not known, with a warning, instead of refusing them.
    #[arg(long)]
    pub lenient: bool,
    /// The flags of a .pt file, as JSON or as a command line; by default flags.json beside it.
    #[arg(long, value_name = "FILE")]
    flags: Option<PathBuf>,
    /// A released model of guided-diffusion or improved-diffusion, which says the flags: 256x256_diffusion, ...
    #[arg(long, value_name = "NAME", conflicts_with = "flags")]
    arch: Option<String>,
    /// Which weights of a folder that holds several .pt files.
    #[arg(long, value_enum, value_name = "KIND")]
    weights: Option<WeightsArg>,
}

impl ReadingArgs {
    /// What the arguments say.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            lenient: self.lenient,
            flags: self.flags.clone(),
            arch: self.arch.clone(),
            weights: self.weights.map(|kind| match kind {
                WeightsArg::Ema => WeightKind::Ema,
                WeightsArg::Raw => WeightKind::Raw,
            }),
        }
    }

    /// Opens the model at `path`; prints a line for everything that is ignored.
    pub fn open(&self, path: &Path) -> Result<ModelFolder, ModelError> {
        let (model, warnings) = ModelFolder::open_with(path, &self.options())?;
        print_warnings(&warnings);
        Ok(model)
    }
}

impl ModelArgs {
    /// Opens the model; prints a line for everything that is ignored.
    pub fn open(&self) -> Result<ModelFolder, ModelError> {
        self.reading.open(&self.path)
    }
}

/// What was ignored, on standard error.
pub(super) fn print_warnings(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}
