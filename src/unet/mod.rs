//! The U-Net of DDPM and its relatives: from a configuration to a graph whose parameters carry diffusers' names.

mod blocks;
mod builder;
mod check;
mod classifier;
mod config;
mod init;
mod k_blocks;
mod kinds;
pub mod presets;
mod skip_blocks;

use thiserror::Error;

pub use builder::{ClassInput, DropoutInputs, UNetInputs, UNetOutputs, build};
pub use classifier::{
    CLASSIFIER_PREFIX, ClassifierConfig, ClassifierPool, ClassifierValues, build_classifier, build_classifier_gradient,
};
pub use config::{ClassEmbedding, ResamplerType, SampleSize, TimeEmbeddingType, TimeScaleShift, UNetConfig};
pub use init::initial_weights;
pub use kinds::{DownBlock, UpBlock};

use crate::graph::GraphError;

/// What can be wrong with a model's configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not JSON, or a value has the wrong type.
    #[error("the model configuration cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A key has a value that is not understood.
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        /// The key in `config.json`.
        key: String,
        /// Its value.
        value: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// Keys that UNet2DModel does not have.
    #[error(
        "{keys} is not supported; supported: the keys of UNet2DModel; remove what the network does without, or ask for --lenient"
    )]
    UnknownKeys {
        /// All of them, with their values.
        keys: String,
    },
    /// Values that contradict each other or make no network.
    #[error("{key}: {detail}")]
    Invalid {
        /// The key in `config.json`.
        key: &'static str,
        /// What is wrong, and what would be right.
        detail: String,
    },
    /// The network that the configuration describes does not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
