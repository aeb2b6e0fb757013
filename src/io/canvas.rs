//! A small RGB picture with the few drawing operations that grids and plots need.

use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::FileError;
use super::atomic::{AtomicFile, write_file};
use super::provenance;

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// Black.
pub const BLACK: Rgb = [0; 3];
/// White.
pub const WHITE: Rgb = [255; 3];

/// A text style: one of the built-in bitmaps of Noto Sans Mono.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Font {
    /// 16 pixels high.
    Small,
    /// 20 pixels high, bold.
    Title,
}

impl Font {
    fn raster(self) -> (FontWeight, RasterHeight) {
        match self {
            Font::Small => (FontWeight::Regular, RasterHeight::Size16),
            Font::Title => (FontWeight::Bold, RasterHeight::Size20),
        }
    }

    /// Height of a line in pixels.
    pub fn height(self) -> usize {
        self.raster().1.val()
    }

    /// Width of a character in pixels; all are equally wide.
    pub fn advance(self) -> usize {
        let (weight, height) = self.raster();
        get_raster_width(weight, height)
    }

    /// Width of `text` in pixels.
    pub fn width(self, text: &str) -> usize {
        text.chars().count() * self.advance()
    }
}

/// An RGB picture, row-major, 3 bytes a pixel. Drawing outside is clipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    /// A picture of one colour.
    pub fn new(width: usize, height: usize, colour: Rgb) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, `height * width * 3`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// One byte a pixel, if every pixel is grey.
    pub fn grey(&self) -> Option<Vec<u8>> {
        self.rgb.as_chunks::<3>().0.iter().map(|&[r, g, b]| (r == g && g == b).then_some(r)).collect()
    }

    /// The colour at column `x`, row `y`, if inside.
    pub fn pixel(&self, x: usize, y: usize) -> Option<Rgb> {
        (x < self.width).then_some(())?;
        self.rgb.as_chunks::<3>().0.get(y * self.width + x).copied()
    }

    /// Mixes `colour` into a pixel: `alpha` 0 leaves it, 1 replaces it.
    pub fn blend(&mut self, x: i64, y: i64, colour: Rgb, alpha: f32) {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
            return;
        };
        if x >= self.width || y >= self.height {
            return;
        }
        let start = (y * self.width + x) * 3;
        let alpha = alpha.clamp(0.0, 1.0);
        for (old, new) in self.rgb[start..start + 3].iter_mut().zip(colour) {
            *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * alpha).round() as u8;
        }
    }

    /// Fills the rectangle with its upper left corner at `(x, y)`.
    pub fn fill(&mut self, x: i64, y: i64, width: i64, height: i64, colour: Rgb) {
        let clip = |from: i64, extent: i64, end: usize| {
            let end = end as i64;
            (from.clamp(0, end) as usize, (from + extent).clamp(0, end) as usize)
        };
        let ((left, right), (top, bottom)) = (clip(x, width, self.width), clip(y, height, self.height));
        for row in top..bottom {
            let start = row * self.width;
            for pixel in self.rgb[(start + left) * 3..(start + right.max(left)) * 3].as_chunks_mut::<3>().0 {
                *pixel = colour;
            }
        }
    }

    /// Draws an anti-aliased line between pixel positions (pixel centres at whole numbers), `width` pixels wide with round ends.
    pub fn line(&mut self, from: (f32, f32), to: (f32, f32), width: f32, colour: Rgb, alpha: f32) {
        let reach = width / 2.0 + 1.0;
        let low = |a: f32, b: f32| (a.min(b) - reach).floor().max(-1.0) as i64;
        let high = |a: f32, b: f32, end: usize| (a.max(b) + reach).ceil().min(end as f32) as i64;
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length_squared = (dx * dx + dy * dy).max(f32::MIN_POSITIVE);
        for y in low(from.1, to.1)..=high(from.1, to.1, self.height) {
            for x in low(from.0, to.0)..=high(from.0, to.0, self.width) {
                let (px, py) = (x as f32 - from.0, y as f32 - from.1);
                let along = ((px * dx + py * dy) / length_squared).clamp(0.0, 1.0);
                let distance = (px - along * dx).hypot(py - along * dy);
                let coverage = (width / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
                if coverage > 0.0 {
                    self.blend(x, y, colour, coverage * alpha);
                }
            }
        }
    }

    /// Writes `text` with its upper left corner at `(x, y)`. Characters outside ASCII appear as `?`.
    pub fn text(&mut self, x: i64, y: i64, text: &str, font: Font, colour: Rgb) {
        self.glyphs(text, font, |canvas, along, down, alpha| {
            canvas.blend(x + along, y + down, colour, alpha);
        });
    }

    /// Writes `text` upwards; its first character ends at the lower left corner `(x, y)`.
    pub fn text_up(&mut self, x: i64, y: i64, text: &str, font: Font, colour: Rgb) {
        self.glyphs(text, font, |canvas, along, down, alpha| {
            canvas.blend(x + down, y - along, colour, alpha);
        });
    }

    fn glyphs(&mut self, text: &str, font: Font, mut put: impl FnMut(&mut Self, i64, i64, f32)) {
        let (weight, height) = font.raster();
        for (position, character) in text.chars().enumerate() {
            let glyph = get_raster(character, weight, height).or_else(|| get_raster('?', weight, height));
            let left = (position * font.advance()) as i64;
            for (down, row) in glyph.iter().flat_map(|glyph| glyph.rows()).enumerate() {
                for (along, &intensity) in row.iter().enumerate() {
                    put(self, left + along as i64, down as i64, f32::from(intensity) / 255.0);
                }
            }
        }
    }

    /// Writes a PNG, atomically: 8-bit grey if every pixel is grey, else RGB.
    ///
    /// # Errors
    /// [`FileError::Os`]; [`FileError::Unwritable`] if the picture is empty or over 2^32 - 1 pixels wide or high.
    pub fn write_png(&self, path: &Path) -> Result<(), FileError> {
        self.write_png_with(path, None)
    }

    /// As [`write_png`](Self::write_png), with what the picture says about its origin.
    ///
    /// # Errors
    /// As there.
    pub fn write_png_with(&self, path: &Path, origin: Option<&str>) -> Result<(), FileError> {
        let png = match self.grey() {
            Some(grey) => encode_png(&grey, 1, self.width, self.height, origin),
            None => encode_png(&self.rgb, 3, self.width, self.height, origin),
        };
        let png = png.map_err(|problem| FileError::Unwritable { path: path.to_path_buf(), problem })?;
        write_file(path, |file: &mut AtomicFile| std::io::Write::write_all(file, &png))
    }
}

