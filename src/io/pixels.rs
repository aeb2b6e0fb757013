//! Images in memory: the float batches of a model and the bytes of a picture.

use std::borrow::Cow;
use std::path::Path;

use super::FileError;
use crate::levels::to_byte;

/// The elements of a batch of images.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// As models make them: f32, NCHW, values in [-1, 1].
    Floats(&'a [f32]),
    /// As pictures have them: grey levels, NHWC.
    Bytes(&'a [u8]),
}

/// A borrowed batch of images.
#[derive(Debug, Clone, Copy)]
pub struct ImageBatch<'a> {
    /// `count * channels * height * width` elements.
    pub elements: Elements<'a>,
    /// Number of channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl<'a> ImageBatch<'a> {
    /// A batch of as many images as `values` holds: f32, NCHW, in [-1, 1].
    ///
    /// # Panics
    /// If `values` is not a whole number of images.
    pub fn new(values: &'a [f32], channels: usize, height: usize, width: usize) -> Self {
        Self { elements: Elements::Floats(values), channels, height, width }.whole()
    }

    /// A batch of as many pictures as `bytes` holds: grey levels, NHWC.
    ///
    /// # Panics
    /// If `bytes` is not a whole number of images.
    pub fn from_bytes(bytes: &'a [u8], channels: usize, height: usize, width: usize) -> Self {
        Self { elements: Elements::Bytes(bytes), channels, height, width }.whole()
    }

    fn whole(self) -> Self {
        let Self { channels, height, width, .. } = self;
        assert!(
            self.image_len() > 0 && self.len().is_multiple_of(self.image_len()),
            "{} values are no whole number of {channels}x{height}x{width} images",
            self.len()
        );
        self
    }

    fn len(&self) -> usize {
        match self.elements {
            Elements::Floats(values) => values.len(),
            Elements::Bytes(bytes) => bytes.len(),
        }
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.len() / self.image_len()
    }

    /// Values in one image.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The images as bytes, NHWC; floats by [`to_byte`].
    pub fn to_bytes(&self) -> Cow<'a, [u8]> {
        let values = match self.elements {
            Elements::Floats(values) => values,
            Elements::Bytes(bytes) => return Cow::Borrowed(bytes),
        };
        let plane = self.height * self.width;
        let mut bytes = vec![0; values.len()];
        for (image, out) in values.chunks_exact(self.image_len()).zip(bytes.chunks_exact_mut(self.image_len())) {
            for (channel, values) in image.chunks_exact(plane).enumerate() {
                for (pixel, &value) in out.chunks_exact_mut(self.channels).zip(values) {
                    pixel[channel] = to_byte(value);
                }
            }
        }
        Cow::Owned(bytes)
    }

    /// Whether the images can be shown: 1 channel (grey) or 3 (RGB).
    ///
    /// # Errors
    /// [`FileError::Unwritable`] naming `path` for other numbers of channels.
    pub fn check_viewable(&self, path: &Path) -> Result<(), FileError> {
        check_viewable(path, self.channels)
    }
}

pub(super) fn check_viewable(path: &Path, channels: usize) -> Result<(), FileError> {
    if matches!(channels, 1 | 3) {
        return Ok(());
    }
    Err(FileError::Unwritable {
        path: path.to_path_buf(),
        problem: format!("pictures have 1 or 3 channels, these samples have {channels}; write .npz or .safetensors"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_interleaved() {
        let value = |byte: u8| f32::from(byte) / 127.5 - 1.0;
        assert_eq!(ImageBatch::from_bytes(&[7; 24], 3, 2, 2).count(), 2);
        assert_eq!(*ImageBatch::from_bytes(&[3, 1, 2], 3, 1, 1).to_bytes(), [3, 1, 2]);
        let planes: Vec<f32> = (0..2 * 3 * 2 * 2).map(|i| value(i as u8 * 10)).collect();
        let batch = ImageBatch::new(&planes, 3, 2, 2);
        assert_eq!(batch.count(), 2);
        assert_eq!(
            *batch.to_bytes(),
            [
                0, 40, 80, 10, 50, 90, 20, 60, 100, 30, 70, 110, 120, 160, 200, 130, 170, 210, 140, 180, 220, 150, 190,
                230
            ]
        );
    }
}
