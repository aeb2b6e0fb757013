//! A file of named tensors, in any of the formats that are read; elements are fetched when they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use super::{FileError, HostTensor, TensorData, pickle, safetensors};

const READ_CHUNK: usize = 1 << 18;

/// Type of the stored elements, of those that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
}

/// Where one tensor lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Extent of each dimension, row-major.
    pub shape: Vec<usize>,
    /// Element type as safetensors names it: `F32`, `BF16`, ...
    pub dtype: String,
    pub(super) stored: Option<ElementType>,
    /// First byte, from the start of the file.
    pub(super) begin: u64,
    /// One past the last byte.
    pub(super) end: u64,
    /// Elements between neighbours of each dimension, where they are not those of a row-major tensor without gaps.
    pub(super) strides: Option<Vec<usize>>,
    pub(super) big_endian: bool,
}

/// What the head of a file says of its tensors: every byte range lies within the file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub tensors: BTreeMap<String, TensorInfo>,
    pub metadata: BTreeMap<String, String>,
}

/// An open file whose table of tensors has been checked against its length. Tensors are read when asked for.
///
/// It reads with positioned reads rather than a memory map: a map of a file that somebody truncates kills the process with SIGBUS.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    contents: Contents,
}

impl TensorFile {
    /// Opens a safetensors file or a PyTorch checkpoint and checks everything but the elements. The format is recognised by
    /// the first bytes, whatever the file is called.
    ///
    /// # Errors
    /// [`FileError::Os`], [`FileError::Malformed`], [`FileError::Truncated`]; of a checkpoint also [`FileError::Forbidden`]
    /// and [`FileError::Checkpoint`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let mut file = File::open(path).map_err(FileError::os("open", path))?;
        let contents = match Format::of(path, &mut file)? {
            Format::Safetensors => safetensors::read_contents(path, &mut file)?,
            Format::Archive => pickle::read_archive(path, &mut file)?,
            Format::Legacy => pickle::read_legacy(path, &mut file)?,
        };
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), contents })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.tensors.keys().map(String::as_str)
    }

    /// The free-form string pairs of a safetensors header, such as `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// Shape and type of a tensor, without reading it.
    ///
    /// # Errors
    /// [`FileError::MissingTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, FileError> {
        self.contents.tensors.get(name).ok_or_else(|| missing_tensor(&self.path, name, self.names()))
    }

    /// Reads a tensor. F64, F16 and BF16 become f32; I32, I16 and I8 become i64.
    ///
    /// # Errors
    /// [`FileError::MissingTensor`], [`FileError::Dtype`] for other types, [`FileError::Os`].
    pub fn get(&self, name: &str) -> Result<HostTensor, FileError> {
        let info = self.info(name)?;
        let stored = info.stored.ok_or_else(|| FileError::Dtype {
            path: self.path.clone(),
            tensor: name.to_string(),
            dtype: info.dtype.clone(),
        })?;
        let data = match stored {
            ElementType::F32 => TensorData::F32(self.decode(info, f32::from_le_bytes)?),
            ElementType::F64 => TensorData::F32(self.decode(info, |b| f64::from_le_bytes(b) as f32)?),
            ElementType::F16 => TensorData::F32(self.decode(info, |b| f16::from_le_bytes(b).to_f32())?),
            ElementType::Bf16 => TensorData::F32(self.decode(info, |b| bf16::from_le_bytes(b).to_f32())?),
            ElementType::I64 => TensorData::I64(self.decode(info, i64::from_le_bytes)?),
            ElementType::I32 => TensorData::I64(self.decode(info, |b| i64::from(i32::from_le_bytes(b)))?),
            ElementType::I16 => TensorData::I64(self.decode(info, |b| i64::from(i16::from_le_bytes(b)))?),
            ElementType::I8 => TensorData::I64(self.decode(info, |b| i64::from(i8::from_le_bytes(b)))?),
            ElementType::U8 => TensorData::U8(self.decode(info, |[b]| b)?),
        };
        Ok(HostTensor { shape: info.shape.clone(), data })
    }

    /// Reads a float tensor of a known shape, refusing other shapes, integers, NaN and infinities.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`FileError::Shape`], [`FileError::NotFloat`], [`FileError::NonFinite`].
    pub fn get_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, FileError> {
        let info = self.info(name)?;
        if info.shape != expected {
            return Err(FileError::Shape {
                path: self.path.clone(),
                tensor: name.to_string(),
                expected: expected.to_vec(),
                actual: info.shape.clone(),
            });
        }
        match self.get(name)?.data {
            TensorData::F32(values) => {
                super::check_finite(&self.path, name, &values)?;
                Ok(values)
            }
            _ => Err(FileError::NotFloat {
                path: self.path.clone(),
                tensor: name.to_string(),
                dtype: info.dtype.clone(),
            }),
        }
    }

    /// The elements in row-major order.
    fn decode<const B: usize, T: Copy>(
        &self,
        info: &TensorInfo,
        convert: impl Fn([u8; B]) -> T,
    ) -> Result<Vec<T>, FileError> {
        let stored = self.read_range(info, |mut bytes| {
            if info.big_endian {
                bytes.reverse();
            }
            convert(bytes)
        })?;
        Ok(match &info.strides {
            None => stored,
            Some(strides) => gather(&stored, &info.shape, strides),
        })
    }

    fn read_range<const B: usize, T>(
        &self,
        info: &TensorInfo,
        convert: impl Fn([u8; B]) -> T,
    ) -> Result<Vec<T>, FileError> {
        // A poisoned lock only means that another reader panicked; every read seeks first, so the file is usable.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The table was checked against the file's length, so this is no more than the file holds.
        let mut remaining = info.end - info.begin;
        let mut values = Vec::with_capacity(remaining as usize / B);
        let mut buffer = vec![0; READ_CHUNK.min(remaining as usize)];
        let result = file.seek(SeekFrom::Start(info.begin)).and_then(|_| {
            while remaining > 0 {
                let length = remaining.min(READ_CHUNK as u64) as usize;
                let chunk = &mut buffer[..length];
                file.read_exact(chunk)?;
                values.extend(chunk.as_chunks::<B>().0.iter().map(|bytes| convert(*bytes)));
                remaining -= length as u64;
            }
            Ok(())
        });
        result.map_err(FileError::os("read", &self.path)).map(|()| values)
    }
}

