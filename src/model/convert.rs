//! Any model that can be read, as a folder that diffusers loads.

use std::path::Path;

use half::{bf16, f16};
use serde_json::Value;

use super::ModelError;
use super::bind::file_names;
use super::expressible::expressed;
use super::folder::{
    ModelFolder, OpenOptions, open_network_leniently, pipeline_index, read_config, read_first, write_text,
};
use crate::diffusion::{SamplerKind, SchedulerConfig};
use crate::io::atomic_folder::{AtomicFolder, Replace, locate};
use crate::io::{DataView, FileError, TensorView, WeightSource, safetensors_write};
use crate::program::parameters;

/// Type of the weights that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// 32 bits: what f32, f16 and bf16 files hold, to the last bit.
    F32,
    /// Half precision, rounded to nearest.
    F16,
    /// bfloat16, rounded to nearest.
    Bf16,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Tensors.
    pub tensors: usize,
    /// Elements of all tensors.
    pub parameters: usize,
    /// Whether a scheduler was there to be taken along.
    pub scheduler: bool,
    /// What was ignored of the source, a line each.
    pub warnings: Vec<String>,
}

/// Writes the model in the folder `source` to the new folder `destination`, under the names that diffusers uses today.
///
/// With a scheduler it is a pipeline (`unet/`, `scheduler/`, `model_index.json`), without one a UNet2DModel alone. The scheduler's
/// settings are taken over as they are, also those of samplers that are not implemented here. The folder appears complete or not at all.
///
/// # Errors
/// [`ModelError`]; [`FileError::WouldOverwrite`] if the destination is there and not empty, [`FileError::Unwritable`] for a weight that
/// f16 cannot hold.
pub fn convert(source: &Path, destination: &Path, stored: StoredAs, lenient: bool) -> Result<Converted, ModelError> {
    convert_with(source, destination, stored, &OpenOptions { lenient, ..OpenOptions::default() })
}

/// As [`convert`], also of checkpoints of guided-diffusion where UNet2DModel can be their network.
///
/// # Errors
/// As [`convert`]; [`ModelError::Config`] for a network that UNet2DModel cannot be, naming the key that it lacks.
pub fn convert_with(
    source: &Path,
    destination: &Path,
    stored: StoredAs,
    options: &OpenOptions,
) -> Result<Converted, ModelError> {
    let source = locate(source);
    let (config, weights, warnings, scheduler) = if options.adm_flags(&source)?.is_some() {
        let (model, warnings) = ModelFolder::open_with(&source, options)?;
        // The class that has every key which the training of the network decided.
        let scheduler = model.scheduler.with_sampler(SamplerKind::Ddpm);
        let scheduler = Scheduler { class: scheduler.sampler.class_name().into(), text: scheduler.to_json() };
        (model.config.clone(), model.weights()?, warnings, Some(scheduler))
    } else if !source.is_dir() {
        return Err(ModelError::NoFolder { folder: source });
    } else if options.lenient {
        let found = open_network_leniently(&source)?;
        (found.config, found.weights, found.warnings, read_scheduler(&source)?)
    } else {
        (read_config(&source)?.0, WeightSource::open(&source)?, Vec::new(), read_scheduler(&source)?)
    };
    let refused = |error| ModelError::Config { path: source.clone(), source: error };
    let config = expressed(&config).map_err(refused)?;
    let params = parameters(&config).map_err(refused)?;
    let names = file_names(&params, &weights)?;

    let folder = AtomicFolder::create(destination, Replace::IfEmpty)?;
    let unet = match &scheduler {
        None => folder.path().to_path_buf(),
        Some(scheduler) => {
            write_text(&folder.path().join("scheduler/scheduler_config.json"), &scheduler.text)?;
            let index = pipeline_index(&scheduler.class);
            write_text(&folder.path().join("model_index.json"), &index)?;
            folder.path().join("unet")
        }
    };
    write_text(&unet.join("config.json"), &config.to_json())?;

    let path = unet.join("diffusion_pytorch_model.safetensors");
    let mut tensors = Vec::new();
    for (spec, names) in params.iter().zip(&names) {
        for (part, name) in spec.parts.iter().zip(names) {
            let shape = &weights.info(name)?.shape;
            let data = round(&part.name, weights.get_f32(name, shape)?, stored);
            let data = data.map_err(|problem| FileError::Unwritable { path: destination.to_path_buf(), problem })?;
            tensors.push((part.name.as_str(), part.file_shape.as_slice(), data));
        }
    }
    tensors.sort_by_key(|t| t.0);
    let views: Vec<(&str, TensorView)> =
        tensors.iter().map(|(name, shape, data)| (*name, TensorView { shape, data: data.view() })).collect();
    safetensors_write::write(&path, &views, &[("format", "pt")])?;
    folder.commit()?;
    Ok(Converted {
        tensors: views.len(),
        parameters: views.iter().map(|(_, view)| view.len()).sum(),
        scheduler: scheduler.is_some(),
        warnings,
    })
}

struct Scheduler {
    class: String,
    text: String,
}

/// The scheduler's settings, if there are any; those of the first releases under today's names.
fn read_scheduler(source: &Path) -> Result<Option<Scheduler>, ModelError> {
    let (path, text) = match read_first(source, "scheduler_config.json", "scheduler/scheduler_config.json") {
        Err(ModelError::NotAModel { .. }) => return Ok(None),
        found => found?,
    };
    let parsed: Option<Value> = serde_json::from_str(&text).ok();
    match parsed.as_ref().and_then(|json| json["_class_name"].as_str()) {
        Some(class) if class != "GaussianDDPMScheduler" => Ok(Some(Scheduler { class: class.into(), text })),
        _ => match SchedulerConfig::from_json(&text) {
            Ok(config) => Ok(Some(Scheduler { class: config.sampler.class_name().into(), text: config.to_json() })),
            Err(source) => Err(ModelError::Scheduler { path, source }),
        },
    }
}

enum Rounded {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Rounded {
    fn view(&self) -> DataView<'_> {
        match self {
            Self::F32(data) => DataView::F32(data),
            Self::F16(data) => DataView::F16(data),
            Self::Bf16(data) => DataView::Bf16(data),
        }
    }
}

fn round(name: &str, data: Vec<f32>, stored: StoredAs) -> Result<Rounded, String> {
    let fits = |finite: bool, value: f32, type_name: &str| match finite {
        true => Ok(()),
        false => Err(format!("tensor {name:?} has the value {value}, which {type_name} cannot hold; take f32")),
    };
    match stored {
        StoredAs::F32 => Ok(Rounded::F32(data)),
        StoredAs::F16 => {
            let rounded: Vec<f16> = data.iter().map(|&v| f16::from_f32(v)).collect();
            rounded.iter().zip(&data).try_for_each(|(r, &v)| fits(r.is_finite(), v, "f16"))?;
            Ok(Rounded::F16(rounded))
        }
        StoredAs::Bf16 => {
            let rounded: Vec<bf16> = data.iter().map(|&v| bf16::from_f32(v)).collect();
            rounded.iter().zip(&data).try_for_each(|(r, &v)| fits(r.is_finite(), v, "bf16"))?;
            Ok(Rounded::Bf16(rounded))
        }
    }
}
