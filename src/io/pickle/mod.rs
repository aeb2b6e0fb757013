//! Checkpoints of PyTorch: a pickle that describes tensors, and their storages as raw bytes.
//!
//! A pickle is a program; running it in Python can do anything. Here it is run by a [machine](machine) that can build tensors and
//! nothing else. The storages are not read when a file is opened: the pickle says where each tensor lies.

mod archive;
mod legacy;
mod machine;
mod opcodes;
mod tensors;

use std::path::Path;

use super::FileError;

pub(super) use archive::read_archive;
pub(super) use legacy::{is_legacy, read_legacy};

/// Longest pickle that is run; those of the largest published models have a few hundred KiB.
const MAX_PICKLE: u64 = 64 << 20;

/// What can be wrong with a pickle.
#[derive(Debug)]
enum PickleError {
    /// The bytes cannot be read.
    Read(std::io::Error),
    /// The bytes make no sense.
    Malformed { offset: u64, problem: String },
    /// It wants more than tensors.
    Forbidden { what: String },
}

impl PickleError {
    /// The same with its place counted from `base` bytes before.
    fn moved_by(self, base: u64) -> Self {
        match self {
            Self::Malformed { offset, problem } => Self::Malformed { offset: offset + base, problem },
            other => other,
        }
    }

    fn in_file(self, path: &Path) -> FileError {
        match self {
            Self::Read(source) => FileError::os("read", path)(source),
            Self::Malformed { offset, problem } => malformed(path, offset, problem),
            Self::Forbidden { what } => FileError::Forbidden { path: path.to_path_buf(), what },
        }
    }
}

fn malformed(path: &Path, offset: u64, problem: impl Into<String>) -> FileError {
    FileError::Malformed {
        path: path.to_path_buf(),
        offset,
        problem: problem.into(),
        remedy: "this is no checkpoint that torch.save wrote, or a damaged one; copy or export it again",
    }
}

fn checkpoint(path: &Path, problem: impl Into<String>) -> FileError {
    FileError::Checkpoint {
        path: path.to_path_buf(),
        problem: problem.into(),
        remedy: "save the model's state dict alone, best as safetensors",
    }
}
