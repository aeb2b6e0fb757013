//! The error type of training.

use std::path::PathBuf;

use thiserror::Error;

use crate::backend::BackendError;
use crate::data::DataError;
use crate::diffusion::DiffusionError;
use crate::io::FileError;
use crate::model::ModelError;
use crate::unet::ConfigError;

/// Why a training run cannot start, cannot go on or cannot be kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An option is outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The run needs more examples than the counters of the random numbers can number.
    #[error(
        "{steps} steps of {batch_size} examples are more than the {limit} examples that the 32-bit random counters \
         tell apart; take fewer steps or a smaller batch",
        limit = super::options::MAX_EXAMPLES
    )]
    TooManyExamples {
        /// Steps of the run.
        steps: u64,
        /// Examples per step.
        batch_size: usize,
    },
    /// The model's configuration can be sampled from, but not be trained this way.
    #[error("{key}: {problem}; {remedy}")]
    Untrainable {
        /// Key of the model's or the scheduler's configuration.
        key: &'static str,
        /// What is in the way.
        problem: String,
        /// What to change.
        remedy: &'static str,
    },
    /// The data set does not fit the model.
    #[error("the data set {dataset:?} does not fit the model: {problem}; {remedy}")]
    Dataset {
        /// Name of the set.
        dataset: String,
        /// What differs.
        problem: String,
        /// What to change.
        remedy: &'static str,
    },
    /// A label for which the model has no row in its class embedding.
    #[error(
        "the data set {dataset:?} has the label {label}, the model takes the labels 0..{classes}; \
         set num_class_embeds to the number of classes (one more if there is a null class, which comes last)"
    )]
    Label {
        /// Name of the set.
        dataset: String,
        /// The label.
        label: u32,
        /// Labels below this are accepted.
        classes: usize,
    },
    /// The examples of a step could not be read.
    #[error("step {step}: {source}")]
    Data {
        /// The step that needed them, counted from 1.
        step: u64,
        /// Why.
        source: DataError,
    },
    /// The thread that reads examples ended without an answer.
    #[error("step {step}: the thread that reads the data set has died; its panic message is above")]
    LoaderDied {
        /// The step that waited for it, counted from 1.
        step: u64,
    },
    /// The loss or the gradient is no number any more; the weights are lost.
    #[error(
        "step {step}: training diverged (loss {loss}, gradient norm {grad_norm}); nothing was written since the last \
         checkpoint: start again from it or anew, with a lower learning rate, a longer warm-up or stronger clipping"
    )]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
    },
    /// The state holds a NaN or an infinity, so it is not written.
    #[error(
        "after step {step} the {store} of {param} hold {value}: training diverged and this state is not written; start \
         again from the last checkpoint or anew, with a lower learning rate or a longer warm-up"
    )]
    NotFinite {
        /// Updates that were done.
        step: u64,
        /// Which array.
        store: &'static str,
        /// Name of the parameter.
        param: String,
        /// The value found.
        value: f32,
    },
    /// The destination holds a training run already.
    #[error(
        "{} holds a training run at step {step}; resume it, name another folder, or ask to overwrite it",
        folder.display()
    )]
    CheckpointExists {
        /// The folder.
        folder: PathBuf,
        /// Updates done in the run that is there.
        step: u64,
    },
    /// The destination holds something that training did not write.
    #[error("{} holds {found:?}, which no training run wrote; name another folder or empty this one", folder.display())]
    ForeignFolder {
        /// The folder.
        folder: PathBuf,
        /// What is in the way, relative to the folder.
        found: String,
    },
    /// There is nothing to resume.
    #[error(
        "{} is no checkpoint of a training run: it has no training/state.json; models from elsewhere can be sampled \
         from, not resumed",
        folder.display()
    )]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of a checkpoint is not there.
    #[error("{} is missing, so the run cannot be resumed; copy the whole checkpoint folder again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file of a checkpoint breaks its format.
    #[error("{}: {problem}; the file was changed or damaged, copy the checkpoint again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and in which line.
        problem: String,
    },
    /// A checkpoint of another version of the format.
    #[error(
        "{} has checkpoint format {found}, written by warpdiff {writer}; this version reads format {supported}: resume \
         with the version that wrote it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// Version of the program that wrote it.
        writer: String,
        /// The version that is read.
        supported: u64,
    },
    /// A run is to be resumed with other options.
    #[error(
        "{} was trained with other options:{}\nresume with the same options (only steps and checkpoint_every may \
         change), or start a new run in another folder",
        folder.display(), lines(differences)
    )]
    OptionsChanged {
        /// The checkpoint.
        folder: PathBuf,
        /// `name: in the checkpoint -> asked for`.
        differences: Vec<String>,
    },
    /// A run is to be resumed on other data.
    #[error(
        "{} was trained on other data:{}\nresume with the same data set, or start a new run in another folder",
        folder.display(), lines(differences)
    )]
    DatasetChanged {
        /// The checkpoint.
        folder: PathBuf,
        /// `property: in the checkpoint -> given`.
        differences: Vec<String>,
    },
    /// A run is to be resumed up to a step that it has passed.
    #[error("{} is at step {step} already, {asked} were asked for; ask for at least {step}", folder.display())]
    AlreadyPast {
        /// The checkpoint.
        folder: PathBuf,
        /// Updates done.
        step: u64,
        /// Updates asked for.
        asked: u64,
    },
    /// The run has done all its steps.
    #[error("all {steps} steps are done; resume the checkpoint with more steps to go on")]
    Complete {
        /// Steps of the run.
        steps: u64,
    },
    /// The network's configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The noise schedule is refused.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// The model's folder is refused.
    #[error(transparent)]
    Model(ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<ModelError> for TrainError {
    /// Files and devices fail in one place, whichever reader met it.
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::File(error) => Self::File(error),
            ModelError::Backend(error) => Self::Backend(error),
            other => Self::Model(other),
        }
    }
}

fn lines(items: &[String]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}
