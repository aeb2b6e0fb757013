//! A model folder, flat (`config.json` beside the weights) or as a pipeline (`unet/`, `scheduler/`).

use std::fs;
use std::path::{Path, PathBuf};

use super::adm::{Flags, QkvOrder, WeightKind, aliases, arch, choose_weights};
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
    layout: Layout,
}

/// How a model lies on disk.
#[derive(Clone, Debug)]
enum Layout {
    /// A folder with `config.json`.
    Diffusers,
    /// A checkpoint with flags.
    Adm { file: PathBuf, order: QkvOrder, flags: Flags },
}

/// What is to be known of a model beside its path.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Ignore keys and tensors that are not known.
    pub lenient: bool,
    /// The flags of an ADM checkpoint; by default `flags.json` beside it.
    pub flags: Option<PathBuf>,
    /// Name of a released ADM model, which says its flags.
    pub arch: Option<String>,
    /// Which of the weights in a folder of ADM checkpoints.
    pub weights: Option<WeightKind>,
}

/// The name under which flags lie beside a checkpoint.
const FLAGS: &str = "flags.json";

impl OpenOptions {
    /// The flags of the ADM checkpoint or folder at `path`, if it is one.
    ///
    /// # Errors
    /// [`ModelError`] for flags that cannot be read, and for a checkpoint without any.
    pub fn adm_flags(&self, path: &Path) -> Result<Option<Flags>, ModelError> {
        if self.flags.is_some() && self.arch.is_some() {
            let problem = "--flags and --arch both say the flags; give one of them".into();
            return Err(ModelError::Flags { origin: "--arch".into(), problem });
        }
        if let Some(arch) = &self.arch {
            return Ok(Some(arch::flags(arch)?));
        }
        let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let file = match &self.flags {
            Some(file) => file.clone(),
            None => folder.join(FLAGS),
        };
        if self.flags.is_some() || file.is_file() && (path.is_file() || !is_diffusers(path)) {
            let text = fs::read_to_string(&file).map_err(FileError::os("read", &file))?;
            return Ok(Some(Flags::parse(&text, file.display().to_string())?));
        }
        if !path.is_file() {
            return Ok(None);
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let hint = match arch::names().find(|name| *name == stem) {
            Some(name) => format!("if it is the released model, add --arch {name}"),
            None => format!("put them beside it as {FLAGS}, or name them with --flags or --arch"),
        };
        let problem =
            format!("a checkpoint needs the flags of the script that sampled it, and there is no {FLAGS}; {hint}");
        Err(ModelError::Flags { origin: path.display().to_string(), problem })
    }
}

/// Whether a folder has a diffusers configuration.
fn is_diffusers(folder: &Path) -> bool {
    ["config.json", "unet/config.json", "model_index.json"].iter().any(|name| folder.join(name).is_file())
}

impl ModelFolder {
    /// Reads the configuration of a model folder.
    ///
    /// # Errors
    /// [`ModelError`], naming the file, the key and the remedy.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(Self::open_with(path, &OpenOptions::default())?.0)
    }

    /// Reads the configuration of a model folder, or of a checkpoint of guided-diffusion. The second result is a line for
    /// everything that is ignored.
    ///
    /// # Errors
    /// [`ModelError`], naming the file, the key and the remedy.
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<(Self, Vec<String>), ModelError> {
        let path = locate(path);
        match options.adm_flags(&path)? {
            Some(flags) => Self::open_adm(path, flags, options),
            None if options.weights.is_some() => Err(ModelError::Choice {
                folder: path,
                problem: "is not a folder of ADM checkpoints, which alone hold several weights; leave out --weights"
                    .into(),
            }),
            None if options.lenient => Self::open_leniently(path),
            None => Ok((Self::open_strictly(path)?, Vec::new())),
        }
    }

    fn open_adm(path: PathBuf, flags: Flags, options: &OpenOptions) -> Result<(Self, Vec<String>), ModelError> {
        if !path.exists() {
            return Err(ModelError::NoFolder { folder: path });
        }
        if !options.lenient {
            flags.check_known()?;
        }
        let network = flags.network()?;
        let file = if path.is_file() { path.clone() } else { choose_weights(&path, options.weights)? };
        let mut warnings = flags.ignored();
        let layout = Layout::Adm { file, order: network.order, flags };
        let mut model =
            Self { path, config: network.config, scheduler: network.scheduler, ignored: Vec::new(), layout };
        if options.lenient {
            let weights = model.weights()?;
            model.ignored = unexpected_tensors(&model.parameters()?, &weights)?;
            warnings.extend(ignored_tensors(&weights, &model.ignored));
        }
        Ok((model, warnings))
    }

    fn parameters(&self) -> Result<Vec<ParamSpec>, ModelError> {
        parameters(&self.config).map_err(|source| ModelError::Config { path: self.path.clone(), source })
    }

    /// The flags of an ADM checkpoint.
    pub fn flags(&self) -> Option<&Flags> {
        match &self.layout {
            Layout::Diffusers => None,
            Layout::Adm { flags, .. } => Some(flags),
        }
    }

    fn open_strictly(path: PathBuf) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Err(ModelError::NoFolder { folder: path });
        }
        let (config, _) = read_config(&path)?;
        let (file, text) = read_first(&path, "scheduler_config.json", "scheduler/scheduler_config.json")?;
        let scheduler =
            SchedulerConfig::from_json(&text).map_err(|source| ModelError::Scheduler { path: file, source })?;
        Ok(Self { path, config, scheduler, ignored: Vec::new(), layout: Layout::Diffusers })
    }

    fn open_leniently(path: PathBuf) -> Result<(Self, Vec<String>), ModelError> {
        if !path.is_dir() {
            return Err(ModelError::NoFolder { folder: path });
        }
        let Lenient { config, ignored, mut warnings, .. } = open_network_leniently(&path)?;
        let (file, text) = read_first(&path, "scheduler_config.json", "scheduler/scheduler_config.json")?;
        match SchedulerConfig::from_json_lenient(&text) {
            Ok((scheduler, keys)) => {
                warnings.extend(ignored_keys(&file, &keys));
                Ok((Self { path, config, scheduler, ignored, layout: Layout::Diffusers }, warnings))
            }
            Err(source) => Err(ModelError::Scheduler { path: file, source }),
        }
    }

    /// Opens the weights.
    ///
    /// # Errors
    /// [`ModelError::File`].
    pub fn weights(&self) -> Result<WeightSource, ModelError> {
        let mut source = match &self.layout {
            Layout::Diffusers => WeightSource::open(&self.path)?,
            Layout::Adm { file, order, .. } => {
                let mut source = WeightSource::open(file)?;
                source.rename(&aliases(&self.config, *order, &self.parameters()?));
                source
            }
        };
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
    warnings.extend(ignored_tensors(&weights, &ignored));
    Ok(Lenient { config, weights, ignored, warnings })
}

fn ignored_tensors(weights: &WeightSource, names: &[String]) -> Vec<String> {
    let file = weights.path().display();
    names.iter().map(|name| format!("{file}: the tensor {name} is not part of the network; ignored")).collect()
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
