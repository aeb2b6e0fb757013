//! Checkpoint folders: a model as samplers read it, with the state of its training beside it.
//!
//! ```text
//! model_index.json  scheduler/scheduler_config.json
//! unet/config.json  unet/diffusion_pytorch_model.safetensors     the moving average: what samplers use
//! training/state.json    step, options, data set
//! training/weights.safetensors  moment1.safetensors  moment2.safetensors
//! training/log.csv       one line per step
//! ```
//!
//! The folder is always replaced as a whole, so a killed writer leaves the old one or the new one.

use std::fs;
use std::io;
use std::path::Path;

use super::log::{StepReport, read_csv, to_csv};
use super::state::STATE_FILE;
use super::{TrainError, TrainingState};
use crate::backend::Store;
use crate::diffusion::SchedulerConfig;
use crate::graph::ParamSpec;
use crate::io::atomic_folder::{AtomicFolder, Replace, locate, recover};
use crate::io::{FileError, WeightSource};
use crate::model::{ModelFolder, read_weights, save_model, write_weights};
use crate::unet::UNetConfig;

const LOG_FILE: &str = "training/log.csv";
/// The arrays beside the moving average, with their files.
const ARRAYS: [(Store, &str); 3] = [
    (Store::Params, "training/weights.safetensors"),
    (Store::Moment1, "training/moment1.safetensors"),
    (Store::Moment2, "training/moment2.safetensors"),
];
/// Everything a checkpoint holds, folders included.
const ENTRIES: [&str; 12] = [
    "model_index.json",
    "scheduler",
    "scheduler/scheduler_config.json",
    "training",
    STATE_FILE,
    LOG_FILE,
    ARRAYS[0].1,
    ARRAYS[1].1,
    ARRAYS[2].1,
    "unet",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

/// What a new run does with an earlier run's checkpoint in its folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuses to start.
    #[default]
    Refuse,
    /// Replaces it, at the first checkpoint of the new run.
    Overwrite,
}

/// Values of every parameter, in the graph's layout.
pub type Arrays = Vec<Vec<f32>>;

/// What is written, beside the arrays.
pub(super) struct Contents<'a> {
    pub config: &'a UNetConfig,
    pub scheduler: &'a SchedulerConfig,
    pub params: &'a [ParamSpec],
    pub state: &'a TrainingState,
    pub log: &'a [StepReport],
}

/// Writes a checkpoint. `arrays` hands out one store after the other, so that one at a time is held in memory.
///
/// # Errors
/// [`TrainError::ForeignFolder`], [`TrainError::NotFinite`], [`TrainError::File`]; what was in the folder is then still there.
pub(super) fn write(
    folder: &Path,
    contents: &Contents<'_>,
    arrays: impl Fn(Store) -> Result<Arrays, TrainError>,
) -> Result<(), TrainError> {
    check_entries(folder)?;
    let Contents { config, scheduler, params, state, log } = contents;
    let get = |store| {
        let values = arrays(store)?;
        check_finite(state.step, store, params, &values).map(|()| values)
    };
    let new = AtomicFolder::create(folder, REPLACE)?;
    save_model(new.path(), config, scheduler, params, &get(Store::Ema)?)?;
    for (store, name) in ARRAYS {
        write_weights(&new.path().join(name), params, &get(store)?)?;
    }
    for (name, text) in [(STATE_FILE, state.to_json()), (LOG_FILE, to_csv(log))] {
        let path = new.path().join(name);
        fs::write(&path, text).map_err(FileError::os("write", &path))?;
    }
    Ok(new.commit()?)
}

const REPLACE: Replace = Replace::IfOnly(|name| ENTRIES.contains(&name));

fn check_finite(step: u64, store: Store, params: &[ParamSpec], values: &[Vec<f32>]) -> Result<(), TrainError> {
    for (spec, values) in params.iter().zip(values) {
        if let Some(&value) = values.iter().find(|x| !x.is_finite()) {
            let store = match store {
                Store::Params => "weights",
                Store::Moment1 => "first moments",
                Store::Moment2 => "second moments",
                Store::Ema => "averaged weights",
            };
            return Err(TrainError::NotFinite { step, store, param: spec.name.clone(), value });
        }
    }
    Ok(())
}

/// Checks before a run starts that its checkpoints can be written to `folder`.
///
/// # Errors
/// [`TrainError::CheckpointExists`], [`TrainError::ForeignFolder`], [`TrainError::File`] (no permission, no such disk, ...).
pub(super) fn check_destination(folder: &Path, existing: Existing) -> Result<(), TrainError> {
    check_entries(folder)?;
    if existing == Existing::Refuse
        && let Some(state) = TrainingState::read(folder)?
    {
        return Err(TrainError::CheckpointExists { folder: folder.to_path_buf(), step: state.step });
    }
    // Finds out about missing permissions now rather than at the first checkpoint; dropping it leaves no trace.
    drop(AtomicFolder::create(folder, REPLACE)?);
    Ok(())
}

/// Accepts a vacant or empty folder and one that holds a checkpoint and nothing else.
///
/// A model that somebody else trained has a checkpoint's file names too, but no state.
fn check_entries(folder: &Path) -> Result<(), TrainError> {
    recover(folder)?;
    let foreign = |found: String| Err(TrainError::ForeignFolder { folder: folder.to_path_buf(), found });
    let names = list(folder)?;
    if let Some(first) = names.first()
        && !folder.join(STATE_FILE).is_file()
    {
        return foreign(first.clone());
    }
    for name in names {
        if !ENTRIES.contains(&name.as_str()) {
            return foreign(name);
        }
        let path = folder.join(&name);
        let inner = if path.is_dir() { list(&path)? } else { Vec::new() };
        if let Some(unknown) = inner.iter().map(|i| format!("{name}/{i}")).find(|i| !ENTRIES.contains(&i.as_str())) {
            return foreign(unknown);
        }
    }
    Ok(())
}

/// Names in a folder; none if it does not exist.
fn list(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::os("list", folder))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(FileError::os("list", folder))
}

/// A checkpoint that was opened: everything but the arrays.
#[derive(Debug)]
pub struct Checkpoint {
    /// Configuration and place of the model.
    pub model: ModelFolder,
    /// State of its training.
    pub state: TrainingState,
    /// One report per step so far.
    pub log: Vec<StepReport>,
}

impl Checkpoint {
    /// Opens a checkpoint, strictly: whatever is missing or damaged is an error.
    ///
    /// # Errors
    /// [`TrainError::NotACheckpoint`], [`TrainError::Missing`], [`TrainError::Format`], [`TrainError::Malformed`],
    /// [`TrainError::Model`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let folder = locate(folder);
        let not_one = || TrainError::NotACheckpoint { folder: folder.clone() };
        let state = TrainingState::read(&folder)?.ok_or_else(not_one)?;
        let log = read_csv(&folder.join(LOG_FILE), state.step)?;
        Ok(Self { model: ModelFolder::open(&folder)?, state, log })
    }

    /// Reads one of the four arrays, in the layout of `params`.
    ///
    /// # Errors
    /// [`TrainError::Missing`]; [`TrainError::Model`] for wrong names or shapes, damaged files and numbers that are not finite.
    pub fn arrays(&self, store: Store, params: &[ParamSpec]) -> Result<Arrays, TrainError> {
        let file = ARRAYS.iter().find(|(s, _)| *s == store).map_or(ENTRIES[11], |(_, name)| name);
        let path = self.model.path.join(file);
        if !path.is_file() {
            return Err(TrainError::Missing { path });
        }
        Ok(read_weights(params, &WeightSource::open(&path)?)?)
    }
}
