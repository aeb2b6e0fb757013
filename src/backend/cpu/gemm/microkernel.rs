//! The register tile: up to 14 rows of A times a 32-wide panel of packed B.
//!
//! Each element of C is one chain of fused multiply-adds over the depth, started at zero, whatever the tile's height
//! and wherever the element lies in it. That is what makes results independent of tile edges.

use crate::backend::cpu::simd::{Isa, Kernel, Simd};

/// Columns of a panel of packed B: panels hold `depth` rows of this many floats, zeros past the last column.
pub(crate) const PANEL: usize = 32;

/// Rows of B fetched ahead: a page, which is where hardware prefetching stops. Packed weights that come from memory
/// need it; for those in cache it costs nothing measurable.
const PREFETCH: usize = 32;

/// Where element (row, depth) of A lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// At `row * lda + depth`.
    RowMajor,
    /// At `row + depth * lda`.
    ColMajor,
}

/// `C[rows, cols] = alpha * A[rows, depth] * B[depth, cols] (+ C)`, with `cols <= PANEL`.
#[derive(Clone, Copy)]
pub(crate) struct PanelProduct {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub alpha: f32,
    pub a: *const f32,
    pub lda: usize,
    pub order: Order,
    /// One panel: element (depth, col) at `depth * PANEL + col`.
    pub b: *const f32,
    pub c: *mut f32,
    pub ldc: usize,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
}

impl PanelProduct {
    /// Computes the product, tile by tile.
    ///
    /// # Safety
    /// `isa` came from [`crate::backend::cpu::isa`]; A, B (whole panel rows) and C are valid for the extents above and
    /// C is not aliased.
    pub(crate) unsafe fn run(&self, isa: Isa) {
        let wide = if isa == Isa::Avx512 { PANEL } else { PANEL / 2 };
        let tiles = self.rows.div_ceil(isa.max_rows());
        for col in (0..self.cols).step_by(wide) {
            let mut row = 0;
            for t in 0..tiles {
                // Even heights keep every tile tall enough to hide the latency of the multiply-add.
                let height = (self.rows - row).div_ceil(tiles - t);
                let a_step = if self.order == Order::RowMajor { self.lda } else { 1 };
                // SAFETY: offsets stay within the extents the caller vouches for.
                unsafe {
                    let tile = Self {
                        rows: height,
                        cols: (self.cols - col).min(wide),
                        a: self.a.add(row * a_step),
                        b: self.b.add(col),
                        c: self.c.add(row * self.ldc + col),
                        ..*self
                    };
                    if tile.cols > wide / 2 { tile.dispatch::<2>(isa) } else { tile.dispatch::<1>(isa) }
                }
                row += height;
            }
        }
    }

    #[inline(always)]
    unsafe fn dispatch<const NV: usize>(&self, isa: Isa) {
        macro_rules! heights {
            ($($h:literal)*) => {
                match (self.rows, self.order) {
                    // SAFETY: passed on from the caller.
                    $(($h, Order::RowMajor) => unsafe { isa.run(Tile::<$h, NV, false>(self)) },
                      ($h, Order::ColMajor) => unsafe { isa.run(Tile::<$h, NV, true>(self)) },)*
                    _ => unreachable!("tile height {}", self.rows),
                }
            };
        }
        heights!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

struct Tile<'a, const ROWS: usize, const NV: usize, const COL_MAJOR: bool>(&'a PanelProduct);

impl<const ROWS: usize, const NV: usize, const COL_MAJOR: bool> Kernel for Tile<'_, ROWS, NV, COL_MAJOR> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if ROWS > S::MAX_ROWS {
            return;
        }
        let t = self.0;
        let (lda, depth) = (t.lda, t.depth);
        // SAFETY: the caller vouches for A, B and C; every access is within rows x depth x cols.
        unsafe {
            let mut acc = [[S::zero(); NV]; ROWS];
            let (mut a, mut b) = (t.a, t.b);
            let a_step = if COL_MAJOR { lda } else { 1 };
            for _ in 0..depth / 4 {
                for u in 0..4 {
                    step::<S, ROWS, NV, COL_MAJOR>(a.add(u * a_step), lda, b.add(u * PANEL), &mut acc);
                }
                a = a.add(4 * a_step);
                b = b.add(4 * PANEL);
            }
            for _ in 0..depth % 4 {
                step::<S, ROWS, NV, COL_MAJOR>(a, lda, b, &mut acc);
                a = a.add(a_step);
                b = b.add(PANEL);
            }
            let alpha = S::splat(t.alpha);
            for (i, row) in acc.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    let c = t.c.add(i * t.ldc + j * S::LANES);
                    let left = t.cols - j * S::LANES;
                    if left >= S::LANES {
                        S::store(c, if t.accumulate { S::fma(alpha, sum, S::load(c)) } else { S::mul(alpha, sum) });
                    } else {
                        let old = if t.accumulate { S::load_first(c, left) } else { S::zero() };
                        S::store_first(c, S::fma(alpha, sum, old), left);
                    }
                }
            }
        }
    }
}

/// One rank-1 update of the tile.
///
/// # Safety
/// `a` and `b` are valid for one column of the tile and one row of the panel.
#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize, const NV: usize, const COL_MAJOR: bool>(
    a: *const f32,
    lda: usize,
    b: *const f32,
    acc: &mut [[S::V; NV]; ROWS],
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut bv = [S::zero(); NV];
        for (j, v) in bv.iter_mut().enumerate() {
            *v = S::load(b.add(j * S::LANES));
            S::prefetch(b.wrapping_add(PREFETCH * PANEL + j * S::LANES));
        }
        for (i, row) in acc.iter_mut().enumerate() {
            let x = S::splat(*a.add(if COL_MAJOR { i } else { i * lda }));
            for (sum, &y) in row.iter_mut().zip(&bv) {
                *sum = S::fma(x, y, *sum);
            }
        }
    }
}
