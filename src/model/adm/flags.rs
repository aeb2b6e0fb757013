//! The flags of guided-diffusion's and improved-diffusion's scripts, as a JSON object or as a command line.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::model::ModelError;

/// Every flag of the scripts that says something about a model or its noise schedule; the last three are what the
/// scripts have as constants.
const KNOWN: [&str; 39] = [
    "image_size",
    "large_size",
    "small_size",
    "num_channels",
    "num_res_blocks",
    "num_heads",
    "num_heads_upsample",
    "num_head_channels",
    "attention_resolutions",
    "channel_mult",
    "dropout",
    "class_cond",
    "use_checkpoint",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_fp16",
    "use_new_attention_order",
    "learn_sigma",
    "sigma_small",
    "diffusion_steps",
    "noise_schedule",
    "timestep_respacing",
    "use_kl",
    "predict_xstart",
    "rescale_timesteps",
    "rescale_learned_sigmas",
    "use_ddim",
    "clip_denoised",
    "classifier_use_fp16",
    "classifier_width",
    "classifier_depth",
    "classifier_attention_resolutions",
    "classifier_use_scale_shift_norm",
    "classifier_resblock_updown",
    "classifier_pool",
    "classifier_scale",
    "num_classes",
    "classifier_channel_mult",
    "classifier_num_head_channels",
];

/// No flag counts further in any published model; products of such numbers do not overflow.
const MOST: usize = 1 << 24;

/// Flags of the scripts, not yet read as a model.
#[derive(Clone, Debug)]
pub struct Flags {
    /// Where they come from, for messages.
    origin: String,
    values: BTreeMap<String, Value>,
    /// Those that no script has.
    unknown: Vec<String>,
}

impl Flags {
    /// Reads a JSON object, or a command line: `--image_size 64 --class_cond True`. `origin` names the source in messages.
    ///
    /// # Errors
    /// [`ModelError::Flags`] for text that is neither.
    pub fn parse(text: &str, origin: impl Into<String>) -> Result<Self, ModelError> {
        let origin = origin.into();
        let refused = |problem: String| ModelError::Flags { origin: origin.clone(), problem };
        let map: Map<String, Value> = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|e| refused(e.to_string()))?
        } else {
            command_line(text).map_err(refused)?
        };
        let known: BTreeSet<&str> = KNOWN.into_iter().collect();
        let unknown = map.iter().filter(|(key, _)| !known.contains(key.as_str()));
        let unknown = unknown.map(|(key, value)| format!("{key} = {value}")).collect();
        Ok(Self { origin, values: map.into_iter().filter(|(key, _)| known.contains(key.as_str())).collect(), unknown })
    }

    /// Refuses flags that no script has.
    ///
    /// # Errors
    /// [`ModelError::Flags`], with all of them.
    pub fn check_known(&self) -> Result<(), ModelError> {
        match self.unknown.is_empty() {
            true => Ok(()),
            false => Err(self.refused(format!(
                "{} is not a flag of a model or its noise schedule; remove it, or ask for --lenient",
                self.unknown.join(", ")
            ))),
        }
    }

    /// A line for each flag that no script has.
    pub fn ignored(&self) -> Vec<String> {
        self.unknown.iter().map(|flag| format!("{}: {flag} is not known; ignored", self.origin)).collect()
    }

    /// The error that names the source of the flags.
    pub(super) fn refused(&self, problem: impl Into<String>) -> ModelError {
        ModelError::Flags { origin: self.origin.clone(), problem: problem.into() }
    }

    /// Whether a flag is given; an empty string says as much as nothing.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
    }

    /// Whether there are flags of a classifier and none of a denoising network.
    pub(super) fn describe_a_classifier_alone(&self) -> bool {
        let network = ["num_channels", "num_res_blocks", "attention_resolutions", "large_size"];
        let classifier =
            ["classifier_width", "classifier_depth", "classifier_attention_resolutions", "classifier_pool"];
        classifier.iter().any(|key| self.has(key)) && !network.iter().any(|key| self.has(key))
    }

    /// A switch.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.given(key) else { return Ok(default) };
        let text = text_of(value).to_lowercase();
        match text.as_str() {
            "true" | "yes" | "t" | "y" | "1" => Ok(true),
            "false" | "no" | "f" | "n" | "0" => Ok(false),
            _ => Err(self.refused(format!("{key} = {value} is neither True nor False"))),
        }
    }

    /// A whole number.
    pub(super) fn count(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let Some(value) = self.given(key) else { return Ok(default) };
        match text_of(value).trim().parse() {
            Ok(number) if (1..=MOST).contains(&number) => Ok(number),
            _ => Err(self.refused(format!("{key} = {value} is not a whole number in 1..={MOST}"))),
        }
    }

    /// A whole number, of which -1 says that there is none.
    pub(super) fn count_unless_minus_one(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.given(key) {
            Some(value) if text_of(value).trim() == "-1" => Ok(None),
            Some(_) => self.count(key, 0).map(Some),
            None => Ok(None),
        }
    }

    /// A number.
    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let Some(value) = self.given(key) else { return Ok(default) };
        match text_of(value).trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self.refused(format!("{key} = {value} is not a number"))),
        }
    }

    /// Text.
    pub(super) fn text(&self, key: &str, default: &str) -> String {
        self.given(key).map_or(default.to_string(), text_of)
    }

    /// Numbers above 0, separated by commas; nothing where the flag is not given or empty.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>, ModelError> {
        let Some(value) = self.given(key) else { return Ok(Vec::new()) };
        let fields: Vec<String> = match value {
            Value::Array(values) => values.iter().map(text_of).collect(),
            other => text_of(other).split(',').map(str::to_string).collect(),
        };
        let number = |field: &String| field.trim().parse::<f64>().ok().filter(|n| *n > 0.0 && n.is_finite());
        fields
            .iter()
            .map(number)
            .collect::<Option<Vec<f64>>>()
            .ok_or_else(|| self.refused(format!("{key} = {value} is not a list of positive numbers")))
    }

    fn given(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|_| self.has(key))
    }
}

/// A value as it stands on a command line.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// `--key value` and `--key=value`; line ends may be escaped, and values quoted.
fn command_line(text: &str) -> Result<Map<String, Value>, String> {
    let mut map = Map::new();
    let mut words = text.split_whitespace().filter(|word| *word != "\\");
    while let Some(word) = words.next() {
        let Some(key) = word.strip_prefix("--") else {
            return Err(format!("{word:?} is neither a flag (--name value) nor the beginning of a JSON object"));
        };
        let (key, value) = match key.split_once('=') {
            Some((key, value)) => (key, value),
            None => (key, words.next().ok_or_else(|| format!("--{key} has no value"))?),
        };
        let value = value.trim_matches(['"', '\'']);
        if map.insert(key.to_string(), value.into()).is_some_and(|before| before != value) {
            return Err(format!("--{key} is given twice, with different values"));
        }
    }
    Ok(map)
}
