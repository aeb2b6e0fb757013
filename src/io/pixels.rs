//! Images in memory: the float batches of a model and the bytes of a picture.

use super::FileError;
use std::path::Path;

/// A borrowed batch of images as models make them: f32, NCHW, values in [-1, 1].
#[derive(Debug, Clone, Copy)]
pub struct ImageBatch<'a> {
    /// `count * channels * height * width` values, NCHW.
    pub values: &'a [f32],
    /// Number of channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl<'a> ImageBatch<'a> {
    /// A batch of as many images as `values` holds.
    ///
    /// # Panics
    /// If `values` is not a whole number of images.
    pub fn new(values: &'a [f32], channels: usize, height: usize, width: usize) -> Self {
        let batch = Self { values, channels, height, width };
        assert!(
            batch.image_len() > 0 && values.len().is_multiple_of(batch.image_len()),
            "{} values are no whole number of {channels}x{height}x{width} images",
            values.len()
        );
        batch
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.values.len() / self.image_len()
    }

    /// Values in one image.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The images as bytes, NHWC, by [`to_byte`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let plane = self.height * self.width;
        let mut bytes = vec![0; self.values.len()];
        for (image, out) in self.values.chunks_exact(self.image_len()).zip(bytes.chunks_exact_mut(self.image_len())) {
            for (channel, values) in image.chunks_exact(plane).enumerate() {
                for (pixel, &value) in out.chunks_exact_mut(self.channels).zip(values) {
                    pixel[channel] = to_byte(value);
                }
            }
        }
        bytes
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

/// A model's value in [-1, 1] as a byte, as diffusers has it: 255 * clamp(x / 2 + 1/2, 0, 1), rounded half to even. NaN becomes 0.
pub fn to_byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_half_to_even() {
        assert_eq!([-1.0, 1.0, -7.0, 9.0, f32::NAN].map(to_byte), [0, 255, 0, 255, 0]);
        // x = 0 is the exact half 127.5, between 127 and 128.
        assert_eq!(to_byte(0.0), 128);
        let mut halves = 0;
        for k in 0..255u32 {
            let border = f64::from(2 * k + 1) / 255.0 - 1.0;
            if k != 127 {
                assert_eq!(u32::from(to_byte((border - 1e-5) as f32)), k);
                assert_eq!(u32::from(to_byte((border + 1e-5) as f32)), k + 1);
            }
            // Where the f32 product is exactly k + 1/2, as NumPy would have it too, the even neighbour wins.
            if (border as f32 / 2.0 + 0.5) * 255.0 == k as f32 + 0.5 {
                halves += 1;
                assert_eq!(u32::from(to_byte(border as f32)), k + k % 2);
            }
        }
        assert!(halves > 50, "{halves}");
        for byte in 0..=255u8 {
            assert_eq!(to_byte(f32::from(byte) / 127.5 - 1.0), byte);
        }
    }

    #[test]
    fn planes_become_interleaved() {
        let value = |byte: u8| f32::from(byte) / 127.5 - 1.0;
        let planes: Vec<f32> = (0..2 * 3 * 2 * 2).map(|i| value(i as u8 * 10)).collect();
        let batch = ImageBatch::new(&planes, 3, 2, 2);
        assert_eq!(batch.count(), 2);
        assert_eq!(
            batch.to_bytes(),
            [
                0, 40, 80, 10, 50, 90, 20, 60, 100, 30, 70, 110, 120, 160, 200, 130, 170, 210, 140, 180, 220, 150, 190,
                230
            ]
        );
    }
}
