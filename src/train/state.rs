//! `training/state.json`: how far a run is, and what it is trained with and on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{TrainError, TrainOptions};
use crate::backend::Precision;
use crate::data::Dataset;
use crate::io::FileError;
use crate::io::atomic_folder::locate;

/// Version of the checkpoint's layout; another one is refused.
pub const FORMAT: u64 = 1;
/// Where the state lies in a checkpoint folder.
pub(super) const STATE_FILE: &str = "training/state.json";
/// Images that enter a set's fingerprint.
const FINGERPRINT_IMAGES: usize = 16;

/// What a model was trained on, as far as samplers and a resumed run need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetDescription {
    /// A short name, for logs.
    pub name: String,
    /// Number of values a pixel can have.
    pub levels: u32,
    /// The classes' names; empty if there are none.
    pub class_names: Vec<String>,
    /// Number of images.
    pub len: usize,
    /// Hash of some images and labels, spread over the set.
    pub fingerprint: String,
}

impl DatasetDescription {
    /// Describes a set; reads a few of its images.
    ///
    /// # Errors
    /// [`TrainError::Data`] if one cannot be read.
    pub fn of(dataset: &dyn Dataset) -> Result<Self, TrainError> {
        let mut hash = Fnv::default();
        let mut pixels = vec![0; dataset.image_len()];
        let (len, count) = (dataset.len(), dataset.len().min(FINGERPRINT_IMAGES));
        for i in 0..count {
            // First and last image are among them.
            let index = (i as u128 * (len as u128 - 1) / (count as u128 - 1).max(1)) as usize;
            let label = dataset.pixels(index, &mut pixels).map_err(|source| TrainError::Data { step: 0, source })?;
            hash.add(&pixels);
            hash.add(&label.unwrap_or(u32::MAX).to_le_bytes());
        }
        Ok(Self {
            name: dataset.name().to_string(),
            levels: dataset.levels(),
            class_names: dataset.class_names(),
            len,
            fingerprint: format!("{:016x}", hash.0),
        })
    }

    /// What differs in `other`, as `property: this -> other`. The name may: a folder of images can be moved.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut list = Vec::new();
        let mut compare = |what: &str, old: String, new: String| {
            if old != new {
                list.push(format!("{what}: {old} -> {new}"));
            }
        };
        compare("levels", self.levels.to_string(), other.levels.to_string());
        compare("number of images", self.len.to_string(), other.len.to_string());
        compare("classes", format!("{:?}", self.class_names), format!("{:?}", other.class_names));
        compare("fingerprint of the images", self.fingerprint.clone(), other.fingerprint.clone());
        list
    }
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// The state of a run at a checkpoint, without its arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Version of the layout: [`FORMAT`].
    pub format: u64,
    /// Version of the program that wrote it.
    pub warpdiff: String,
    /// Updates done.
    pub step: u64,
    /// Time spent in steps, in seconds, over all sessions.
    pub seconds: f64,
    /// Arithmetic of the network; the device may change from session to session.
    #[serde(default)]
    pub precision: Precision,
    /// How it is trained.
    pub options: TrainOptions,
    /// What it is trained on.
    pub dataset: DatasetDescription,
}

/// The part of a state that every version of the format has.
#[derive(Deserialize)]
struct Version {
    format: u64,
    #[serde(default)]
    warpdiff: String,
}

impl TrainingState {
    /// Reads the state of a model folder; `None` if the model was not trained here.
    ///
    /// # Errors
    /// [`TrainError::Format`] for another version, [`TrainError::Malformed`], [`TrainError::File`].
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let path = locate(folder).join(STATE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Of a model that is a single file, too.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(FileError::os("read", &path)(error).into()),
        };
        Self::parse(&path, &text).map(Some)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, TrainError> {
        let malformed = |problem: String| TrainError::Malformed { path: PathBuf::from(path), problem };
        let version: Version = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if version.format != FORMAT {
            return Err(TrainError::Format {
                path: path.to_path_buf(),
                found: version.format,
                writer: version.warpdiff,
                supported: FORMAT,
            });
        }
        let state: Self = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        state.options.validate().map_err(|error| malformed(error.to_string()))?;
        if !(state.seconds >= 0.0 && state.seconds.is_finite()) {
            return Err(malformed(format!("seconds is {}", state.seconds)));
        }
        Ok(state)
    }

    /// The text of `training/state.json`.
    pub(super) fn to_json(&self) -> String {
        // Every field is a number, a text or a list of them, which have a JSON form.
        format!("{:#}\n", serde_json::to_value(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Digits;

    fn state() -> TrainingState {
        TrainingState {
            format: FORMAT,
            warpdiff: "0.1.0".into(),
            step: 12,
            seconds: 0.1 + 0.2,
            precision: Precision::Bf16,
            options: TrainOptions::default(),
            dataset: DatasetDescription::of(&Digits::load().unwrap()).unwrap(),
        }
    }

    #[test]
    fn text_round_trips() {
        let path = Path::new("x/training/state.json");
        assert_eq!(TrainingState::parse(path, &state().to_json()).unwrap(), state());
    }

    #[test]
    fn bad_states_are_refused_with_path_and_cause() {
        let path = Path::new("x/training/state.json");
        let parse = |text: &str| TrainingState::parse(path, text).unwrap_err();
        let newer = state().to_json().replace("\"format\": 1", "\"format\": 2");
        assert!(matches!(parse(&newer), TrainError::Format { found: 2, supported: 1, .. }));
        // A later version may have other fields; what counts is that it is told apart.
        let other = r#"{"format": 3, "warpdiff": "9.0", "something": []}"#;
        assert!(parse(other).to_string().contains("warpdiff 9.0"));
        let json = state().to_json();
        for text in [
            String::new(),
            json[..json.len() / 2].to_string(),
            json.replace("\"step\": 12", "\"step\": -1"),
            json.replace("\"step\": 12", "\"steps\": 12"),
            json.replace("\"batch_size\": 64", "\"batch_size\": 0"),
            json.replace("\"seconds\": 0.30000000000000004", "\"seconds\": -1.0"),
        ] {
            let error = parse(&text);
            assert!(matches!(error, TrainError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains("x/training/state.json"));
        }
    }

    #[test]
    fn fnv_matches_its_published_vector() {
        let mut hash = Fnv::default();
        hash.add(b"foobar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }
}
