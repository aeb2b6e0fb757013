//! Many images in one picture.

use std::path::Path;

use super::canvas::{BLACK, Canvas, Font, WHITE};
use super::{FileError, ImageBatch};

/// Images whose shorter side is below this many pixels are enlarged.
const VISIBLE: usize = 64;
/// Enlarging stops where the grid would become larger than this.
const MAX_ENLARGED: usize = 4096;
/// Pixels between images and around them.
const SEPARATOR: usize = 2;

/// Where the text of an image goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelPlace {
    /// Over the image.
    Above,
    /// Under the image.
    #[default]
    Below,
}

/// How a grid is laid out. The default is nearly square, with tiny images enlarged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GridStyle {
    /// Images in a row; `None`: the smallest number that gives no more rows than columns.
    pub columns: Option<usize>,
    /// Every image pixel becomes a square of this side; `None`: enough to see images smaller than 64 pixels.
    pub scale: Option<usize>,
    /// Where labels go.
    pub labels: LabelPlace,
}

/// Draws images (1 or 3 channels) row by row on white, `labels[i]` in small print at image `i`; labels too long are cut.
///
/// `path` is the file it is meant for, and only used in errors.
///
/// # Errors
/// [`FileError::Unwritable`]: no image, other channels, or another number of labels than images.
pub fn draw_grid(
    path: &Path,
    images: ImageBatch<'_>,
    labels: Option<&[String]>,
    style: GridStyle,
) -> Result<Canvas, FileError> {
    images.check_viewable(path)?;
    let unwritable = |problem| FileError::Unwritable { path: path.to_path_buf(), problem };
    let count = images.count();
    if count == 0 {
        return Err(unwritable("there are no images for the grid".into()));
    }
    if let Some(labels) = labels.filter(|labels| labels.len() != count) {
        return Err(unwritable(format!("{} labels for {count} images", labels.len())));
    }
    let columns = style.columns.unwrap_or_else(|| count.isqrt() + usize::from(count.isqrt().pow(2) < count));
    let columns = columns.clamp(1, count);
    let rows = count.div_ceil(columns);
    let widest = (columns * images.width).max(rows * images.height);
    let scale = style
        .scale
        .unwrap_or_else(|| VISIBLE.div_ceil(images.height.min(images.width)).min(MAX_ENLARGED / widest.max(1)));
    let scale = scale.max(1);
    let font = Font::Small;
    let strip = if labels.is_some() { font.height() } else { 0 };
    let (cell_width, cell_height) = (images.width * scale, images.height * scale + strip);
    let extent = |cells: usize, cell: usize| cells * (cell + SEPARATOR) + SEPARATOR;
    let mut canvas = Canvas::new(extent(columns, cell_width), extent(rows, cell_height), WHITE);
    let bytes = images.to_bytes();
    for (index, image) in bytes.chunks_exact(images.image_len()).enumerate() {
        let left = SEPARATOR + index % columns * (cell_width + SEPARATOR);
        let top = SEPARATOR + index / columns * (cell_height + SEPARATOR);
        let above = if style.labels == LabelPlace::Above { strip } else { 0 };
        for (position, pixel) in image.chunks_exact(images.channels).enumerate() {
            let colour = match pixel {
                &[r, g, b] => [r, g, b],
                _ => [pixel[0]; 3],
            };
            let x = left + position % images.width * scale;
            let y = top + above + position / images.width * scale;
            canvas.fill(x as i64, y as i64, scale as i64, scale as i64, colour);
        }
        if let Some(label) = labels.and_then(|labels| labels.get(index)) {
            let fitting: String = label.chars().take(cell_width / font.advance()).collect();
            let indent = (cell_width - font.width(&fitting)) / 2;
            let y = if above > 0 { top } else { top + images.height * scale };
            canvas.text((left + indent) as i64, y as i64, &fitting, font, BLACK);
        }
    }
    Ok(canvas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(byte: usize) -> f32 {
        byte as f32 / 127.5 - 1.0
    }

    #[test]
    fn every_image_pixel_is_where_it_belongs() {
        // 5 images of 2x3 with distinct bytes; 3 columns, so that the last row has a gap.
        for channels in [1, 3] {
            let values: Vec<f32> = (0..5 * channels * 6).map(value).collect();
            let images = ImageBatch::new(&values, channels, 2, 3);
            let style = GridStyle { scale: Some(4), ..GridStyle::default() };
            let canvas = draw_grid(Path::new("g.png"), images, None, style).unwrap();
            assert_eq!((canvas.width(), canvas.height()), (3 * 14 + 2, 2 * 10 + 2));
            for n in 0..5 {
                for (h, w) in (0..2).flat_map(|h| (0..3).map(move |w| (h, w))) {
                    let byte = |c: usize| (n * channels * 6 + c * 6 + h * 3 + w) as u8;
                    let expected = if channels == 1 { [byte(0); 3] } else { [byte(0), byte(1), byte(2)] };
                    for inside in [0, 3] {
                        let x = 2 + n % 3 * 14 + w * 4 + inside;
                        let y = 2 + n / 3 * 10 + h * 4 + inside;
                        assert_eq!(canvas.pixel(x, y), Some(expected));
                    }
                }
            }
            assert_eq!(canvas.pixel(14, 2), Some(WHITE));
            assert_eq!(canvas.pixel(40, 18), Some(WHITE));
            assert_eq!(canvas.grey().is_some(), channels == 1);
        }
    }

    #[test]
    fn labels_take_a_strip_above_or_below() {
        let values = vec![-1.0; 2 * 64];
        let images = ImageBatch::new(&values, 1, 8, 8);
        let labels = ["7".to_string(), "a label that is far too long".to_string()];
        for (place, strip_top, image_top) in [(LabelPlace::Above, 2, 18), (LabelPlace::Below, 66, 2)] {
            let style = GridStyle { columns: Some(2), labels: place, ..GridStyle::default() };
            let canvas = draw_grid(Path::new("g.png"), images, Some(&labels), style).unwrap();
            // 8x8 images are enlarged to 64 pixels; the strip has 16.
            assert_eq!((canvas.width(), canvas.height()), (2 * 66 + 2, 80 + 4));
            assert_eq!(canvas.pixel(2, image_top), Some(BLACK));
            let darkest = |left: usize| {
                (strip_top..strip_top + 16)
                    .flat_map(|y| (left..left + 64).map(move |x| (x, y)))
                    .filter_map(|(x, y)| canvas.pixel(x, y))
                    .map(|[r, ..]| r)
                    .min()
            };
            assert!(darkest(2) < Some(60) && darkest(68) < Some(60));
        }
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let path = Path::new("g.png");
        let values = vec![0.0; 4 * 4];
        let four = ImageBatch::new(&values, 4, 2, 2);
        let text = draw_grid(path, four, None, GridStyle::default()).unwrap_err().to_string();
        assert!(text.contains("4") && text.contains(".safetensors"), "{text}");
        let one = ImageBatch::new(&values, 1, 2, 2);
        assert!(draw_grid(path, one, Some(&[]), GridStyle::default()).is_err());
        assert!(draw_grid(path, ImageBatch::new(&[], 1, 2, 2), None, GridStyle::default()).is_err());
        let odd = GridStyle { columns: Some(0), scale: Some(0), ..GridStyle::default() };
        assert_eq!(draw_grid(path, one, None, odd).unwrap().width(), 6);
    }
}
