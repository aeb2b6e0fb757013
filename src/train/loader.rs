//! Batches of training examples, made on a background thread while the previous step runs.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::{TrainError, TrainOptions};
use crate::data::{Dataset, dataset_index, pixel_to_value};
use crate::rng::{Sequence, Stream};
use crate::unet::UNetConfig;

/// The examples of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    /// The step, counted from 0.
    pub step: u64,
    /// x_0 in [-1, 1], `[N, H, W, C]`.
    pub x0: Vec<f32>,
    /// Global index of each example in the run, `[N]`.
    pub index: Vec<u32>,
    /// Rows of the class embedding, `[N]`; empty for an unconditional model.
    pub labels: Vec<u32>,
    pixels: Vec<u8>,
}

/// Labels as a class-conditional model takes them.
#[derive(Clone, Copy, Debug)]
struct Labels {
    /// Labels are below this.
    classes: usize,
    /// Row that stands for "no label", with the probability of being put in a label's place.
    null: Option<(u32, f32)>,
}

/// How the examples of a step are made: a pure function of (seed, step, N).
#[derive(Clone)]
pub struct Batches {
    dataset: Arc<dyn Dataset>,
    batch_size: usize,
    seed: u64,
    flip: bool,
    labels: Option<Labels>,
    /// x_0 of every pixel value.
    values: Arc<[f32; 256]>,
}

impl Batches {
    /// Checks that the set fits the model.
    ///
    /// # Errors
    /// [`TrainError::Dataset`] for other channels, another size, other grey levels or no labels; [`TrainError::Label`];
    /// [`TrainError::Untrainable`] for label dropout without a null class and for class embeddings that are no table.
    pub fn new(dataset: Arc<dyn Dataset>, options: &TrainOptions, config: &UNetConfig) -> Result<Self, TrainError> {
        check_images(dataset.as_ref(), config)?;
        let labels = labels(dataset.as_ref(), options, config)?;
        let levels = dataset.levels();
        let values = Arc::new(std::array::from_fn(|pixel| pixel_to_value(pixel as u8, levels)));
        Ok(Self { dataset, batch_size: options.batch_size, seed: options.seed, flip: options.flip, labels, values })
    }

    /// Writes the examples of `step`, counted from 0, to `out`.
    ///
    /// # Errors
    /// [`TrainError::Data`], [`TrainError::Label`], [`TrainError::Dataset`] (a label is absent), and
    /// [`TrainError::TooManyExamples`] past the end of the counters.
    pub fn fill(&self, step: u64, out: &mut Examples) -> Result<(), TrainError> {
        let (n, len) = (self.batch_size, self.dataset.image_len());
        let too_many = || TrainError::TooManyExamples { steps: step.saturating_add(1), batch_size: n };
        let first = step.checked_mul(n as u64).ok_or_else(too_many)?;
        out.step = step;
        out.x0.resize(n * len, 0.0);
        out.pixels.resize(len, 0);
        out.index.clear();
        out.labels.clear();
        for (i, x0) in out.x0.chunks_mut(len).enumerate() {
            let global = first.checked_add(i as u64).ok_or_else(too_many)?;
            let example = u32::try_from(global).map_err(|_| too_many())?;
            let item = dataset_index(self.seed, global, self.dataset.len());
            let label = self
                .dataset
                .pixels(item, &mut out.pixels)
                .map_err(|source| TrainError::Data { step: step + 1, source })?;
            for (x, &pixel) in x0.iter_mut().zip(&out.pixels) {
                *x = self.values[usize::from(pixel)];
            }
            if self.flip && Sequence::new(self.seed, Stream::Flip, example, 0).below(0, 2) == 1 {
                mirror(x0, self.dataset.width(), self.dataset.channels());
            }
            out.index.push(example);
            if let Some(labels) = self.labels {
                out.labels.push(self.label(labels, label, example)?);
            }
        }
        Ok(())
    }

