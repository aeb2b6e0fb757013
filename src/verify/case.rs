//! The case format: `case.json`, `golden.safetensors` and a model folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::VerifyError;
use crate::backend::Executable;
use crate::diffusion::SchedulerConfig;
use crate::io::{Alias, FileError, TensorData, TensorFile, WeightSource};
use crate::layout::nchw_to_nhwc;
use crate::model::adm::{Flags, QkvOrder, aliases};
use crate::model::{ClassifierModel, Lenient, bind_weights, open_network_leniently};
use crate::program::parameters;
use crate::unet::{ClassEmbedding, UNetConfig};

/// A golden case.
pub struct Case {
    name: String,
    json: Value,
    folder: PathBuf,
    golden: TensorFile,
    model: Option<(UNetConfig, WeightSource)>,
    /// What the tensors of the model's files are called in the goldens.
    order: Option<QkvOrder>,
}

/// The case folders that `path` names: itself, or the folders in it.
///
/// # Errors
/// [`VerifyError`] if there is none.
pub fn find_cases(path: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    if path.join("case.json").is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(FileError::os("open the case folder", path))?;
    let mut cases: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("case.json").is_file()).collect();
    cases.sort();
    if cases.is_empty() {
        return Err(VerifyError::Format {
            path: path.to_path_buf(),
            problem: "neither a case (a folder with case.json) nor a folder of cases".into(),
        });
    }
    Ok(cases)
}

impl Case {
    /// Reads a case; the model's weights are opened, not yet loaded.
    ///
    /// `on_warning` is told what is ignored of a model's files; without it, unknown keys and tensors are refused.
    ///
    /// # Errors
    /// [`VerifyError`] with the file that cannot be read.
    pub fn open(folder: &Path, on_warning: Option<&mut dyn FnMut(&str)>) -> Result<Self, VerifyError> {
        let path = folder.join("case.json");
        let text = fs::read_to_string(&path).map_err(FileError::os("read", &path))?;
        let format = |problem: String| VerifyError::Format { path: path.clone(), problem };
        let json: Value = serde_json::from_str(&text).map_err(|e| format(e.to_string()))?;
        let name = json["name"].as_str().ok_or_else(|| format("has no \"name\"".into()))?.to_string();
        if !json["checks"].is_array() {
            return Err(format("has no list \"checks\"".into()));
        }
        let golden = TensorFile::open(&folder.join(json["golden"].as_str().unwrap_or("golden.safetensors")))?;
        let folder = folder.to_path_buf();
        let mut case = Self { name, json, folder, golden, model: None, order: None };
        case.model = match (case.json["model_dir"].as_str(), case.json["layout"].as_str()) {
            (Some(_), Some("adm")) => case.open_adm_network(on_warning)?,
            (Some(dir), _) => {
                let model = case.folder.join(dir);
                // A case may declare that its files hold more than the network, as users' files do.
                let declared = case.json["store"]["extra_keys"] == true;
                Some(match on_warning {
                    None if declared => open_network(&model, Some(&mut |_| {}))?,
                    on_warning => open_network(&model, on_warning)?,
                })
            }
            (None, _) => None,
        };
        Ok(case)
    }

    /// The flags of a case that holds checkpoints of guided-diffusion.
    fn flags(&self) -> Result<Flags, VerifyError> {
        let path = self.folder.join(self.json["flags"].as_str().unwrap_or("model/flags.json"));
        let text = fs::read_to_string(&path).map_err(FileError::os("read", &path))?;
        Ok(Flags::parse(&text, path.display().to_string())?)
    }

    fn open_adm_network(
        &mut self,
        on_warning: Option<&mut dyn FnMut(&str)>,
    ) -> Result<Option<(UNetConfig, WeightSource)>, VerifyError> {
        let flags = self.flags()?;
        match on_warning {
            Some(on_warning) => flags.ignored().iter().for_each(|warning| on_warning(warning)),
            None => flags.check_known()?,
        }
        let Some(file) = self.json["checkpoints"]["unet"]["file"].as_str() else { return Ok(None) };
        let network = flags.network()?;
        self.order = Some(network.order);
        // The recorded timesteps are what the network gets, scaled already; gradients were recorded without dropout.
        let config = UNetConfig { timestep_scale: 1.0, dropout: 0.0, ..network.config };
        let mut weights = WeightSource::open(&self.folder.join(file))?;
        weights.rename(&aliases(&config, network.order, &parameters(&config)?));
        Ok(Some((config, weights)))
    }

    /// The classifier of a case, told the times as they are recorded.
    pub(super) fn classifier(&self) -> Result<ClassifierModel, VerifyError> {
        let Some(file) = self.json["checkpoints"]["classifier"]["file"].as_str() else {
            let path = self.golden.path().to_path_buf();
            return Err(VerifyError::Format { path, problem: "no classifier".into() });
        };
        let mut classifier = ClassifierModel::with_flags(&self.folder.join(file), &self.flags()?)?;
        classifier.config.encoder.timestep_scale = 1.0;
        Ok(classifier)
    }

