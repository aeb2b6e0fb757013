//! The sampling loop: batches of samples from a model folder.

mod calibrate;
mod conditions;
mod edit;
mod labels;
mod sampler;
mod settings;
mod stream;
mod walk;

use thiserror::Error;

pub use calibrate::{CALIBRATION_SAMPLES, CALIBRATION_STEPS, calibrate};
pub use conditions::{Conditions, LowRes};
pub use edit::{EditOptions, Editor};
pub use labels::LabelChoice;
pub use sampler::{OnStep, SampleOptions, Sampler, Visited};
pub use stream::Drawn;
pub use walk::Guide;

use crate::backend::BackendError;
use crate::diffusion::DiffusionError;
use crate::graph::GraphError;
use crate::model::ModelError;
use crate::unet::ConfigError;

/// Why samples cannot be drawn.
#[derive(Debug, Error)]
pub enum SampleError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The configuration makes no network.
    #[error("the model's configuration is refused: {0}")]
    Config(#[from] ConfigError),
    /// What a network computes cannot be measured for fp8.
    #[error("fp8 has no scale for the input of {scope}: it is not finite in bf16; take --precision bf16")]
    Calibration {
        /// The convolution.
        scope: String,
    },
    /// The graph of a network does not take what was added to it.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The sampler does not fit the noise schedule.
    #[error(transparent)]
    Schedule(#[from] DiffusionError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A class that the model does not have.
    #[error("label {label} is out of range: the model has classes 0..={}", classes - 1)]
    Label {
        /// What was asked for.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A label for a model without classes, or a model whose condition is not a class.
    #[error("{0}")]
    Condition(String),
    /// The configuration does not say how large the images are.
    #[error("the model's configuration has no sample_size; add it to config.json")]
    NoSize,
    /// Numbers of samples that cannot be drawn.
    #[error("{0}")]
    Count(String),
    /// The caller's `on_step` asked to stop.
    #[error("stopped before the last step")]
    Stopped,
    /// The network produced something that is not an image.
    #[error("sample {sample} is not finite after step {step}; the weights or the guidance scale are too large")]
    NotFinite {
        /// Its global index.
        sample: usize,
        /// Steps that were taken.
        step: usize,
    },
}

/// The images `x` of `image_len` elements each, sample `first` and those after it, where all are finite after step `step`.
fn finite(x: Vec<f32>, first: usize, image_len: usize, step: usize) -> Result<Vec<f32>, SampleError> {
    match x.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(SampleError::NotFinite { sample: first + at / image_len, step }),
        None => Ok(x),
    }
}