    fn label(&self, labels: Labels, label: Option<u32>, example: u32) -> Result<u32, TrainError> {
        let label = label.ok_or_else(|| no_labels(self.dataset.as_ref()))?;
        if label as usize >= labels.classes {
            return Err(out_of_range(self.dataset.as_ref(), label, labels.classes));
        }
        match labels.null {
            Some((null, p)) if Sequence::new(self.seed, Stream::LabelDrop, example, 0).uniform(0) < p => Ok(null),
            _ => Ok(label),
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.dataset.name();
        f.debug_struct("Batches").field("dataset", &set).field("batch_size", &self.batch_size).finish_non_exhaustive()
    }
}

fn misfit(dataset: &dyn Dataset, problem: String, remedy: &'static str) -> TrainError {
    TrainError::Dataset { dataset: dataset.name().to_string(), problem, remedy }
}

fn no_labels(dataset: &dyn Dataset) -> TrainError {
    let problem = "the model is class-conditional and the images have no labels".to_string();
    misfit(dataset, problem, "take a labelled set, or a model without num_class_embeds")
}

fn out_of_range(dataset: &dyn Dataset, label: u32, classes: usize) -> TrainError {
    TrainError::Label { dataset: dataset.name().to_string(), label, classes }
}

fn check_images(dataset: &dyn Dataset, config: &UNetConfig) -> Result<(), TrainError> {
    let (channels, h, w) = (dataset.channels(), dataset.height(), dataset.width());
    if config.condition_channels > 0 {
        let problem = "the network is conditioned on low-resolution images, which no data set here has".into();
        return Err(misfit(dataset, problem, "train a network without condition_channels"));
    }
    if channels != config.in_channels {
        let problem = format!("its images have {channels} channels, in_channels is {}", config.in_channels);
        return Err(misfit(dataset, problem, "convert the images or change in_channels"));
    }
    if let Some((rows, columns)) = config.height_width()
        && (rows, columns) != (h, w)
    {
        let problem = format!("its images are {h}x{w} (height x width), sample_size is {rows}x{columns}");
        return Err(misfit(dataset, problem, "resize the images or change sample_size"));
    }
    config.check_size(h, w)?;
    if !(2..=256).contains(&dataset.levels()) {
        let problem = format!("its pixels have {} levels", dataset.levels());
        return Err(misfit(dataset, problem, "training needs 2 to 256 levels"));
    }
    Ok(())
}

fn labels(dataset: &dyn Dataset, options: &TrainOptions, config: &UNetConfig) -> Result<Option<Labels>, TrainError> {
    if let Some(kind) = config.class_embed_type {
        return Err(TrainError::Untrainable {
            key: "class_embed_type",
            problem: format!("a {kind:?} embedding is not trained here"),
            remedy: "leave it out and set num_class_embeds",
        });
    }
    let null = config.null_class.filter(|_| config.num_class_embeds.is_some());
    if options.label_dropout > 0.0 && null.is_none() {
        return Err(TrainError::Untrainable {
            key: "null_class",
            problem: format!("label_dropout is {}, but the model has no null class", options.label_dropout),
            remedy: "set num_class_embeds to the classes plus one and null_class to the last, or label_dropout to 0",
        });
    }
    let Some(rows) = config.num_class_embeds else { return Ok(None) };
    let classes = null.map_or(rows, |null| null.min(rows));
    match dataset.num_classes() {
        None => Err(no_labels(dataset)),
        Some(count) if count > classes => Err(out_of_range(dataset, count as u32 - 1, classes)),
        Some(_) => Ok(Some(Labels { classes, null: null.map(|row| (row as u32, options.label_dropout as f32)) })),
    }
}

/// Reverses every row of an `[H, W, C]` image.
fn mirror(image: &mut [f32], width: usize, channels: usize) {
    for row in image.chunks_mut(width * channels) {
        for left in 0..width / 2 {
            let right = width - 1 - left;
            for c in 0..channels {
                row.swap(left * channels + c, right * channels + c);
            }
        }
    }
}

/// Hands out the examples of consecutive steps and makes the next ones meanwhile.
#[derive(Debug)]
pub struct Loader {
    made: Option<Receiver<Result<Examples, TrainError>>>,
    used: Option<Sender<Examples>>,
    current: Option<Examples>,
    next: u64,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts making the examples of `steps`, counted from 0.
    ///
    /// # Errors
    /// [`TrainError::File`] if the system refuses a thread.
    pub fn new(batches: Batches, steps: std::ops::Range<u64>) -> Result<Self, TrainError> {
        let (give_made, made) = channel();
        let (used, take_used) = channel::<Examples>();
        // Two buffers go round: one is trained on, the other is filled.
        for _ in 0..2 {
            // The receiver is in scope, so this cannot fail.
            let _ = used.send(Examples::default());
        }
        let next = steps.start;
        let work = move || {
            for (step, mut examples) in steps.zip(take_used) {
                let result = batches.fill(step, &mut examples);
                let failed = result.is_err();
                if give_made.send(result.map(|()| examples)).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("warpdiff-loader".into()).spawn(work);
        let thread =
            thread.map_err(crate::io::FileError::os("start the thread that reads", "the data set".as_ref()))?;
        Ok(Self { made: Some(made), used: Some(used), current: None, next, thread: Some(thread) })
    }

    /// The examples of the next step; waits for them if they are not ready.
    ///
    /// # Errors
    /// What [`Batches::fill`] met; the loader is at its end then, as after the last step ([`TrainError::LoaderDied`]).
    pub fn next_step(&mut self) -> Result<&Examples, TrainError> {
        if let (Some(examples), Some(used)) = (self.current.take(), &self.used) {
            // The thread is gone after its last step; the buffer is not needed then.
            let _ = used.send(examples);
        }
        let step = self.next + 1;
        let received = self.made.as_ref().and_then(|made| made.recv().ok());
        let examples = received.unwrap_or(Err(TrainError::LoaderDied { step }))?;
        self.next = step;
        Ok(self.current.insert(examples))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Closing both channels ends the thread, whichever it waits on.
        self.made = None;
        self.used = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by next_step.
            let _ = thread.join();
        }
    }
}
