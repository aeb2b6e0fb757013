//! A model folder, flat (`config.json` beside the weights) or as a pipeline (`unet/`, `scheduler/`).

use std::fs;
use std::path::{Path, PathBuf};

use super::{ModelError, unexpected_tensors, write_weights};
use crate::diffusion::{SamplerKind, SchedulerConfig};
use crate::graph::ParamSpec;
use crate::io::atomic_folder::locate;
use crate::io::{FileError, WeightSource};
use crate::program::parameters;
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
    /// Tensors that the network has no use for and that the user let pass.
    ignored: Vec<String>,
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
        Ok(Self { path, config, scheduler, ignored: Vec::new() })
    }

    /// As [`open`](Self::open), but ignores keys and tensors that are not known. The second result is a line for each of them.
    ///
    /// # Errors
    /// [`ModelError`]: what is missing or misshapen is refused all the same.
    pub fn open_leniently(path: &Path) -> Result<(Self, Vec<String>), ModelError> {
        let path = locate(path);
        if !path.is_dir() {
            return Err(ModelError::NoFolder { folder: path });
        }
        let Lenient { config, ignored, mut warnings, .. } = open_network_leniently(&path)?;
        let (file, text) = read_first(&path, "scheduler_config.json", "scheduler/scheduler_config.json")?;
        match SchedulerConfig::from_json_lenient(&text) {
            Ok((scheduler, keys)) => {
                warnings.extend(ignored_keys(&file, &keys));
                Ok((Self { path, config, scheduler, ignored }, warnings))
            }
            Err(source) => Err(ModelError::Scheduler { path: file, source }),
        }
    }

    /// Opens the weights.
    ///
    /// # Errors
    /// [`ModelError::File`].
    pub fn weights(&self) -> Result<WeightSource, ModelError> {
        let mut source = WeightSource::open(&self.path)?;
        source.leave_out(&self.ignored);
        Ok(source)
    }
}

/// A network with what was ignored of its files.
#[derive(Debug)]
pub struct Lenient {
    /// The network.
    pub config: UNetConfig,
    /// Its weights, without the tensors that it has no use for.
    pub weights: WeightSource,
    /// The names of these.
    pub ignored: Vec<String>,
    /// A line for everything that was ignored, keys and tensors.
    pub warnings: Vec<String>,
}

/// Reads a network and ignores keys and tensors that are not known.
///
/// # Errors
/// [`ModelError`].
pub fn open_network_leniently(folder: &Path) -> Result<Lenient, ModelError> {
    let (path, text) = read_first(folder, "config.json", "unet/config.json")?;
    let refused = |source| ModelError::Config { path: path.clone(), source };
    let (config, keys) = UNetConfig::from_json_lenient(&text).map_err(refused)?;
    let mut warnings = ignored_keys(&path, &keys);
    let params = parameters(&config).map_err(refused)?;
    let mut weights = WeightSource::open(folder)?;
    let ignored = unexpected_tensors(&params, &weights)?;
    weights.leave_out(&ignored);
    let file = weights.path().display();
    warnings
        .extend(ignored.iter().map(|name| format!("{file}: the tensor {name} is not part of the network; ignored")));
    Ok(Lenient { config, weights, ignored, warnings })
}

fn ignored_keys(path: &Path, keys: &[String]) -> Vec<String> {
    keys.iter().map(|key| format!("{}: {key} is not known; ignored", path.display())).collect()
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
pub(super) fn read_first(
    folder: &Path,
    first: &'static str,
    second: &'static str,
) -> Result<(PathBuf, String), ModelError> {
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
    write_text(&folder.join("model_index.json"), &pipeline_index(scheduler.sampler.class_name()))?;
    write_text(&folder.join("unet/config.json"), &config.to_json())?;
    write_text(&folder.join("scheduler/scheduler_config.json"), &scheduler.to_json())?;
    write_weights(&folder.join("unet/diffusion_pytorch_model.safetensors"), params, weights)
}

/// The text of `model_index.json` for a scheduler of this class.
pub(super) fn pipeline_index(class: &str) -> String {
    let is = |kind: SamplerKind| class == kind.class_name();
    let pipeline = match class {
        _ if is(SamplerKind::Ddim) => "DDIMPipeline",
        _ if is(SamplerKind::ScoreSde) => "ScoreSdeVePipeline",
        _ => "DDPMPipeline",
    };
    let index = serde_json::json!({
        "_class_name": pipeline,
        "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", class],
        "unet": ["diffusers", "UNet2DModel"],
    });
    format!("{index:#}\n")
}

/// Writes a file, its folder first where there is none.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), ModelError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(FileError::os("create the folder", parent))?;
    }
    Ok(fs::write(path, text).map_err(FileError::os("write", path))?)
}
