//! A model folder, flat (`config.json` beside the weights) or as a pipeline (`unet/`, `scheduler/`).

use std::fs;
use std::path::{Path, PathBuf};

use super::{ModelError, write_weights};
use crate::diffusion::{SamplerKind, SchedulerConfig};
use crate::graph::ParamSpec;
use crate::io::atomic_folder::locate;
use crate::io::{FileError, WeightSource};
use crate::unet::UNetConfig;

/// A model that was found on disk; its weights are read when they are asked for.
#[derive(Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The network.
    pub config: UNetConfig,
    /// The noise schedule and the sampler it was published with.
    pub scheduler: SchedulerConfig,
}

impl ModelFolder {
    /// Reads the configuration of a model folder.
    ///
    /// # Errors
    /// [`ModelError`], naming the file, the key and the remedy.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let path = locate(path);
        if !path.is_dir() {
            return Err(ModelError::NoFolder { folder: path });
        }
        let (config, _) = read_config(&path)?;
        let (file, text) = read_first(&path, "scheduler_config.json", "scheduler/scheduler_config.json")?;
        let scheduler =
            SchedulerConfig::from_json(&text).map_err(|source| ModelError::Scheduler { path: file, source })?;
        Ok(Self { path, config, scheduler })
    }

    /// Opens the weights.
    ///
    /// # Errors
    /// [`ModelError::File`].
    pub fn weights(&self) -> Result<WeightSource, ModelError> {
        Ok(WeightSource::open(&self.path)?)
    }
}

/// The network's configuration in a model folder, and the file it was read from.
///
/// # Errors
/// [`ModelError`], naming the file, the key and the remedy.
pub fn read_config(folder: &Path) -> Result<(UNetConfig, PathBuf), ModelError> {
    let (path, text) = read_first(folder, "config.json", "unet/config.json")?;
    match UNetConfig::from_json(&text) {
        Ok(config) => Ok((config, path)),
        Err(source) => Err(ModelError::Config { path, source }),
    }
}

/// Path and text of the first of two files that exists.
fn read_first(folder: &Path, first: &'static str, second: &'static str) -> Result<(PathBuf, String), ModelError> {
    let path = [first, second].iter().map(|name| folder.join(name)).find(|p| p.is_file());
    let Some(path) = path else {
        return Err(ModelError::NotAModel { folder: folder.to_path_buf(), first, second });
    };
    let text = fs::read_to_string(&path).map_err(FileError::os("read", &path))?;
    Ok((path, text))
}

/// Writes a model in the pipeline layout into an existing folder.
///
/// # Errors
/// [`ModelError::File`].
pub fn save_model(
    folder: &Path,
    config: &UNetConfig,
    scheduler: &SchedulerConfig,
    params: &[ParamSpec],
    weights: &[Vec<f32>],
) -> Result<(), ModelError> {
    let write = |name: &str, text: &str| -> Result<(), ModelError> {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::os("create the folder", parent))?;
        }
        Ok(fs::write(&path, text).map_err(FileError::os("write", &path))?)
    };
    let class = scheduler.sampler.class_name();
    let index = serde_json::json!({
        "_class_name": if scheduler.sampler == SamplerKind::Ddim { "DDIMPipeline" } else { "DDPMPipeline" },
        "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", class],
        "unet": ["diffusers", "UNet2DModel"],
    });
    write("model_index.json", &format!("{index:#}\n"))?;
    write("unet/config.json", &config.to_json())?;
    write("scheduler/scheduler_config.json", &scheduler.to_json())?;
    write_weights(&folder.join("unet/diffusion_pytorch_model.safetensors"), params, weights)
}
