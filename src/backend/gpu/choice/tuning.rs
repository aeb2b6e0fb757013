//! Measured tables, which may override the model in what changes no bit.
//!
//! ```json
//! { "NVIDIA H200": { "fprop n256h32w32c128k128r3s1p1": "128x128.halo.8x16x1.whole.2+7" } }
//! ```
//! A problem is a pass and a [`ConvShape`]; linear layers are 1x1 convolutions of images one pixel wide.

use std::collections::HashMap;

use serde::Deserialize;
use thiserror::Error;

use super::image::{self, ImageConfig, ImageProblem};
use super::pixel::{self, PixelConfig, PixelProblem};
use super::shape::ConvShape;
use crate::backend::gpu::driver::DeviceLimits;

/// A table that cannot be used.
#[derive(Debug, Error)]
pub enum TuningError {
    /// It is not the JSON that it should be.
    #[error("{file}: {reason}")]
    Json {
        /// Name of the table.
        file: String,
        /// What the parser says.
        reason: String,
    },
    /// One of its entries is wrong.
    #[error("{file}: {device:?}, {key:?}: {reason}")]
    Entry {
        /// Name of the table.
        file: String,
        /// GPU that the entry is for.
        device: String,
        /// The problem.
        key: String,
        /// The rule that it breaks.
        reason: String,
    },
}

/// What was measured to be fastest on one GPU.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    name: String,
    image: HashMap<ImageProblem, ImageConfig>,
    pixel: HashMap<PixelProblem, PixelConfig>,
}

#[derive(Deserialize)]
struct Document(HashMap<String, HashMap<String, String>>);

impl Tuning {
    /// Reads the entries of `limits.name` from the text of a table. Entries of other GPUs are ignored.
    ///
    /// # Errors
    /// [`TuningError`] for text that is no table, and for an entry that the kernels cannot run or that would change a bit.
    pub fn parse(file: &str, text: &str, limits: &DeviceLimits) -> Result<Self, TuningError> {
        let json = |e: serde_json::Error| TuningError::Json { file: file.into(), reason: e.to_string() };
        let Document(mut devices) = serde_json::from_str(text).map_err(json)?;
        let mut table = Self { name: file.into(), ..Self::default() };
        let mut entries: Vec<_> = devices.remove(&limits.name).unwrap_or_default().into_iter().collect();
        entries.sort();
        for (key, candidate) in entries {
            table.insert(&key, &candidate, limits).map_err(|reason| TuningError::Entry {
                file: file.into(),
                device: limits.name.clone(),
                key,
                reason,
            })?;
        }
        Ok(table)
    }

    fn insert(&mut self, key: &str, candidate: &str, limits: &DeviceLimits) -> Result<(), String> {
        let (pass, shape) = key.split_once(' ').ok_or("a key reads \"fprop n256h32w32c128k128r3s1p1\"")?;
        let shape: ConvShape = shape.parse().map_err(|e| format!("{e}"))?;
        let problem = match pass {
            "fprop" => shape.fprop(),
            "dgrad" => shape.dgrad(),
            "wgrad" => {
                let (problem, config) = (shape.wgrad(), candidate.parse().map_err(|e| format!("{e}"))?);
                pixel::takes_pixel(&problem, limits)?;
                pixel::override_with(&problem, limits, &config).map_err(|e| e.to_string())?;
                self.pixel.insert(problem, config);
                return Ok(());
            }
            other => return Err(format!("{other:?} is none of fprop, dgrad, wgrad")),
        };
        let config = candidate.parse().map_err(|e| format!("{e}"))?;
        image::takes_image(&problem, limits)?;
        image::check(&problem, limits, &config).map_err(|e| e.to_string())?;
        self.image.insert(problem, config);
        Ok(())
    }

    /// Entries of the table.
    pub fn len(&self) -> usize {
        self.image.len() + self.pixel.len()
    }

    /// Whether it says nothing about this GPU.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it says about an image product, with or without a residual, and its name.
    pub fn image(&self, p: &ImageProblem) -> Option<(&str, ImageConfig)> {
        let config = if p.residual { self.image.get(&p.clone().with_residual(false)) } else { self.image.get(p) };
        config.map(|c| (self.name.as_str(), *c))
    }

    /// What it says about a weight gradient, and its name.
    pub fn pixel(&self, p: &PixelProblem) -> Option<(&str, PixelConfig)> {
        self.pixel.get(p).map(|c| (self.name.as_str(), *c))
    }
}
