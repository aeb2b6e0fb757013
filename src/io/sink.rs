//! Where samples go: one interface over the formats that take them batch by batch.

use std::path::Path;
use std::time::{Duration, Instant};

use super::atomic::{check_replaceable, follow_links};
use super::atomic_folder::{Replace, check_named, recover};
use super::npz::NpzFormat;
use super::partial::{Existing, Partial};
use super::pixels::Elements;
use super::png_folder::{FolderFormat, is_ours};
use super::provenance::Provenance;
use super::sample_tensors::TensorFormat;
use super::{FileError, ImageBatch};

/// What will be written: known before the first sample, so that headers can be written first.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSet {
    /// Channels of each sample.
    pub channels: usize,
    /// Rows of each.
    pub height: usize,
    /// Columns of each.
    pub width: usize,
    /// The class of each, where there are classes.
    pub labels: Option<Vec<u32>>,
    /// Where they come from; its range has one index a sample.
    pub provenance: Provenance,
}

impl SampleSet {
    /// Number of samples.
    pub fn count(&self) -> usize {
        self.provenance.range.len()
    }

    /// Values in one sample.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }
}

/// The formats samples can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// `.png`: all samples in one picture ([`super::grid`]).
    Grid,
    /// `.gif`: the way from noise to samples ([`super::gif`]).
    Animation,
    /// `.npz`: bytes for evaluation scripts.
    Npz,
    /// `.safetensors`: the floats.
    Tensors,
    /// No extension: a folder with a PNG for each sample.
    Folder,
}

impl OutputKind {
    /// The format that a path asks for by its extension.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] listing the extensions there are.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        // Shards are named `samples.shard-1-of-2`, which is no extension.
        let shard = |e: &str| e.starts_with("shard-");
        let extension = path.extension().map(|e| e.to_ascii_lowercase().to_string_lossy().into_owned());
        match extension.as_deref() {
            Some("png") => Ok(Self::Grid),
            Some("gif") => Ok(Self::Animation),
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Tensors),
            None => Ok(Self::Folder),
            Some(other) if shard(other) => Ok(Self::Folder),
            Some(other) => Err(FileError::Unwritable {
                path: path.to_path_buf(),
                problem: format!(
                    "samples are not written as .{other}, but as .png (a grid), .gif, .npz, .safetensors or, without extension, a folder of PNGs"
                ),
            }),
        }
    }

    /// Whether samples are written as they come, however many they are.
    pub fn streams(self) -> bool {
        matches!(self, Self::Npz | Self::Tensors | Self::Folder)
    }
}

/// A format under construction in a [`Partial`]. It holds a number of samples from the start; the caller keeps count.
pub(super) trait Format: Send {
    /// Appends a batch.
    fn append(&mut self, images: ImageBatch<'_>) -> Result<(), FileError>;

    /// Makes what was appended durable.
    fn sync(&mut self) -> Result<(), FileError>;

    /// Writes what comes after the last sample and makes everything durable.
    fn complete(self: Box<Self>) -> Result<(), FileError>;
}

/// Takes samples in order. The output appears under its name when it is [finished](Self::finish); until then what is there lies in
/// `{name}.partial`, from where an interrupted run goes on.
pub struct SampleSink {
    format: Box<dyn Format>,
    partial: Partial,
    set: SampleSet,
    replace: Option<Replace>,
    written: usize,
    failed: bool,
    saved: Instant,
    /// How long the last save took.
    cost: Duration,
}

/// At most this much work is lost when a process is killed, but where saving takes long no more than a twentieth of the time is
/// spent on it.
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_SHARE: u32 = 20;

/// Opens the sink for `path` by its extension: `.npz`, `.safetensors`, or a folder of PNGs. Grids and animations are drawn whole.
///
/// `None` if a run that is to be resumed is complete already.
///
/// # Errors
/// [`FileError::Unwritable`] for other extensions or channel counts, for an interrupted run that is not to be resumed, or one with
/// other settings; [`FileError::WouldOverwrite`], [`FileError::Os`].
///
/// # Panics
/// If there are labels, but not one a sample.
pub fn open_sink(path: &Path, set: SampleSet, existing: Existing) -> Result<Option<SampleSink>, FileError> {
    assert!(set.labels.as_ref().is_none_or(|labels| labels.len() == set.count()), "not one label a sample");
    let kind = OutputKind::of(path)?;
    let replace = match kind {
        OutputKind::Npz | OutputKind::Tensors => {
            check_replaceable(&follow_links(path))?;
            None
        }
        OutputKind::Folder => {
            super::pixels::check_viewable(path, set.channels)?;
            check_named(&follow_links(path))?;
            recover(path)?;
            let replace = Replace::IfOnly(is_ours);
            replace.check(path)?;
            Some(replace)
        }
        OutputKind::Grid | OutputKind::Animation => {
            return Err(FileError::Unwritable {
                path: path.to_path_buf(),
                problem: "a grid or an animation is drawn from all samples at once, not batch by batch".into(),
            });
        }
    };
    if existing == Existing::Resume || super::partial::folder_of(path).exists() {
        // An output that cannot be read was not written by a run that ended.
        if let Some(complete) = Provenance::read(path).unwrap_or(None) {
            Partial::remove_if_of(path, &complete)?;
            if existing == Existing::Resume && complete == set.provenance {
                return Ok(None);
            }
        }
    }
    let fresh = !super::partial::folder_of(path).exists();
    if existing == Existing::Resume && fresh && path.exists() {
        return Err(FileError::Unwritable { path: path.to_path_buf(), problem: other_run(path, &set.provenance) });
    }
    let partial = Partial::open(path, &set.provenance, existing)?;
    let (data, done) = (partial.samples(), partial.done());
    let format: Box<dyn Format> = match kind {
        OutputKind::Npz => Box::new(NpzFormat::open(&data, &set, done)?),
        OutputKind::Tensors => Box::new(TensorFormat::open(&data, &set, done)?),
        _ => Box::new(FolderFormat::open(&data, &set, done)?),
    };
    let (saved, cost) = (Instant::now(), Duration::ZERO);
    Ok(Some(SampleSink { format, partial, set, replace, written: done, failed: false, saved, cost }))
}

/// Why a finished output is not the one that a run wants to go on with.
fn other_run(path: &Path, wanted: &Provenance) -> String {
    match Provenance::read(path) {
        Ok(Some(there)) => format!(
            "it is complete, but of another run ({}); choose another name, or leave out --resume to replace it",
            there.differences(wanted).join("; ")
        ),
        _ => "it exists and does not say which run it is of; choose another name, or leave out --resume to replace it"
            .into(),
    }
}

impl SampleSink {
    /// Samples that it has.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Samples that are safe on the disk, and where they are.
    pub fn saved(&self) -> (usize, &Path) {
        (self.partial.done(), self.partial.folder())
    }

