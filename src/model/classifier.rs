//! A classifier on disk: a `.pt` file of guided-diffusion with flags.

use std::path::{Path, PathBuf};

use super::adm::{Flags, QkvOrder, aliases};
use super::{ModelError, OpenOptions};
use crate::io::WeightSource;
use crate::unet::ClassifierConfig;

/// A classifier that was found on disk; its weights are read when they are asked for.
#[derive(Clone, Debug)]
pub struct ClassifierModel {
    /// The network.
    pub config: ClassifierConfig,
    /// What its flags say of the scale of its gradient.
    pub scale: Option<f64>,
    file: PathBuf,
}

impl ClassifierModel {
    /// The classifier in `file`. Its flags are those that `options` name, else `flags.json` beside it, else `fallback`: those of the
    /// network that it guides.
    ///
    /// # Errors
    /// [`ModelError`] for flags that are missing or refused.
    pub fn open(file: &Path, options: &OpenOptions, fallback: Option<&Flags>) -> Result<Self, ModelError> {
        let flags = match (options.adm_flags(file), fallback) {
            (Ok(Some(flags)), _) => flags,
            (Err(_), Some(flags)) if options.flags.is_none() && options.arch.is_none() => flags.clone(),
            (Err(error), _) => return Err(error),
            (Ok(None), _) => {
                let problem = "there is no such file; name the .pt file of the classifier".into();
                return Err(ModelError::Flags { origin: file.display().to_string(), problem });
            }
        };
        if !options.lenient {
            flags.check_known()?;
        }
        Self::with_flags(file, &flags)
    }

    /// The classifier in `file` that these flags describe.
    ///
    /// # Errors
    /// [`ModelError::Flags`], naming the flag.
    pub fn with_flags(file: &Path, flags: &Flags) -> Result<Self, ModelError> {
        Ok(Self { config: flags.classifier()?, scale: flags.classifier_scale()?, file: file.to_path_buf() })
    }

    /// Opens the weights.
    ///
    /// # Errors
    /// [`ModelError::File`].
    pub fn weights(&self) -> Result<WeightSource, ModelError> {
        let params = self.config.parameters();
        let params = params.map_err(|source| ModelError::Config { path: self.file.clone(), source })?;
        let mut weights = WeightSource::open(&self.file)?;
        // The body's attention is in the old order in all classifiers; the pool's is one tensor in the order of the graph.
        weights.rename(&aliases(&self.config.encoder, QkvOrder::PerHead, &params));
        Ok(weights)
    }
}
