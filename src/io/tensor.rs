//! Tensors in host memory, as files hold them.

use std::path::Path;

use half::{bf16, f16};

use super::FileError;

/// The elements of a [`HostTensor`], row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Floating point. F64, F16 and BF16 files are converted to this.
    F32(Vec<f32>),
    /// Integers. I32 files are converted to this.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
}

/// A tensor in host memory: row-major, the last dimension fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Extent of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` elements.
    pub data: TensorData,
}

impl HostTensor {
    /// A float tensor.
    ///
    /// # Panics
    /// If `data` has another number of elements than `shape`.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "{shape:?}");
        Self { shape: shape.to_vec(), data: TensorData::F32(data) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            TensorData::F32(data) => data.len(),
            TensorData::I64(data) => data.len(),
            TensorData::U8(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape and elements, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            shape: &self.shape,
            data: match &self.data {
                TensorData::F32(data) => DataView::F32(data),
                TensorData::I64(data) => DataView::I64(data),
                TensorData::U8(data) => DataView::U8(data),
            },
        }
    }
}

/// Borrowed elements of a [`TensorView`], row-major.
#[derive(Debug, Clone, Copy)]
pub enum DataView<'a> {
    /// Floating point.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Half the bits of f32, its range kept.
    Bf16(&'a [bf16]),
    /// Integers.
    I64(&'a [i64]),
    /// Bytes.
    U8(&'a [u8]),
}

/// A borrowed tensor, for writing without a copy.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Extent of each dimension.
    pub shape: &'a [usize],
    /// `shape.iter().product()` elements.
    pub data: DataView<'a>,
}

impl<'a> TensorView<'a> {
    /// A view of floats.
    pub fn f32(shape: &'a [usize], data: &'a [f32]) -> Self {
        Self { shape, data: DataView::F32(data) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self.data {
            DataView::F32(data) => data.len(),
            DataView::F16(data) => data.len(),
            DataView::Bf16(data) => data.len(),
            DataView::I64(data) => data.len(),
            DataView::U8(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a HostTensor> for TensorView<'a> {
    fn from(tensor: &'a HostTensor) -> Self {
        tensor.view()
    }
}

/// Refuses NaN and infinities in `values`, which are `tensor` of the file `path`.
///
/// # Errors
/// [`FileError::NonFinite`] with the flat index of the first such element.
pub fn check_finite(path: &Path, tensor: &str, values: &[f32]) -> Result<(), FileError> {
    // The sum of x * 0 is 0 exactly if every x is finite; it vectorises, where a search for the index does not.
    let probe = |chunk: &[f32]| chunk.iter().map(|x| x * 0.0).sum::<f32>() == 0.0;
    for (chunk_index, chunk) in values.chunks(4096).enumerate() {
        if !probe(chunk)
            && let Some(within) = chunk.iter().position(|x| !x.is_finite())
        {
            return Err(FileError::NonFinite {
                path: path.to_path_buf(),
                tensor: tensor.to_string(),
                index: chunk_index * 4096 + within,
                value: chunk[within],
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_element_is_named() {
        let path = Path::new("w.safetensors");
        for (index, bad) in [(0, f32::NAN), (4095, f32::INFINITY), (4096, f32::NEG_INFINITY), (9999, f32::NAN)] {
            let mut values = vec![f32::MAX; 10_000];
            values[1] = -f32::MAX;
            check_finite(path, "conv.weight", &values).unwrap();
            values[index] = bad;
            values[9_999] = bad;
            match check_finite(path, "conv.weight", &values) {
                Err(FileError::NonFinite { tensor, index: found, .. }) => {
                    assert_eq!((tensor.as_str(), found), ("conv.weight", index));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
