//! The error type of every reader and writer in [`crate::io`].

use std::path::{Path, PathBuf};

/// What went wrong with a file: which file, where in it, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused an operation (permission, disk full, no such file, ...).
    #[error("cannot {action} {}: {source}", path.display())]
    Os {
        /// What was being done, as a verb phrase: `open`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file ends before its header says it should.
    #[error("{} is truncated: its header says {expected} bytes, the file has {actual}; copy or download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length the header asks for, in bytes.
        expected: u64,
        /// Length of the file, in bytes.
        actual: u64,
    },
    /// The bytes break the rules of the format.
    #[error("{}, byte {offset}: {problem}; {remedy}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor that was asked for is not in the file.
    #[error("{}: no tensor {tensor:?} among its {count}{}", path.display(), similar(nearest))]
    MissingTensor {
        /// The file or folder that was searched.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
        /// How many tensors there are.
        count: usize,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// A tensor has another shape than the model needs.
    #[error("{}, tensor {tensor:?}: shape {actual:?}, expected {expected:?}; the weights belong to another configuration", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape the caller needs.
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("{}, tensor {tensor:?}: dtype {dtype} is not supported (F64, F32, F16, BF16, I64, I32, U8 are); convert it", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type found.
        dtype: String,
    },
    /// A tensor of integers stands where floats are needed.
    #[error("{}, tensor {tensor:?}: dtype {dtype}, but a floating-point tensor is needed; the file belongs to another model", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type found.
        dtype: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("{}, tensor {tensor:?}: element {index} (flat, row-major) is {value}; the weights are damaged or the training diverged", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row-major flat index of the first such element.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A model folder has no weights at all.
    #[error("no weights in {}: looked for {looked_for}; name the folder that holds them or its parent", folder.display())]
    NoWeights {
        /// The folder that was searched.
        folder: PathBuf,
        /// The file names that would have been read.
        looked_for: String,
    },
    /// A pickle asks for more than tensors.
    #[error("{}: refused, nothing of it was run: its pickle {what}, so this file wants to run code; convert it to safetensors with a tool you trust", path.display())]
    Forbidden {
        /// The file.
        path: PathBuf,
        /// What it asks for, as a verb phrase.
        what: String,
    },
    /// A file that is no checkpoint, or one that holds something other than named tensors.
    #[error("{}: {problem}; {remedy}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The index of a sharded model names a shard that is not there.
    #[error("{} names the shard {shard:?}, which is not in the folder; download it too", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// The index of a sharded model names a file outside its own folder.
    #[error("{} names the shard {shard:?}; a shard must be a plain file name in the same folder, so this index is refused", index.display())]
    ShardEscapes {
        /// The index file.
        index: PathBuf,
        /// The name found.
        shard: String,
    },
    /// The index of a sharded model promises a tensor that its shard does not hold.
    #[error("{} says that tensor {tensor:?} is in {shard:?}, but it is not; index and shards belong to different versions", index.display())]
    ShardLacksTensor {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },
    /// A file of samples or images does not hold what is needed.
    #[error("{}: {problem}; {remedy}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The data handed over cannot be written in this format.
    #[error("cannot write {}: {problem}", path.display())]
    Unwritable {
        /// The file that was to be written.
        path: PathBuf,
        /// What does not fit, and which format would do.
        problem: String,
    },
    /// The destination folder exists and holds something that must not be replaced.
    #[error("{} exists and holds {found:?}, which this program did not write; name another folder or empty this one", path.display())]
    WouldOverwrite {
        /// The folder.
        path: PathBuf,
        /// One entry that is in the way.
        found: String,
    },
}

impl FileError {
    /// For `map_err`: wraps an operating-system error with the action and the path.
    pub fn os<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> FileError + 'a {
        move |source| FileError::Os { action, path: path.to_path_buf(), source }
    }
}

fn similar(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; the most similar name is {name:?}"),
        None => String::new(),
    }
}
