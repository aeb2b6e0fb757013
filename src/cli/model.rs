//! The model folder that most commands take.

use std::path::PathBuf;

use clap::Args;

use crate::model::{ModelError, ModelFolder};

/// A model, and how strictly its files are read.
#[derive(Clone, Debug, Args)]
pub(super) struct ModelArgs {
    /// A model folder: config.json, weights and scheduler_config.json, as diffusers or `train` write them.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,
    /// Ignore tensors and configuration keys that are not known, with a warning, instead of refusing them.
    #[arg(long)]
    pub lenient: bool,
}

impl ModelArgs {
    /// Opens the folder; prints a line for everything that is ignored.
    pub fn open(&self) -> Result<ModelFolder, ModelError> {
        if !self.lenient {
            return ModelFolder::open(&self.path);
        }
        let (model, warnings) = ModelFolder::open_leniently(&self.path)?;
        print_warnings(&warnings);
        Ok(model)
    }
}

/// What was ignored, on standard error.
pub(super) fn print_warnings(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
}