    /// Appends a batch, and saves now and then.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] if the batch disagrees with the [`SampleSet`]; [`FileError::Os`].
    pub fn push(&mut self, images: ImageBatch<'_>) -> Result<(), FileError> {
        let expected = [self.set.channels, self.set.height, self.set.width];
        let actual = [images.channels, images.height, images.width];
        if actual != expected {
            return Err(self.unwritable(format!(
                "a batch of shape {actual:?} (C, H, W) came where {expected:?} is being written"
            )));
        }
        let count = images.count();
        if self.written + count > self.set.count() {
            return Err(self.unwritable(format!("more than the announced {} samples came", self.set.count())));
        }
        self.check_sound()?;
        let result = self.format.append(images);
        self.failed |= result.is_err();
        result?;
        self.written += count;
        if self.saved.elapsed() >= SAVE_EVERY.max(self.cost * SAVE_SHARE) { self.save() } else { Ok(()) }
    }

    /// Makes sure that a run which ends here can go on after the last sample that was pushed.
    ///
    /// # Errors
    /// [`FileError::Os`]; [`FileError::Unwritable`] if an earlier write failed.
    pub fn save(&mut self) -> Result<(), FileError> {
        self.check_sound()?;
        let begin = Instant::now();
        let result = self.format.sync().and_then(|()| self.partial.record(self.written));
        self.failed |= result.is_err();
        (self.saved, self.cost) = (Instant::now(), begin.elapsed());
        result
    }

    /// Completes the output and gives it its name.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] if samples are missing; [`FileError::Os`].
    pub fn finish(mut self) -> Result<(), FileError> {
        if self.written != self.set.count() {
            return Err(self.unwritable(format!("only {} of {} samples came", self.written, self.set.count())));
        }
        self.save()?;
        self.format.complete()?;
        self.partial.finish(self.replace)
    }

    /// A failed write is not forgotten: where it stopped nobody knows.
    fn check_sound(&self) -> Result<(), FileError> {
        if self.failed { Err(self.unwritable("an earlier write failed".into())) } else { Ok(()) }
    }

    fn unwritable(&self, problem: String) -> FileError {
        FileError::Unwritable { path: self.partial.destination().to_path_buf(), problem }
    }
}

/// The floats of a batch, for formats that hold nothing else.
pub(super) fn floats<'a>(path: &Path, images: &ImageBatch<'a>) -> Result<&'a [f32], FileError> {
    match images.elements {
        Elements::Floats(values) => Ok(values),
        Elements::Bytes(_) => {
            Err(FileError::Unwritable { path: path.to_path_buf(), problem: "tensors hold floats, bytes came".into() })
        }
    }
}

#[cfg(test)]
mod tests;
