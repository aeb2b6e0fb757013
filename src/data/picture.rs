//! Decoding one PNG or JPEG and fitting it to a size.

use std::fs;
use std::io::BufReader;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::DataError;

/// PNG packs no more pixel bytes than this into a byte, so a header that claims more is wrong.
const PNG_RATIO: u64 = 2048;
/// JPEG neither: a bit for each of six blocks is the least that 256 pixels of three bytes can take.
const JPEG_RATIO: u64 = 1024;
/// JPEG codes whole squares of this side, and decoders hold them.
const JPEG_SQUARE: u64 = 16;
/// Wider or higher pictures are refused.
pub(super) const MAX_SIDE: u32 = 1 << 16;

/// A decoder whose header is read and whose claimed size is possible for a file of this length.
fn open_picture(path: &Path) -> Result<impl ImageDecoder + use<>, DataError> {
    let picture = |problem: String| DataError::Picture { path: path.to_path_buf(), problem };
    let file = fs::File::open(path).map_err(DataError::os("open", path))?;
    let length = file.metadata().map_err(DataError::os("inspect", path))?.len();
    let mut reader =
        ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(DataError::os("read", path))?;
    let (ratio, square) = match reader.format() {
        Some(ImageFormat::Jpeg) => (JPEG_RATIO, JPEG_SQUARE),
        _ => (PNG_RATIO, 1),
    };
    let possible = length.saturating_mul(ratio);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(possible.max(1 << 16));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|error| picture(error.to_string()))?;
    let (width, height) = decoder.dimensions();
    let coded = |side: u32| u64::from(side).next_multiple_of(square);
    let pixel_bytes = u64::from(decoder.color_type().bytes_per_pixel());
    if width == 0 || height == 0 || coded(width) * coded(height) * pixel_bytes > possible {
        return Err(picture(format!(
            "its header claims {height} x {width} pixels, which a file of {length} bytes cannot hold"
        )));
    }
    Ok(decoder)
}

/// ((height, width), channels) by the header alone.
pub(super) fn inspect(path: &Path) -> Result<((usize, usize), usize), DataError> {
    let decoder = open_picture(path)?;
    let (width, height) = decoder.dimensions();
    let channels = if decoder.color_type().has_color() { 3 } else { 1 };
    Ok(((height as usize, width as usize), channels))
}

pub(super) fn decode(path: &Path) -> Result<DynamicImage, DataError> {
    DynamicImage::from_decoder(open_picture(path)?)
        .map_err(|error| DataError::Picture { path: path.to_path_buf(), problem: error.to_string() })
}

/// Cuts the largest centred part with the proportions of `height` x `width`, then scales it (bicubic, averaging when it shrinks).
pub(super) fn cut_and_scale(image: DynamicImage, height: usize, width: usize) -> DynamicImage {
    let (w, h) = (u64::from(image.width()), u64::from(image.height()));
    let (width, height) = (width as u64, height as u64);
    // Cutting before scaling keeps the scaled picture small even if the original is one pixel high and very wide.
    let cut_w = ((h * width + height / 2) / height).clamp(1, w) as u32;
    let cut_h = ((w * height + width / 2) / width).clamp(1, h) as u32;
    let (left, top) = ((image.width() - cut_w) / 2, (image.height() - cut_h) / 2);
    let cut = image.crop_imm(left, top, cut_w, cut_h);
    if (u64::from(cut_w), u64::from(cut_h)) == (width, height) {
        return cut;
    }
    cut.resize_exact(width as u32, height as u32, FilterType::CatmullRom)
}

/// Size and channels that a picture is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureShape {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The bytes of a PNG or JPEG, `[H, W, C]`. With `fit` it is cut, scaled and converted to the shape; without it must have it.
///
/// # Errors
/// [`DataError::Picture`] if it cannot be decoded or has another shape; [`DataError::Os`].
pub fn read_picture(path: &Path, shape: PictureShape, fit: bool) -> Result<Vec<u8>, DataError> {
    let PictureShape { channels, height, width } = shape;
    let picture = |problem: String| DataError::Picture { path: path.to_path_buf(), problem };
    if !matches!(channels, 1 | 3) {
        return Err(picture(format!(
            "pictures have 1 or 3 channels, the model has {channels}; give its images as .npz"
        )));
    }
    let ((actual_height, actual_width), actual_channels) = inspect(path)?;
    if !fit && (actual_height, actual_width, actual_channels) != (height, width, channels) {
        let said = |channels| if channels == 1 { "grey" } else { "RGB" };
        return Err(picture(format!(
            "it has {actual_height} x {actual_width} pixels in {}, the model {height} x {width} in {}; give another, or add \
             --fit to cut, scale and convert it",
            said(actual_channels),
            said(channels)
        )));
    }
    let image = decode(path)?;
    let image = if fit { cut_and_scale(image, height, width) } else { image };
    Ok(if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_shape_or_is_made_to() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.png");
        image::RgbImage::from_fn(6, 3, |x, y| image::Rgb([(x * 40) as u8, (y * 100) as u8, 7])).save(&path).unwrap();
        let shape = PictureShape { channels: 3, height: 3, width: 6 };
        let bytes = read_picture(&path, shape, false).unwrap();
        assert_eq!((bytes.len(), &bytes[(6 + 2) * 3..(6 + 3) * 3]), (54, &[80, 100, 7][..]));
        for other in [PictureShape { channels: 1, ..shape }, PictureShape { width: 3, ..shape }] {
            let text = read_picture(&path, other, false).unwrap_err().to_string();
            assert!(text.contains("3 x 6 pixels in RGB") && text.contains("--fit"), "{text}");
            assert_eq!(read_picture(&path, other, true).unwrap().len(), other.channels * 3 * other.width);
        }
        assert!(read_picture(&path, PictureShape { channels: 4, ..shape }, true).is_err());
    }

    #[test]
    fn a_header_that_lies_about_its_size_is_refused_before_allocation() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.png");
        image::RgbImage::new(4, 4).save(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        // IHDR: length, name, width, height, ..., checksum over name and content.
        bytes[16..24].copy_from_slice(&[0, 0, 200, 0, 0, 0, 200, 0]);
        let crc = crc32fast::hash(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        fs::write(&path, &bytes).unwrap();
        let text = inspect(&path).unwrap_err().to_string();
        assert!(text.contains("a.png"), "{text}");
    }
}