    /// What a submodule is called in the goldens.
    pub(super) fn recorded_name<'n>(&self, tap: &'n str) -> &'n str {
        match (self.order, tap) {
            (Some(_), "time_embedding") => "time_embed",
            (Some(_), "mid_block") => "middle_block",
            (Some(_), "conv_norm_out") => "out.0",
            _ => tap,
        }
    }

    /// The rows and names that the gradients of parameters are recorded under.
    pub(super) fn aliases(&self) -> Result<Vec<Alias>, VerifyError> {
        let config = self.config()?;
        let params = parameters(config)?;
        Ok(aliases(config, self.order.unwrap_or_default(), &params))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name of the case.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn optional(&self) -> bool {
        self.json["optional"].as_bool().unwrap_or(false)
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = Check<'_>> {
        self.json["checks"].as_array().into_iter().flatten().map(|json| Check { case: self, json })
    }

    pub(super) fn config(&self) -> Result<&UNetConfig, VerifyError> {
        match &self.model {
            Some((config, _)) => Ok(config),
            None => Err(VerifyError::Format { path: self.golden.path().to_path_buf(), problem: "no model".into() }),
        }
    }

    /// Loads the weights into an executable.
    pub(super) fn load(&self, exe: &mut dyn Executable) -> Result<(), VerifyError> {
        match &self.model {
            Some((_, weights)) => Ok(bind_weights(exe, weights)?),
            None => Ok(()),
        }
    }

    /// Shape and elements of a golden tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f64>), VerifyError> {
        let tensor = self.golden.get(name)?;
        let data = match tensor.data {
            TensorData::F32(x) => x.into_iter().map(f64::from).collect(),
            TensorData::I64(x) => x.into_iter().map(|v| v as f64).collect(),
            TensorData::U8(x) => x.into_iter().map(f64::from).collect(),
        };
        Ok((tensor.shape, data))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.golden.info(name).is_ok()
    }
}

/// A model of which the scheduler does not matter: each check brings its own.
fn open_network(
    folder: &Path,
    on_warning: Option<&mut dyn FnMut(&str)>,
) -> Result<(UNetConfig, WeightSource), VerifyError> {
    if let Some(on_warning) = on_warning {
        let Lenient { config, weights, warnings, .. } = open_network_leniently(folder)?;
        warnings.iter().for_each(|warning| on_warning(warning));
        return Ok((config, weights));
    }
    let (config, _) = crate::model::read_config(folder)?;
    Ok((config, WeightSource::open(folder)?))
}

/// One check of a case.
#[derive(Clone, Copy)]
pub(super) struct Check<'a> {
    case: &'a Case,
    json: &'a Value,
}

impl<'a> Check<'a> {
    pub fn id(&self) -> &'a str {
        self.json["id"].as_str().unwrap_or("?")
    }

    pub fn kind(&self) -> &'a str {
        self.json["type"].as_str().unwrap_or("?")
    }

    pub fn error(&self, problem: impl Into<String>) -> VerifyError {
        VerifyError::Check { check: self.id().to_string(), problem: problem.into() }
    }

    /// A field that must be there.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<T, VerifyError> {
        serde_json::from_value(self.json[key].clone()).map_err(|e| self.error(format!("{key}: {e}")))
    }

    pub fn value(&self, key: &str) -> &'a Value {
        &self.json[key]
    }

    pub fn scheduler(&self, key: &str) -> Result<SchedulerConfig, VerifyError> {
        Ok(SchedulerConfig::from_value(&self.json[key])?)
    }

    fn tensor_name(&self, group: &str, key: &str) -> Result<&'a str, VerifyError> {
        self.json[group][key].as_str().ok_or_else(|| self.error(format!("no tensor {group}.{key}")))
    }

    /// Shape and elements of an input.
    pub fn input(&self, key: &str) -> Result<(Vec<usize>, Vec<f64>), VerifyError> {
        self.case.tensor(self.tensor_name("inputs", key)?)
    }

    pub fn has_input(&self, key: &str) -> bool {
        self.json["inputs"][key].is_string()
    }

    /// Elements of an output.
    pub fn output(&self, key: &str) -> Result<Vec<f64>, VerifyError> {
        Ok(self.case.tensor(self.tensor_name("outputs", key)?)?.1)
    }

    pub fn output_name(&self, key: &str) -> Result<&'a str, VerifyError> {
        self.tensor_name("outputs", key)
    }

    /// An input of images as f32 NHWC, with its NCHW shape.
    pub fn images(&self, key: &str) -> Result<([usize; 4], Vec<f32>), VerifyError> {
        let (shape, data) = self.input(key)?;
        let Ok(shape) = <[usize; 4]>::try_from(shape) else {
            return Err(self.error(format!("{key} is not a batch of images")));
        };
        let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
        Ok((shape, nchw_to_nhwc(&data, shape)))
    }

    /// The condition of a super-resolution model in the size of the images, NHWC: `low_res` of this check.
    pub fn condition(&self, to: (usize, usize)) -> Result<Vec<f32>, VerifyError> {
        let ([_, c, h, w], low_res) = self.images("low_res")?;
        Ok(crate::bilinear::resize(&low_res, c, (h, w), to))
    }

    /// Writes the class labels of this check, if it has any.
    pub fn write_labels(
        &self,
        exe: &mut dyn Executable,
        value: Option<crate::graph::ValueId>,
    ) -> Result<(), VerifyError> {
        let Some(value) = value else { return Ok(()) };
        let (_, labels) = self.input("class_labels")?;
        let config = self.case.config()?;
        match config.class_embed_type {
            None => exe.write_u32(value, &labels.iter().map(|&l| l as u32).collect::<Vec<_>>())?,
            Some(ClassEmbedding::Timestep | ClassEmbedding::Identity) => {
                exe.write_f32(value, &labels.iter().map(|&l| l as f32).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}
