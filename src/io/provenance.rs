//! What a file of samples says about itself: the settings of its run, and which samples of the run it holds.
//!
//! As JSON: the member `warpdiff.json` of an `.npz` or of a folder, the entry `warpdiff` of a safetensors header and the text
//! `warpdiff` of a PNG.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::FileError;
use super::npz_read::NpzFile;
use super::sink::OutputKind;
use super::tensor_file::TensorFile;

/// Keyword of the text in a PNG and key in the header of a safetensors file.
pub const KEY: &str = "warpdiff";
/// Name of the file in a folder and of the member in an `.npz`.
pub const FILE: &str = "warpdiff.json";
/// The key of [`Provenance::range`]; no setting may have it.
const RANGE: &str = "range";

/// The origin of the samples in one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// Everything that decides what the samples of the run are, by name.
    pub settings: Map<String, Value>,
    /// Which of them are here, by their index in the whole run.
    pub range: Range<usize>,
}

impl Provenance {
    /// The text that is stored; equal provenances have equal texts.
    pub fn to_json(&self) -> String {
        self.with(RANGE, json!([self.range.start, self.range.end]))
    }

    /// The text of one picture, which says its index in place of the range: a run in one piece writes the same.
    pub fn image_json(&self, index: usize) -> String {
        self.with("index", index.into())
    }

    fn with(&self, key: &str, value: Value) -> String {
        let mut all = self.settings.clone();
        all.insert(key.to_string(), value);
        Value::Object(all).to_string()
    }

    /// Reads a stored text; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut settings: Map<String, Value> = serde_json::from_str(text).ok()?;
        let (first, end): (usize, usize) = serde_json::from_value(settings.remove(RANGE)?).ok()?;
        (first <= end).then_some(Self { settings, range: first..end })
    }

    /// What the output at `path` says about itself; `None` if there is no such output or it says nothing.
    ///
    /// # Errors
    /// [`FileError`] if it is there and cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        if !path.exists() {
            return Ok(None);
        }
        let text = match OutputKind::of(path)? {
            OutputKind::Npz => NpzFile::open(path)?.text(FILE)?,
            OutputKind::Tensors => TensorFile::open(path)?.metadata().get(KEY).cloned(),
            OutputKind::Folder => {
                let file = path.join(FILE);
                match std::fs::read_to_string(&file) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    other => Some(other.map_err(FileError::os("read", &file))?),
                }
            }
            OutputKind::Grid | OutputKind::Animation => None,
        };
        Ok(text.as_deref().and_then(Self::parse))
    }

    /// The settings in which `self`, already there, differs from `wanted`: one phrase each.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &self.settings, &wanted.settings, &mut found);
        if found.is_empty() && self.range != wanted.range {
            let said = |r: &Range<usize>| format!("{}..{}", r.start, r.end);
            found.push(format!("samples: {} there, {} here", said(&self.range), said(&wanted.range)));
        }
        found
    }
}

fn compare(prefix: &str, there: &Map<String, Value>, here: &Map<String, Value>, found: &mut Vec<String>) {
    let new = here.keys().filter(|key| !there.contains_key(*key));
    for key in there.keys().chain(new) {
        match (there.get(key), here.get(key)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => compare(&format!("{prefix}{key}."), a, b, found),
            (a, b) if a != b => {
                let said = |value: Option<&Value>| value.map_or("not set".to_string(), ToString::to_string);
                found.push(format!("{prefix}{key}: {} there, {} here", said(a), said(b)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(settings: Value, range: Range<usize>) -> Provenance {
        let Value::Object(settings) = settings else { panic!("no object") };
        Provenance { settings, range }
    }

    #[test]
    fn the_text_comes_back_and_says_what_differs() {
        let a = provenance(json!({"seed": 1, "scheduler": {"steps": 5, "eta": 0.0}, "model": "abc"}), 3..9);
        assert_eq!(Provenance::parse(&a.to_json()), Some(a.clone()));
        assert!(a.differences(&a).is_empty());
        let b = provenance(json!({"seed": 2, "scheduler": {"steps": 5, "eta": 0.5}, "guidance": 2.0}), 3..9);
        let expected = [
            "model: \"abc\" there, not set here",
            "scheduler.eta: 0.0 there, 0.5 here",
            "seed: 1 there, 2 here",
            "guidance: not set there, 2.0 here",
        ];
        assert_eq!(a.differences(&b), expected);
        let other = Provenance { range: 3..8, ..a.clone() };
        assert_eq!(a.differences(&other), ["samples: 3..9 there, 3..8 here"]);
        assert_eq!(a.image_json(4), other.image_json(4));
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "[1]", "{}", "{\"range\":[3]}", "{\"range\":[5,4]}", "{\"range\":[-1,4]}"] {
            assert_eq!(Provenance::parse(text), None, "{text}");
        }
    }
}
