//! Writing safetensors files, atomically and in one pass.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::atomic::write_file;
use super::tensor::DataView;
use super::{FileError, TensorView};

/// Writes named tensors to `path` in the order given, with `metadata` as the header's string pairs.
///
/// `[("format", "pt")]` is the metadata that transformers and diffusers ask for.
///
/// # Errors
/// [`FileError::Unwritable`] if a name occurs twice or is reserved, or a shape disagrees with its data; [`FileError::Os`].
pub fn write(path: &Path, tensors: &[(&str, TensorView<'_>)], metadata: &[(&str, &str)]) -> Result<(), FileError> {
    let unwritable = |problem| FileError::Unwritable { path: path.to_path_buf(), problem };
    let mut header = Header::new(metadata);
    for (name, tensor) in tensors {
        let dtype = match tensor.data {
            DataView::F32(_) => "F32",
            DataView::F16(_) => "F16",
            DataView::Bf16(_) => "BF16",
            DataView::I64(_) => "I64",
            DataView::U8(_) => "U8",
        };
        let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements != Some(tensor.len()) {
            return Err(unwritable(format!(
                "tensor {name:?} of shape {:?} has {} elements",
                tensor.shape,
                tensor.len()
            )));
        }
        header.add(name, dtype, tensor.shape).map_err(unwritable)?;
    }
    write_file(path, |file| {
        file.write_all(&header.bytes())?;
        tensors.iter().try_for_each(|(_, tensor)| match tensor.data {
            DataView::F32(data) => write_le(file, data, |x| x.to_le_bytes()),
            DataView::F16(data) => write_le(file, data, |x| x.to_le_bytes()),
            DataView::Bf16(data) => write_le(file, data, |x| x.to_le_bytes()),
            DataView::I64(data) => write_le(file, data, |x| x.to_le_bytes()),
            DataView::U8(data) => file.write_all(data),
        })
    })
}

/// A header under construction.
pub(super) struct Header {
    entries: Map<String, Value>,
    end: u64,
}

impl Header {
    pub(super) fn new(metadata: &[(&str, &str)]) -> Self {
        let mut entries = Map::new();
        if !metadata.is_empty() {
            let pairs: Map<String, Value> =
                metadata.iter().map(|(key, value)| ((*key).to_string(), json!(value))).collect();
            entries.insert("__metadata__".into(), Value::Object(pairs));
        }
        Self { entries, end: 0 }
    }

    /// Appends a tensor; its data must follow those of the tensors before it.
    pub(super) fn add(&mut self, name: &str, dtype: &str, shape: &[usize]) -> Result<(), String> {
        let width = match dtype {
            "I64" => 8,
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let end = shape
            .iter()
            .try_fold(width, |bytes: u64, &extent| bytes.checked_mul(extent as u64))
            .and_then(|bytes| bytes.checked_add(self.end))
            .ok_or_else(|| format!("tensor {name:?} of shape {shape:?} is too large"))?;
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [self.end, end] });
        if name == "__metadata__" || self.entries.insert(name.to_string(), entry).is_some() {
            return Err(format!("the tensor name {name:?} occurs twice or is reserved"));
        }
        self.end = end;
        Ok(())
    }

    /// Length field and JSON, padded with spaces to a multiple of 8 bytes so that the data are aligned.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = Value::Object(self.entries.clone()).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// Writes numbers little-endian, through a buffer of a few KiB.
pub(super) fn write_le<const B: usize, T: Copy>(
    out: &mut impl Write,
    data: &[T],
    encode: impl Fn(T) -> [u8; B],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 14);
    for chunk in data.chunks((1 << 14) / B) {
        buffer.clear();
        chunk.iter().for_each(|&value| buffer.extend_from_slice(&encode(value)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{HostTensor, TensorData, TensorFile};
    use half::{bf16, f16};
    use std::fs;

    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<TensorFile, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    #[test]
    fn round_trip_and_the_reference_reader_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let floats: Vec<f32> = (0..3 * 5 * 7).map(|i| (i as f32 * 0.37).sin() * 1e3).collect();
        // More than two read chunks, and not a multiple of one.
        let long: Vec<f32> = (0..150_001).map(|i| i as f32).collect();
        let tensors = [
            ("conv.weight", HostTensor::f32(&[3, 5, 7], floats.clone())),
            ("step", HostTensor { shape: vec![], data: TensorData::I64(vec![-9_007_199_254_740_993]) }),
            ("bytes", HostTensor { shape: vec![3], data: TensorData::U8(vec![0, 128, 255]) }),
            ("none", HostTensor::f32(&[0, 4], vec![])),
            ("long", HostTensor::f32(&[150_001], long)),
        ];
        let views: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor.view())).collect();
        write(&path, &views, &[("format", "pt")]).unwrap();

        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.metadata()["format"], "pt");
        assert_eq!(file.names().collect::<Vec<_>>(), ["bytes", "conv.weight", "long", "none", "step"]);
        for (name, tensor) in &tensors {
            assert_eq!(&file.get(name).unwrap(), tensor);
        }
        let bytes = fs::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let weight = reference.tensor("conv.weight").unwrap();
        assert_eq!(weight.shape(), [3, 5, 7]);
        let expected: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(weight.data(), expected);
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn narrow_and_wide_types_become_f32_and_i64() {
        let values = [1.0f64, -0.1, 65504.0, 3.0e-5];
        let bytes: Vec<u8> = [
            values.map(|x| x.to_le_bytes()).concat(),
            values.map(|x| f16::from_f64(x).to_le_bytes()).concat(),
            values.map(|x| bf16::from_f64(x).to_le_bytes()).concat(),
            [i32::MIN, -1].map(i32::to_le_bytes).concat(),
        ]
        .concat();
        let file = raw(
            r#"{"d":{"dtype":"F64","shape":[4],"data_offsets":[0,32]},"h":{"dtype":"F16","shape":[2,2],"data_offsets":[32,40]},
"b":{"dtype":"BF16","shape":[4],"data_offsets":[40,48]},"i":{"dtype":"I32","shape":[2],"data_offsets":[48,56]}}"#,
            &bytes,
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        fs::write(&path, file).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.get_f32("d", &[4]).unwrap(), values.map(|x| x as f32));
        // -0.1 = -1.6 * 2^-4; 11 significant bits: 1638/1024 * 2^-4; 8 bits: 205/128 * 2^-4.
        assert_eq!(file.get_f32("h", &[2, 2]).unwrap()[1], -1638.0 / 16384.0);
        assert_eq!(file.get_f32("b", &[4]).unwrap()[1], -205.0 / 2048.0);
        assert_eq!(file.get("i").unwrap().data, TensorData::I64(vec![-2_147_483_648, -1]));
        let text = file.get_f32("h", &[4]).unwrap_err().to_string();
        assert!(text.contains("[2, 2]") && text.contains("[4]") && text.contains("\"h\""), "{text}");
        assert!(matches!(file.get_f32("i", &[2]), Err(FileError::NotFloat { .. })));
        let text = file.get("dd").unwrap_err().to_string();
        assert!(text.contains("\"dd\"") && text.contains("similar name is \"d\""), "{text}");
    }

    #[test]
    fn damaged_files_are_refused_with_the_place() {
        let good = raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
        assert!(open(&good).is_ok());
        match open(&good[..good.len() - 3]) {
            Err(FileError::Truncated { expected, actual, .. }) => {
                assert_eq!((expected, actual), (good.len() as u64, good.len() as u64 - 3));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(open(&good[..20]), Err(FileError::Truncated { expected: 62, actual: 20, .. })));
        for (header, data) in [
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8), // shape and range disagree
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12), // hole at the start
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8), // backwards
            (r#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#, 8), // overflow
            (r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#, 8), // unknown type
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9), // a byte too many
            (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            ("not json", 0),
            ("", 0),
        ] {
            match open(&raw(header, &vec![0; data])) {
                Err(FileError::Malformed { offset, .. }) => {
                    assert!(offset <= (8 + header.len() + data) as u64)
                }
                other => panic!("{header}: {other:?}"),
            }
        }
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend_from_slice(b"{}");
        assert!(matches!(open(&huge), Err(FileError::Malformed { offset: 0, .. })));
        assert!(open(&raw("{}", &[])).is_ok());
    }

    #[test]
    fn what_cannot_be_written_is_refused_before_a_file_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let data = [1.0, 2.0];
        let wrong = write(&path, &[("a", TensorView::f32(&[3], &data))], &[]);
        let twice = [("a", TensorView::f32(&[2], &data)), ("a", TensorView::f32(&[2], &data))];
        assert!(matches!(wrong, Err(FileError::Unwritable { .. })));
        assert!(matches!(write(&path, &twice, &[]), Err(FileError::Unwritable { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