/// A PNG of `height * width * channels` bytes, NHWC; `channels` is 1 or 3. `origin` becomes its text [`provenance::KEY`].
pub(super) fn encode_png(
    bytes: &[u8],
    channels: usize,
    width: usize,
    height: usize,
    origin: Option<&str>,
) -> Result<Vec<u8>, String> {
    let side = |extent: usize| u32::try_from(extent).ok().filter(|&extent| extent > 0);
    let (Some(w), Some(h)) = (side(width), side(height)) else {
        return Err(format!("a picture of {width} x {height} pixels cannot be a PNG"));
    };
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, w, h);
    encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::Adaptive);
    let written = match origin {
        Some(text) => encoder.add_text_chunk(provenance::KEY.into(), text.into()),
        None => Ok(()),
    };
    written
        .and_then(|()| encoder.write_header())
        .and_then(|mut writer| writer.write_image_data(bytes).and_then(|()| writer.finish()))
        .map_err(|error| error.to_string())?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(path: &Path) -> image::DynamicImage {
        image::ImageReader::open(path).unwrap().decode().unwrap()
    }

    #[test]
    fn png_round_trip_in_grey_and_colour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mut canvas = Canvas::new(5, 3, [7, 7, 7]);
        canvas.fill(1, 1, 2, 9, [200, 200, 200]);
        canvas.write_png(&path).unwrap();
        let image = decode(&path);
        assert_eq!(image.color(), image::ColorType::L8);
        assert_eq!(image.as_bytes(), [7, 7, 7, 7, 7, 7, 200, 200, 7, 7, 7, 200, 200, 7, 7]);
        canvas.fill(4, 2, 1, 1, [1, 2, 3]);
        canvas.write_png(&path).unwrap();
        let image = decode(&path);
        assert_eq!(image.color(), image::ColorType::Rgb8);
        assert_eq!(image.as_bytes(), canvas.rgb());
        assert_eq!(canvas.pixel(4, 2), Some([1, 2, 3]));
        assert_eq!(canvas.pixel(5, 2), None);
        assert!(matches!(Canvas::new(0, 3, BLACK).write_png(&path), Err(FileError::Unwritable { .. })));
    }

    #[test]
    fn lines_cover_as_much_as_their_area() {
        for (from, to, width) in [
            ((20.0f32, 20.0), (60.0, 20.0), 1.0f32),
            ((20.3, 20.7), (60.9, 47.2), 2.0),
            ((50.0, 80.0), (20.0, 10.0), 3.0),
        ] {
            let mut canvas = Canvas::new(100, 100, BLACK);
            canvas.line(from, to, width, WHITE, 1.0);
            let ink: f32 = canvas.rgb().iter().map(|&b| f32::from(b) / 765.0).sum();
            let length = (from.0 - to.0).hypot(from.1 - to.1);
            let area = width * length + std::f32::consts::PI * width * width / 4.0;
            assert!((ink / area - 1.0).abs() < 0.03, "{ink} against {area}");
        }
    }

    #[test]
    fn rotated_text_is_the_text_rotated() {
        let mut flat = Canvas::new(64, 64, BLACK);
        flat.text(0, 0, "F7g", Font::Small, WHITE);
        let mut up = Canvas::new(64, 64, BLACK);
        up.text_up(0, 63, "F7g", Font::Small, WHITE);
        assert!(flat.rgb().iter().any(|&b| b > 200));
        for y in 0..64 {
            for x in 0..64 {
                assert_eq!(flat.pixel(x, y), up.pixel(y, 63 - x));
            }
        }
        // Clipped on every side, and unknown characters: no panic.
        flat.text(-5, -5, "äöü\u{1F600}", Font::Title, WHITE);
        flat.text(60, 60, "abc", Font::Title, WHITE);
    }
}