/// The elements of a strided view in row-major order; no stride leads out of `stored`.
fn gather<T: Copy>(stored: &[T], shape: &[usize], strides: &[usize]) -> Vec<T> {
    let Some((&columns, outer_shape)) = shape.split_last() else { return stored.to_vec() };
    let (outer, inner_stride) = (&strides[..outer_shape.len()], strides[outer_shape.len()]);
    let rows: usize = outer_shape.iter().product();
    let mut out = Vec::with_capacity(rows * columns);
    let mut index = vec![0; outer_shape.len()];
    for _ in 0..rows {
        let base: usize = index.iter().zip(outer).map(|(i, stride)| i * stride).sum();
        out.extend((0..columns).map(|column| stored[base + column * inner_stride]));
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < outer_shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    /// A zip archive, as `torch.save` writes since PyTorch 1.6.
    Archive,
    /// What `torch.save` wrote before.
    Legacy,
}

impl Format {
    /// Looks at the first bytes. A file of no known format is left to the reader that its name asks for.
    fn of(path: &Path, file: &mut File) -> Result<Self, FileError> {
        let mut head = Vec::new();
        file.take(512).read_to_end(&mut head).map_err(FileError::os("read", path))?;
        file.rewind().map_err(FileError::os("read", path))?;
        let checkpoint = |problem: &str, remedy| {
            Err(FileError::Checkpoint { path: path.to_path_buf(), problem: problem.into(), remedy })
        };
        if head.get(8) == Some(&b'{') {
            return Ok(Self::Safetensors);
        }
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            return Ok(Self::Archive);
        }
        if pickle::is_legacy(&head) {
            return Ok(Self::Legacy);
        }
        if head.get(257..262) == Some(b"ustar") {
            return checkpoint(
                "this is a tar archive, the format of PyTorch before 0.1.10, which is not read",
                "load it with a PyTorch that still reads it and save it again",
            );
        }
        if head.starts_with(b"version https://git-lfs") {
            return checkpoint(
                "this is a Git LFS pointer, a few lines of text that stand for the weights",
                "fetch them with `git lfs pull`",
            );
        }
        if head.trim_ascii_start().starts_with(b"<") {
            return checkpoint("this is a web page, not weights", "download the file itself");
        }
        let named_as_checkpoint =
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "bin" | "pt" | "pth" | "ckpt"));
        if named_as_checkpoint {
            return checkpoint(
                "this is neither safetensors nor what torch.save writes (a zip archive, or the format before PyTorch 1.6)",
                "export the weights again, best as safetensors",
            );
        }
        Ok(Self::Safetensors)
    }
}

/// The error for a name that is not among `names`, with the most similar one.
pub(super) fn missing_tensor<'a>(path: &Path, tensor: &str, names: impl Iterator<Item = &'a str>) -> FileError {
    let mut count = 0;
    let nearest = nearest_name(tensor, names.inspect(|_| count += 1)).map(str::to_string);
    FileError::MissingTensor { path: path.to_path_buf(), tensor: tensor.to_string(), count, nearest }
}

/// The name that shares the longest beginning and end with `name`.
pub(crate) fn nearest_name<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let common = |other: &str| {
        let ends = other.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let tails = other.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        ends + tails
    };
    among.max_by_key(|other| common(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strided_view_is_read_in_row_major_order() {
        let stored: Vec<usize> = (0..12).collect();
        // The transpose of a 3x4 matrix, every other column, one element often, a scalar, nothing.
        assert_eq!(gather(&stored, &[4, 3], &[1, 4]), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(gather(&stored, &[3, 2], &[4, 2]), [0, 2, 4, 6, 8, 10]);
        assert_eq!(gather(&stored, &[2, 1, 3], &[0, 7, 5]), [0, 5, 10, 0, 5, 10]);
        assert_eq!(gather(&stored[..1], &[], &[]), [0]);
        assert_eq!(gather(&stored, &[3, 0, 2], &[4, 1, 1]), [0usize; 0]);
    }
}
