//! Reading safetensors files.
//!
//! Layout: a little-endian u64 (length of the header), the header (JSON: tensor name to dtype, shape and byte range), the data.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};

use super::FileError;
use super::tensor_file::{Contents, ElementType, TensorInfo};

/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        _ => return None,
    })
}

/// Reads and validates the header: its length, JSON, each shape against its byte range, ranges without holes or overlaps, the length of
/// the file.
///
/// # Errors
/// [`FileError::Os`], [`FileError::Malformed`], [`FileError::Truncated`].
pub(super) fn read_contents(path: &Path, file: &mut File) -> Result<Contents, FileError> {
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
                stored: element_type(info.dtype),
                begin: data_begin + info.data_offsets.0 as u64,
                end: data_begin + info.data_offsets.1 as u64,
                strides: None,
                big_endian: false,
            };
            (name, info)
        })
        .collect();
    let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(Contents { tensors, metadata })
}

/// The byte in `text` that a JSON error points at.
pub(super) fn json_offset(text: &[u8], error: &serde_json::Error) -> u64 {
    let line_begin: usize =
        text.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    (line_begin + error.column().saturating_sub(1)) as u64
}
