//! Reading safetensors files.
//!
//! Layout: a little-endian u64 (length of the header), the header (JSON: tensor name to dtype, shape and byte range), the data.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use super::{FileError, HostTensor, TensorData};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;
const READ_CHUNK: usize = 1 << 18;

/// Where one tensor lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Extent of each dimension, row-major.
    pub shape: Vec<usize>,
    /// Element type as the file names it: `F32`, `BF16`, ...
    pub dtype: String,
    stored: Option<StoredType>,
    /// First byte, from the start of the file.
    begin: u64,
    /// One past the last byte.
    end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoredType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    U8,
}

impl StoredType {
    fn of(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::U8 => Self::U8,
            _ => return None,
        })
    }
}

/// An open safetensors file whose header has been checked against the length of the file. Tensors are read when asked for.
///
/// It reads with positioned reads rather than a memory map: a map of a file that somebody truncates kills the process with SIGBUS.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens and validates: header length, JSON, each shape against its byte range, ranges without holes or overlaps, length of the file.
    ///
    /// # Errors
    /// [`FileError::Os`], [`FileError::Malformed`], [`FileError::Truncated`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let mut file = File::open(path).map_err(FileError::os("open", path))?;
        let length = file.metadata().map_err(FileError::os("inspect", path))?.len();
        let malformed = |offset, problem| FileError::Malformed {
            path: path.to_path_buf(),
            offset,
            problem,
            remedy: "this is no valid safetensors file; export it again",
        };
        if length < 8 {
            return Err(malformed(0, format!("the file has {length} bytes, fewer than the 8 of the header length")));
        }
        let mut length_field = [0; 8];
        file.read_exact(&mut length_field).map_err(FileError::os("read", path))?;
        let header_length = u64::from_le_bytes(length_field);
        if header_length > MAX_HEADER {
            return Err(malformed(
                0,
                format!("a header of {header_length} bytes is over the format's limit of {MAX_HEADER}"),
            ));
        }
        let data_begin = 8 + header_length;
        if data_begin > length {
            return Err(FileError::Truncated { path: path.to_path_buf(), expected: data_begin, actual: length });
        }
        let header_length =
            usize::try_from(header_length).map_err(|_| malformed(0, "the header does not fit in memory".into()))?;
        let mut header = vec![0; header_length];
        file.read_exact(&mut header).map_err(FileError::os("read", path))?;
        let parsed: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(8 + json_offset(&header, &error), format!("bad header: {error}")))?;
        let expected = data_begin
            .checked_add(parsed.data_len() as u64)
            .ok_or_else(|| malformed(8, "the tensors' sizes overflow".into()))?;
        if expected > length {
            return Err(FileError::Truncated { path: path.to_path_buf(), expected, actual: length });
        }
        if expected < length {
            return Err(malformed(expected, format!("{} bytes follow the last tensor", length - expected)));
        }
        let tensors = parsed
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let info = TensorInfo {
                    shape: info.shape.clone(),
                    dtype: info.dtype.to_string(),
                    stored: StoredType::of(info.dtype),
                    begin: data_begin + info.data_offsets.0 as u64,
                    end: data_begin + info.data_offsets.1 as u64,
                };
                (name, info)
            })
            .collect();
        let metadata: HashMap<String, String> = parsed.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), tensors, metadata: metadata.into_iter().collect() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The free-form string pairs of the header, such as `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Shape and type of a tensor, without reading it.
    ///
    /// # Errors
    /// [`FileError::MissingTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, FileError> {
        self.tensors.get(name).ok_or_else(|| missing_tensor(&self.path, name, self.names()))
    }

    /// Reads a tensor. F64, F16 and BF16 become f32; I32 becomes i64.
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
        // `open` has checked that the product is the byte range's length, which lies within the file.
        let count = info.shape.iter().product();
        let data = match stored {
            StoredType::F32 => TensorData::F32(self.decode(info, count, f32::from_le_bytes)?),
            StoredType::F64 => TensorData::F32(self.decode(info, count, |b| f64::from_le_bytes(b) as f32)?),
            StoredType::F16 => TensorData::F32(self.decode(info, count, |b| f16::from_le_bytes(b).to_f32())?),
            StoredType::Bf16 => TensorData::F32(self.decode(info, count, |b| bf16::from_le_bytes(b).to_f32())?),
            StoredType::I64 => TensorData::I64(self.decode(info, count, i64::from_le_bytes)?),
            StoredType::I32 => TensorData::I64(self.decode(info, count, |b| i64::from(i32::from_le_bytes(b)))?),
            StoredType::U8 => TensorData::U8(self.decode(info, count, |[b]| b)?),
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

    fn decode<const B: usize, T>(
        &self,
        info: &TensorInfo,
        count: usize,
        convert: impl Fn([u8; B]) -> T,
    ) -> Result<Vec<T>, FileError> {
        let read = FileError::os("read", &self.path);
        // A poisoned lock only means that another reader panicked; every read seeks first, so the file is usable.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values = Vec::with_capacity(count);
        let mut remaining = info.end - info.begin;
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
        result.map_err(read).map(|()| values)
    }
}

/// The error for a name that is not among `names`, with the most similar one.
pub(super) fn missing_tensor<'a>(path: &Path, tensor: &str, names: impl Iterator<Item = &'a str>) -> FileError {
    let common = |name: &str| {
        let ends = name.bytes().zip(tensor.bytes()).take_while(|(a, b)| a == b).count();
        let tails = name.bytes().rev().zip(tensor.bytes().rev()).take_while(|(a, b)| a == b).count();
        ends + tails
    };
    let mut count = 0;
    let nearest = names.inspect(|_| count += 1).max_by_key(|name| common(name)).map(str::to_string);
    FileError::MissingTensor { path: path.to_path_buf(), tensor: tensor.to_string(), count, nearest }
}

/// The byte in `text` that a JSON error points at.
pub(super) fn json_offset(text: &[u8], error: &serde_json::Error) -> u64 {
    let line_begin: usize =
        text.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    (line_begin + error.column().saturating_sub(1)) as u64
}
