//! Models as their users have them: a folder with a configuration, weights and a scheduler's settings.

pub mod adm;
mod bind;
mod classifier;
mod convert;
mod expressible;
mod fingerprint;
mod folder;

use std::path::PathBuf;

use thiserror::Error;

pub use bind::{bind_classifier, bind_weights, read_weights, unexpected_tensors, write_weights};
pub use classifier::ClassifierModel;
pub use convert::{Converted, StoredAs, convert, convert_with};
pub use folder::{Lenient, ModelFolder, OpenOptions, open_network_leniently, read_config, save_model};

use crate::backend::BackendError;
use crate::diffusion::DiffusionError;
use crate::io::FileError;
use crate::unet::ConfigError;

/// What can be wrong with a model folder.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing of that name.
    #[error(
        "there is no folder {}; name a model folder, as `warpdiff train --out` or diffusers write one, or a .pt file of \
         guided-diffusion",
        folder.display()
    )]
    NoFolder {
        /// The name that was given.
        folder: PathBuf,
    },
    /// A file that every model has is not there.
    #[error("{} is not a model folder: it has neither {first} nor {second}", folder.display())]
    NotAModel {
        /// The folder.
        folder: PathBuf,
        /// The file that was looked for first.
        first: &'static str,
        /// The alternative.
        second: &'static str,
    },
    /// Flags of guided-diffusion or improved-diffusion are refused.
    #[error("{origin}: {problem}")]
    Flags {
        /// The file or option that they come from.
        origin: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Nothing says which of several files is meant.
    #[error("{} {problem}", folder.display())]
    Choice {
        /// The folder.
        folder: PathBuf,
        /// What there is, and how to choose.
        problem: String,
    },
    /// The model's configuration is refused.
    #[error("{}: {source}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// The scheduler's configuration is refused.
    #[error("{}: {source}", path.display())]
    Scheduler {
        /// The configuration file.
        path: PathBuf,
        /// Why.
        source: DiffusionError,
    },
    /// Weights and configuration do not belong together.
    #[error("{} does not fit its configuration:{}", path.display(), list(missing, unexpected, misshapen))]
    Mismatch {
        /// The weights file or folder.
        path: PathBuf,
        /// Names that the configuration needs and the file lacks.
        missing: Vec<String>,
        /// Names that the file has and the configuration does not know.
        unexpected: Vec<String>,
        /// Names whose shapes differ, with both shapes.
        misshapen: Vec<String>,
    },
    /// The executable refused the weights.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Names that a message shows of each kind.
const SHOWN: usize = 20;

/// The differences, the first of each kind.
fn list(missing: &[String], unexpected: &[String], misshapen: &[String]) -> String {
    let mut text = String::new();
    for (what, names) in [("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen)] {
        if names.is_empty() {
            continue;
        }
        text += &format!("\n  {} {what}:", names.len());
        for name in names.iter().take(SHOWN) {
            text += &format!("\n    {name}");
        }
        if names.len() > SHOWN {
            text += &format!("\n    ... and {} more", names.len() - SHOWN);
        }
    }
    text += "\n  check that configuration and weights come from the same model";
    if missing.is_empty() && misshapen.is_empty() {
        text += ", or ignore the unexpected tensors with --lenient";
    }
    text
}
