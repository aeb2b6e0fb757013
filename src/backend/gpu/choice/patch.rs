//! Patches of pixels: what the rows of a tile are.

use std::fmt;
use std::str::FromStr;

use super::cell::Cell;

/// A box of output pixels: `row = (image * h + y) * w + x`. Rows of a tile beyond the patch are computed and not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Patch {
    /// Pixels along an image row.
    pub w: usize,
    /// Image rows.
    pub h: usize,
    /// Images.
    pub n: usize,
}

impl Patch {
    /// Pixels of the patch.
    pub fn pixels(self) -> usize {
        self.w * self.h * self.n
    }

    /// Pixels that taps spanning `(kh, kw)` read around and in the patch.
    pub fn halo_pixels(self, (kh, kw): (usize, usize)) -> usize {
        (self.w + kw - 1) * (self.h + kh - 1) * self.n
    }

    /// Patches along (x, y, images) that cover `images` images of `(h, w)` pixels.
    pub fn counts(self, images: usize, (h, w): (usize, usize)) -> (usize, usize, usize) {
        (w.div_ceil(self.w), h.div_ceil(self.h), images.div_ceil(self.n))
    }

    /// The patch of at most `rows` pixels that covers the images with the fewest patches. Of equals the one with fewer
    /// halo pixels, then longer image rows, then more of them.
    pub fn best(rows: usize, images: usize, size: (usize, usize), extent: (usize, usize)) -> Self {
        Self::best_of_cells(rows, images, size, extent, Cell { w: 1, h: 1 })
    }

    /// As [`Patch::best`], of the patches that are made of whole cells: one pixel by one if no cell fits the rows.
    pub fn best_of_cells(
        rows: usize,
        images: usize,
        (h, w): (usize, usize),
        extent: (usize, usize),
        cell: Cell,
    ) -> Self {
        let widths = (cell.w..=w.clamp(1, rows)).step_by(cell.w);
        let heights = |x: usize| (cell.h..=h.clamp(1, (rows / x).max(1))).step_by(cell.h);
        let shapes = widths.flat_map(|x| heights(x).map(move |y| (x, y))).filter(|(x, y)| x * y <= rows);
        let patches = shapes.map(|(x, y)| Self { w: x, h: y, n: (rows / (x * y)).min(images.max(1)) });
        let key = |p: &Self| {
            let (x, y, n) = p.counts(images, (h, w));
            let patches = x * y * n;
            (patches, patches * p.halo_pixels(extent), rows - p.w, rows - p.h)
        };
        patches.min_by_key(key).unwrap_or(Self { w: 1, h: 1, n: 1 })
    }
}

impl fmt::Display for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.w, self.h, self.n)
    }
}

impl FromStr for Patch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let sides: Vec<usize> = text.split('x').map(str::parse).collect::<Result<_, _>>().map_err(|_| ())?;
        match sides[..] {
            [w, h, n] if w > 0 && h > 0 && n > 0 => Ok(Self { w, h, n }),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(rows: usize, images: usize, h: usize, w: usize) -> Patch {
        Patch::best(rows, images, (h, w), (3, 3))
    }

    #[test]
    fn patches_of_odd_images_waste_little() {
        // One 7x7 image is 49 of 64 rows; two are 98 of 128, and 7x9 pixels of no image would be more.
        assert_eq!(best(64, 10, 7, 7), Patch { w: 7, h: 7, n: 1 });
        assert_eq!(best(128, 10, 7, 7), Patch { w: 7, h: 7, n: 2 });
        // 28 divides by 4 and 7: 28 x 4 = 112 of 128 rows, seven patches an image.
        assert_eq!(best(128, 1, 28, 28).counts(1, (28, 28)), (1, 7, 1));
        // 8 columns, 33 rows: 3 patches of 8 x 11 of 8 x 16.
        assert_eq!(best(128, 1, 33, 8).counts(1, (33, 8)), (1, 3, 1));
    }

    #[test]
    fn of_equal_covers_the_one_with_the_smaller_halo_and_longer_rows_wins() {
        assert_eq!(best(128, 256, 32, 32), Patch { w: 16, h: 8, n: 1 });
        assert_eq!(best(64, 256, 32, 32), Patch { w: 8, h: 8, n: 1 });
        assert_eq!(best(128, 256, 4, 4), Patch { w: 4, h: 4, n: 8 });
        assert_eq!(best(128, 3, 4, 4), Patch { w: 4, h: 4, n: 3 });
    }

    #[test]
    fn rows_of_matrices_are_patches_too() {
        assert_eq!(Patch::best(128, 256, (1, 1), (1, 1)), Patch { w: 1, h: 1, n: 128 });
        for images in [1, 16] {
            assert_eq!(Patch::best(128, images, (65536, 1), (1, 1)), Patch { w: 1, h: 128, n: 1 });
        }
    }

    #[test]
    fn a_patch_prints_and_parses() {
        let patch = Patch { w: 7, h: 4, n: 2 };
        assert_eq!(patch.to_string().parse(), Ok(patch));
        for bad in ["", "8x8", "8x8x0", "8x8x1x1", "8xax1"] {
            assert!(bad.parse::<Patch>().is_err(), "{bad}");
        }
    }
}
