//! Which of a folder's `.pt` files holds the weights.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::io::FileError;
use crate::model::ModelError;

/// What a training run saved: the moving average of its weights, or the weights themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// `ema_0.9999_500000.pt`.
    Ema,
    /// `model500000.pt`.
    Raw,
}

impl WeightKind {
    /// What the name of a file says; nothing for released files, which hold one kind alone.
    fn of(name: &str) -> Option<Self> {
        if name.starts_with("ema_") {
            return Some(Self::Ema);
        }
        let step = name.strip_prefix("model").unwrap_or_default();
        step.starts_with(|c: char| c.is_ascii_digit()).then_some(Self::Raw)
    }
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ema => "ema",
            Self::Raw => "raw",
        })
    }
}

/// The weights in a folder: the only file, or the only one of the kind that is asked for. The states of optimisers (`opt*.pt`)
/// and classifiers are not looked at.
///
/// # Errors
/// [`ModelError::Choice`] where there is none, or more than one.
pub fn choose_weights(folder: &Path, kind: Option<WeightKind>) -> Result<PathBuf, ModelError> {
    let entries = fs::read_dir(folder).map_err(FileError::os("open the model folder", folder))?;
    let mut files: Vec<(String, PathBuf)> = entries
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, path)| name.ends_with(".pt") && path.is_file())
        .filter(|(name, _)| !name.starts_with("opt") && !name.contains("classifier"))
        .collect();
    files.sort();
    let all: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    files.retain(|(name, _)| kind.is_none() || WeightKind::of(name) == kind);
    let refused = |problem: String| Err(ModelError::Choice { folder: folder.to_path_buf(), problem });
    match (files.as_slice(), kind) {
        ([(_, path)], _) => Ok(path.clone()),
        ([], _) if all.is_empty() => refused("has no .pt file with weights; name the file itself".into()),
        ([], Some(kind)) => refused(format!("has no {kind} weights among {}; name the file itself", all.join(", "))),
        (_, None) => refused(format!(
            "has several files of weights ({}); choose with --weights ema or --weights raw, or name the file itself",
            all.join(", ")
        )),
        (several, Some(kind)) => refused(format!(
            "has several files of {kind} weights ({}); name the file itself",
            several.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
        )),
    }
}
