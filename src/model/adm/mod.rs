//! Checkpoints of guided-diffusion and improved-diffusion (2105.05233, 2102.09672): a `.pt` file with the flags of the script
//! that sampled it.
//!
//! The network is a UNet2DModel but for a few keys that [`UNetConfig`] has beside those of diffusers, so what is here is a
//! translation: of flags to a configuration and a noise schedule, and of the tensors' names.

pub mod arch;
mod files;
mod flags;
mod names;
mod translate;

pub use files::{WeightKind, choose_weights};
pub use flags::Flags;
pub use names::{QkvOrder, aliases, file_tensors};

use crate::diffusion::SchedulerConfig;
use crate::model::ModelError;
use crate::unet::{ClassifierConfig, UNetConfig};

/// What flags say about a denoising network.
#[derive(Clone, Debug)]
pub struct AdmNetwork {
    /// The network.
    pub config: UNetConfig,
    /// Its noise schedule, and sampling as the scripts do it.
    pub scheduler: SchedulerConfig,
    /// The order of its attention weights.
    pub order: QkvOrder,
}

impl Flags {
    /// The denoising network that the flags describe.
    ///
    /// # Errors
    /// [`ModelError::Flags`], naming the flag.
    pub fn network(&self) -> Result<AdmNetwork, ModelError> {
        translate::network(self)
    }

    /// The factor of the network's timesteps, and the noise schedule with sampling as the scripts do it.
    ///
    /// # Errors
    /// [`ModelError::Flags`], naming the flag.
    pub fn schedule(&self) -> Result<(f64, SchedulerConfig), ModelError> {
        translate::scheduler(self, self.switch("learn_sigma", false)?)
    }

    /// The classifier that the flags describe.
    ///
    /// # Errors
    /// [`ModelError::Flags`], naming the flag.
    pub fn classifier(&self) -> Result<ClassifierConfig, ModelError> {
        translate::classifier(self)
    }

    /// The side of the images that a super-resolution model enlarges.
    ///
    /// # Errors
    /// [`ModelError::Flags`] for what is no number.
    pub fn small_size(&self) -> Result<Option<usize>, ModelError> {
        Ok(if self.has("large_size") { Some(self.count("small_size", 64)?) } else { None })
    }

    /// The scale of the classifier's gradient, where the flags say it.
    ///
    /// # Errors
    /// [`ModelError::Flags`] for what is no number.
    pub fn classifier_scale(&self) -> Result<Option<f64>, ModelError> {
        Ok(if self.has("classifier_scale") { Some(self.number("classifier_scale", 1.0)?) } else { None })
    }
}
