//! The error type of the dataset readers.

use std::path::{Path, PathBuf};

/// What went wrong with a dataset: which file, where in it, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused an operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Os {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file has another length than its header or its format says.
    #[error("{}: {what} takes {expected} bytes, the file has {actual}; copy or download it again", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// What the length was computed from.
        what: String,
        /// Length it should have, in bytes.
        expected: u64,
        /// Length it has (for compressed files: at least, after decompression).
        actual: u64,
    },
    /// The bytes break the rules of the format.
    #[error("{}, byte {offset}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the (decompressed) file.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// A picture that cannot be decoded.
    #[error("cannot decode {}: {problem}; replace or remove it", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A picture that differs from the others in size or channels.
    #[error("{} is {actual}, but {} is {expected}; {remedy}", path.display(), first.display())]
    Uneven {
        /// The picture that differs.
        path: PathBuf,
        /// What it is.
        actual: String,
        /// The picture it is compared with.
        first: PathBuf,
        /// What that one is.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Two files that belong together disagree.
    #[error("{} has {images} images, {} has {labels} labels; they belong to different sets", image_file.display(), label_file.display())]
    Pair {
        /// The image file.
        image_file: PathBuf,
        /// The label file.
        label_file: PathBuf,
        /// Number of images.
        images: usize,
        /// Number of labels.
        labels: usize,
    },
    /// The path is not a dataset of any kind.
    #[error("{name:?} is no dataset: {problem}. Understood are {KINDS}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Why it is none.
        problem: String,
    },
}

/// What [`super::open`] understands, for messages and help.
pub const KINDS: &str = "`digits` (8x8, built in); a folder with MNIST-style IDX files (train-images-idx3-ubyte and train-labels-idx1-ubyte, or t10k-..., also .gz), \
     or such an image file; a folder with CIFAR-10 binary batches (data_batch_1.bin, ..., test_batch.bin), or one batch; and a folder of PNG or JPEG \
     images, with a sub-folder for each class or without classes";

impl DataError {
    /// For `map_err`: wraps an operating-system error with the action and the path.
    pub(super) fn os<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> DataError + 'a {
        move |source| DataError::Os { action, path: path.to_path_buf(), source }
    }
}
