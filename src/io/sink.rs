//! Where samples go: one interface over the formats that take them batch by batch.

use std::path::{Path, PathBuf};

use super::npz::NpzSink;
use super::png_folder::PngFolderSink;
use super::sample_tensors::TensorSink;
use super::{FileError, ImageBatch};

/// What will be written: known before the first sample, so that headers can be written first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleShape {
    /// Number of samples.
    pub count: usize,
    /// Channels of each.
    pub channels: usize,
    /// Rows of each.
    pub height: usize,
    /// Columns of each.
    pub width: usize,
    /// Whether every sample has a class.
    pub labelled: bool,
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
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        match extension.as_ref().map(|e| e.to_string_lossy()).as_deref() {
            Some("png") => Ok(Self::Grid),
            Some("gif") => Ok(Self::Animation),
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Tensors),
            None => Ok(Self::Folder),
            Some(other) => Err(FileError::Unwritable {
                path: path.to_path_buf(),
                problem: format!(
                    "samples are not written as .{other}, but as .png (a grid), .gif, .npz, .safetensors or, without extension, a folder of PNGs"
                ),
            }),
        }
    }
}

/// Takes samples in order and writes them; nothing appears under the final name before [`finish`](Self::finish).
pub trait SampleSink {
    /// Appends a batch. `labels` has a class for each image if the samples are labelled, else it is `None`.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] if the batch disagrees with the [`SampleShape`]; [`FileError::Os`].
    fn push(&mut self, images: ImageBatch<'_>, labels: Option<&[u32]>) -> Result<(), FileError>;

    /// Completes the output and gives it its name.
    ///
    /// # Errors
    /// [`FileError::Unwritable`] if samples are missing; [`FileError::Os`].
    fn finish(self: Box<Self>) -> Result<(), FileError>;
}

/// Opens the sink for `path` by its extension: `.npz`, `.safetensors`, or a folder of PNGs. Grids and animations are drawn whole.
///
/// # Errors
/// [`FileError::Unwritable`] for other extensions or channel counts, [`FileError::WouldOverwrite`], [`FileError::Os`].
pub fn open_sink(path: &Path, shape: SampleShape) -> Result<Box<dyn SampleSink>, FileError> {
    match OutputKind::of(path)? {
        OutputKind::Npz => Ok(Box::new(NpzSink::create(path, shape)?)),
        OutputKind::Tensors => Ok(Box::new(TensorSink::create(path, shape)?)),
        OutputKind::Folder => Ok(Box::new(PngFolderSink::create(path, shape)?)),
        OutputKind::Grid | OutputKind::Animation => Err(FileError::Unwritable {
            path: path.to_path_buf(),
            problem: "a grid or an animation is drawn from all samples at once, not batch by batch".into(),
        }),
    }
}

/// Keeps count for a sink and refuses what does not fit.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    pub(super) shape: SampleShape,
    pub(super) written: usize,
    pub(super) labels: Vec<u32>,
    failed: bool,
}

impl Ledger {
    pub(super) fn new(path: &Path, shape: SampleShape) -> Self {
        Self { path: path.to_path_buf(), shape, written: 0, labels: Vec::new(), failed: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn unwritable(&self, problem: String) -> FileError {
        FileError::Unwritable { path: self.path.clone(), problem }
    }

    /// Notes a batch; call it before writing the batch.
    pub(super) fn accept(&mut self, images: &ImageBatch<'_>, labels: Option<&[u32]>) -> Result<(), FileError> {
        let expected = [self.shape.channels, self.shape.height, self.shape.width];
        let actual = [images.channels, images.height, images.width];
        if actual != expected {
            return Err(self.unwritable(format!(
                "a batch of shape {actual:?} (C, H, W) came where {expected:?} is being written"
            )));
        }
        let count = images.count();
        if self.written + count > self.shape.count {
            return Err(self.unwritable(format!("more than the announced {} samples came", self.shape.count)));
        }
        if labels.map(<[u32]>::len) != self.shape.labelled.then_some(count) {
            return Err(self.unwritable(format!(
                "{} labels came with {count} images of {} samples",
                labels.map_or(0, <[u32]>::len),
                if self.shape.labelled { "labelled" } else { "unlabelled" }
            )));
        }
        self.labels.extend_from_slice(labels.unwrap_or_default());
        self.written += count;
        Ok(())
    }

    /// Notes how writing a batch went, so that a sink that failed once is never completed.
    pub(super) fn record(&mut self, result: Result<(), FileError>) -> Result<(), FileError> {
        self.failed |= result.is_err();
        result
    }

    pub(super) fn check_complete(&self) -> Result<(), FileError> {
        if self.failed {
            return Err(self.unwritable("an earlier write failed".into()));
        }
        if self.written == self.shape.count {
            return Ok(());
        }
        Err(self.unwritable(format!("only {} of {} samples came", self.written, self.shape.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sink_refuses_what_does_not_fit_and_leaves_nothing() {
        for name in ["s.npz", "s.safetensors", "s"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let shape = SampleShape { count: 3, channels: 1, height: 2, width: 2, labelled: true };
            let values = [0.0; 16];
            let two = ImageBatch::new(&values[..8], 1, 2, 2);
            let mut sink = open_sink(&path, shape).unwrap();
            sink.push(two, Some(&[1, 2])).unwrap();
            assert!(sink.push(two, Some(&[1, 2])).is_err(), "too many");
            let one = ImageBatch::new(&values[..4], 1, 2, 2);
            assert!(sink.push(one, None).is_err(), "no labels");
            assert!(sink.push(one, Some(&[1, 2])).is_err(), "too many labels");
            assert!(sink.push(ImageBatch::new(&values[..4], 1, 4, 1), Some(&[1])).is_err(), "other shape");
            let text = sink.finish().unwrap_err().to_string();
            assert!(text.contains("only 2 of 3"), "{text}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_failed_write_is_not_forgotten() {
        let shape = SampleShape { count: 0, channels: 1, height: 2, width: 2, labelled: false };
        let mut ledger = Ledger::new(Path::new("s.npz"), shape);
        assert!(ledger.check_complete().is_ok());
        let full = FileError::os("write", Path::new("s.npz"))(std::io::ErrorKind::StorageFull.into());
        assert!(ledger.record(Err(full)).is_err());
        assert!(ledger.record(Ok(())).is_ok());
        assert!(ledger.check_complete().is_err());
    }

    #[test]
    fn the_extension_chooses() {
        assert_eq!(OutputKind::of(Path::new("a/b.PNG")).unwrap(), OutputKind::Grid);
        assert_eq!(OutputKind::of(Path::new("samples")).unwrap(), OutputKind::Folder);
        let text = OutputKind::of(Path::new("a.jpg")).unwrap_err().to_string();
        assert!(text.contains(".jpg") && text.contains(".npz"), "{text}");
    }
}
