//! Two-dimensional transforms of one tile, all its channels, between NHWC tensors and per-point matrices.

use super::tile::Tile;
use crate::backend::cpu::gemm::Addends;
use crate::backend::cpu::gemm::microkernel::PANEL;
use crate::backend::cpu::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// The rows (or columns) of a tile that lie inside an image.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    first: isize,
    begin: usize,
    end: usize,
}

impl Span {
    /// `len` rows from `first` on, of which those in `0..size` exist.
    pub(crate) fn new(first: isize, len: usize, size: usize) -> Self {
        let clip = |i: isize| i.clamp(0, len as isize) as usize;
        Self { first, begin: clip(-first), end: clip(size as isize - first) }
    }

    fn covers(&self, len: usize) -> bool {
        self.begin == 0 && self.end >= len
    }

    fn has(&self, i: usize) -> bool {
        (self.begin..self.end).contains(&i)
    }
}

/// A window of an NHWC image.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub rows: Span,
    pub cols: Span,
    /// Width of the image.
    pub width: usize,
    /// Channels of the image.
    pub channels: usize,
}

impl Window {
    /// Offset of pixel (i, j), which must exist, from the image's first element.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> usize {
        let origin = (self.rows.first * self.width as isize + self.cols.first) * self.channels as isize;
        (origin + ((i * self.width + j) * self.channels) as isize) as usize
    }
}

/// Transforms a window of an image, `B^T d B` of T x T inputs or `A dy A^T` of M x M output gradients, and writes point `p` of channel `c` at
/// `out[p * point_stride + c / 32 * group_stride + c % 32]`.
///
/// Writes whole vectors: up to 15 floats past the last channel.
pub(crate) struct Scatter<W, const T: usize, const M: usize, const GRADIENT: bool> {
    pub image: *const f32,
    pub window: Window,
    pub out: *mut f32,
    pub point_stride: usize,
    pub group_stride: usize,
    pub tile: PhantomData<W>,
}

impl<W: Tile<T, M>, const T: usize, const M: usize, const GRADIENT: bool> Scatter<W, T, M, GRADIENT> {
    #[inline(always)]
    unsafe fn pixel<S: Simd, const INSIDE: bool>(&self, i: usize, j: usize, c: usize, len: usize) -> S::V {
        let w = &self.window;
        // SAFETY: only pixels that exist are read, `len` channels of them.
        unsafe {
            if INSIDE {
                S::load(self.image.add(w.at(i, j) + c))
            } else if w.rows.has(i) && w.cols.has(j) {
                S::load_first(self.image.add(w.at(i, j) + c), len)
            } else {
                S::zero()
            }
        }
    }

    #[inline(always)]
    unsafe fn channels<S: Simd, const INSIDE: bool>(&self, c: usize, len: usize) {
        // SAFETY: the caller vouches for the window and for whole vectors of `out` at every point.
        unsafe {
            let out = self.out.add(c / PANEL * self.group_stride + c % PANEL);
            let mut rows = [[S::zero(); T]; T];
            let size = if GRADIENT { M } else { T };
            for (i, row) in rows.iter_mut().take(size).enumerate() {
                if GRADIENT {
                    let mut d = [S::zero(); M];
                    for (j, v) in d.iter_mut().enumerate() {
                        *v = self.pixel::<S, INSIDE>(i, j, c, len);
                    }
                    *row = W::gradient::<S>(d);
                } else {
                    let mut d = [S::zero(); T];
                    for (j, v) in d.iter_mut().enumerate() {
                        *v = self.pixel::<S, INSIDE>(i, j, c, len);
                    }
                    *row = W::input::<S>(d);
                }
            }
            for j in 0..T {
                let column = if GRADIENT {
                    let mut d = [S::zero(); M];
                    for (v, row) in d.iter_mut().zip(&rows) {
                        *v = row[j];
                    }
                    W::gradient::<S>(d)
                } else {
                    let mut d = [S::zero(); T];
                    for (v, row) in d.iter_mut().zip(&rows) {
                        *v = row[j];
                    }
                    W::input::<S>(d)
                };
                for (i, &v) in column.iter().enumerate() {
                    S::store(out.add((i * T + j) * self.point_stride), v);
                }
            }
        }
    }
}

impl<W: Tile<T, M>, const T: usize, const M: usize, const GRADIENT: bool> Kernel for Scatter<W, T, M, GRADIENT> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let size = if GRADIENT { M } else { T };
        let channels = self.window.channels;
        let inside = self.window.rows.covers(size) && self.window.cols.covers(size);
        for c in (0..channels).step_by(S::LANES) {
            let len = (channels - c).min(S::LANES);
            // SAFETY: the caller vouches for the window and `out`.
            unsafe {
                if inside && len == S::LANES {
                    self.channels::<S, true>(c, len);
                } else {
                    self.channels::<S, false>(c, len);
                }
            }
        }
    }
}

/// Reads point `p` of channel `c` at `sums[p * point_stride + c]`, `c < len <= 32`, transforms back, finishes with the
/// epilogue and writes the pixels of the window that exist.
pub(crate) struct Collect<W, const T: usize, const M: usize> {
    pub sums: *const f32,
    pub point_stride: usize,
    pub len: usize,
    /// The output tensor; the window's pixels start at element `base` (its image and first channel).
    pub y: *mut f32,
    pub base: usize,
    pub window: Window,
    pub addends: Addends,
    pub tile: PhantomData<W>,
}

impl<W: Tile<T, M>, const T: usize, const M: usize> Collect<W, T, M> {
    #[inline(always)]
    unsafe fn channels<S: Simd, const PARTIAL: bool>(&self, c: usize, len: usize) {
        let w = &self.window;
        // SAFETY: the caller vouches for `sums` (whole vectors) and for the pixels of y that exist.
        unsafe {
            let mut rows = [[S::zero(); M]; T];
            for (i, row) in rows.iter_mut().enumerate() {
                let mut m = [S::zero(); T];
                for (j, v) in m.iter_mut().enumerate() {
                    *v = S::load(self.sums.add((i * T + j) * self.point_stride + c));
                }
                *row = W::output::<S>(m);
            }
            for j in 0..M {
                let mut m = [S::zero(); T];
                for (v, row) in m.iter_mut().zip(&rows) {
                    *v = row[j];
                }
                let column = W::output::<S>(m);
                if !w.cols.has(j) {
                    continue;
                }
                for (i, &v) in column.iter().enumerate() {
                    if w.rows.has(i) {
                        let at = self.base + w.at(i, j) + c;
                        let v = self.addends.apply::<S, PARTIAL>(v, c, at, len);
                        if PARTIAL {
                            S::store_first(self.y.add(at), v, len);
                        } else {
                            S::store(self.y.add(at), v);
                        }
                    }
                }
            }
        }
    }
}

impl<W: Tile<T, M>, const T: usize, const M: usize> Kernel for Collect<W, T, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for c in (0..self.len).step_by(S::LANES) {
            let len = (self.len - c).min(S::LANES);
            // SAFETY: passed on from the caller.
            unsafe {
                if len == S::LANES {
                    self.channels::<S, false>(c, len);
                } else {
                    self.channels::<S, true>(c, len);
                }
            }
        }
    }
}
