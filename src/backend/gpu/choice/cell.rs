//! Cells: the parts of an image whose moments a product stores beside its result.
//!
//! A norm merges them in their order, so they are cut by the shape of one image alone: then its bits do not depend on the
//! tile or the patch that a batch gets. Patches of a product that stores moments are made of whole cells.

/// A part of an image, `w` x `h` pixels; cells cover an image without rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Pixels along an image row.
    pub w: usize,
    /// Image rows.
    pub h: usize,
}

/// Pixels of a cell, at most: the rows of the smallest tile.
const MOST: usize = 64;
/// Pixels of a cell, at least, but for images that have fewer: moments of a channel take 8 bytes.
const FEWEST: usize = 16;
/// Side of a cell in larger images: every halo box is made of whole ones.
const SIDE: usize = 8;

impl Cell {
    /// The cells of an image of `(h, w)` pixels: the whole image if it is small, else 8x8. A linear layer's images are one
    /// pixel wide; their cells are as long as divides them. None where no such cells cover the image.
    pub fn of((h, w): (usize, usize)) -> Option<Self> {
        if h * w <= MOST {
            return Some(Self { w, h });
        }
        if w == 1 {
            return (FEWEST..=MOST).rev().find(|len| h.is_multiple_of(*len)).map(|h| Self { w: 1, h });
        }
        (h.is_multiple_of(SIDE) && w.is_multiple_of(SIDE)).then_some(Self { w: SIDE, h: SIDE })
    }

    /// Pixels.
    pub fn pixels(self) -> usize {
        self.w * self.h
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::choice::{ImageProblem, ImageTile, Patch, image};
    use crate::backend::gpu::driver::DeviceLimits;
    use crate::graph::ConvGeometry;

    #[test]
    fn cells_cover_an_image_without_rest() {
        for (size, cell) in [
            ((32, 32), Some((8, 8))),
            ((16, 24), Some((8, 8))),
            ((8, 8), Some((8, 8))),
            ((4, 4), Some((4, 4))),
            ((7, 9), Some((9, 7))),
            ((1, 1), Some((1, 1))),
            ((256, 1), Some((1, 64))),
            ((1000, 1), Some((1, 50))),
            ((67, 1), None),
            ((28, 28), None),
            ((9, 9), None),
            ((16, 12), None),
        ] {
            assert_eq!(Cell::of(size), cell.map(|(w, h)| Cell { w, h }), "{size:?}");
        }
    }

    fn hopper() -> DeviceLimits {
        DeviceLimits {
            name: "test".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            shared_bytes: 232_448,
            memory_bytes: 1 << 36,
            shifted_operands: true,
        }
    }

    #[test]
    fn products_that_store_moments_have_patches_of_whole_cells() {
        let mut compared = 0;
        for (h, w) in [(32, 32), (16, 16), (8, 8), (4, 4), (7, 5), (40, 24), (1, 1)] {
            for images in [1, 3, 64] {
                for channels in [vec![128], vec![64, 40]] {
                    let geometry = ConvGeometry::SAME_3X3;
                    let plain = ImageProblem::fprop(&geometry, images, (h, w), (h, w), &channels, 128);
                    let p = plain.clone().with_moments();
                    let cell = p.cell.unwrap();
                    let all = image::candidates(&p, &hopper());
                    assert!(!all.is_empty(), "{p:?}");
                    compared += all.len();
                    for choice in all {
                        assert!(choice.patch.w.is_multiple_of(cell.w) && choice.patch.h.is_multiple_of(cell.h));
                        assert_ne!(choice.tile, ImageTile::NARROW);
                        assert_eq!(choice.segments, image::segments(&plain));
                    }
                }
            }
        }
        assert!(compared > 100);
    }

    #[test]
    fn levels_of_the_usual_networks_keep_their_best_patches() {
        for size in [4, 8, 16, 32, 64, 256] {
            for (rows, images) in [(64, 1), (64, 256), (128, 1), (128, 256)] {
                let (best, cell) = (Patch::best(rows, images, (size, size), (3, 3)), Cell::of((size, size)).unwrap());
                assert_eq!(
                    Patch::best_of_cells(rows, images, (size, size), (3, 3), cell),
                    best,
                    "{size} {rows} {images}"
                );
            }
        }
    }
}
