//! The noised classifier of ADM (2105.05233, section 4.3): the encoder half of the U-Net and a pool.

use super::UNetConfig;

/// What makes a vector of the encoder's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassifierPool {
    /// Attention of the mean over all pixels to every pixel, with learned positions.
    Attention,
    /// The means over the pixels of every block's result, and a network of two layers.
    Spatial,
}

impl ClassifierConfig {
    /// The parameters, in the order of a program's.
    pub fn parameters(&self) -> Result<Vec<crate::graph::ParamSpec>, super::ConfigError> {
        Err(super::ConfigError::Invalid { key: "classifier", detail: "not yet".into() })
    }
}

/// A classifier of noisy images.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierConfig {
    /// The encoder: its levels, its middle block and its time embedding. What it says of a decoder is not read.
    pub encoder: UNetConfig,
    /// The pool.
    pub pool: ClassifierPool,
    /// Number of classes.
    pub classes: usize,
}
