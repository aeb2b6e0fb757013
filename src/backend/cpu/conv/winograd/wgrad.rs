//! The weight gradient by Winograd: `dW = G^T [sum over tiles of (A dy A^T) (B^T d B)] G`.
//!
//! Both operands are transformed as a whole, a chunk of images at a time; then each point's product over all tiles of
//! the chunk runs with its sums in cache. The chunks depend on the shape alone, the tiles are added in order: the
//! result does not depend on the threads.

use super::Tile;
use super::transform::{Scatter, Span, Window};
use crate::backend::cpu::conv::shape::ConvShape;
use crate::backend::cpu::gemm::DEPTH;
use crate::backend::cpu::gemm::microkernel::{Order, PANEL, PanelProduct};
use crate::backend::cpu::lines::{LINE, aligned_mut, odd_lines};
use crate::backend::cpu::parallel::{SharedMut, for_each_task};
use crate::backend::cpu::simd::{Kernel, Simd, isa};
use std::marker::PhantomData;

/// Floats that the transformed operands of a chunk of images may fill.
const CHUNK_BUDGET: usize = 6_000_000;
/// Tiles transformed by one task.
const TILE_BLOCK: usize = 8;

struct Layout {
    /// Tiles down and across an image.
    down: usize,
    across: usize,
    /// Images of a chunk.
    images: usize,
    panels: usize,
    /// Strides of the transformed input, `[point][C / 32][tile][32]`.
    x_group: usize,
    x_point: usize,
    /// Strides of the transformed gradient, `[point][tile][K]`.
    dy_pitch: usize,
    dy_point: usize,
    /// Strides of the products, `[point][K][C]`.
    du_pitch: usize,
    du_point: usize,
}

impl Layout {
    fn new<const T: usize, const M: usize>(s: &ConvShape) -> Self {
        let (down, across) = (s.oh.div_ceil(M), s.ow.div_ceil(M));
        let panels = s.c.div_ceil(PANEL);
        let per_image = T * T * down * across * (panels * PANEL + odd_lines(s.k));
        let chunks = s.n.div_ceil((CHUNK_BUDGET / per_image).max(1)).max(1);
        let images = s.n.div_ceil(chunks);
        let tiles = images * down * across;
        // A line between groups and points keeps the stores of one tile out of a single cache set.
        let x_group = tiles * PANEL + LINE;
        let dy_pitch = odd_lines(s.k);
        let du_pitch = panels * PANEL + LINE;
        Self {
            down,
            across,
            images,
            panels,
            x_group,
            x_point: panels * x_group,
            dy_pitch,
            dy_point: tiles * dy_pitch + LINE,
            du_pitch,
            du_point: s.k * du_pitch,
        }
    }

    fn len<const T: usize>(&self) -> usize {
        T * T * (self.x_point + self.dy_point + self.du_point)
    }
}

pub(in crate::backend::cpu::conv) fn workspace<const T: usize, const M: usize>(shape: &ConvShape) -> usize {
    LINE + Layout::new::<T, M>(shape).len::<T>()
}

pub(in crate::backend::cpu::conv) fn run<W: Tile<T, M> + Sync, const T: usize, const M: usize>(
    shape: &ConvShape,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let (s, l) = (*shape, Layout::new::<T, M>(shape));
    let (points, isa, workers) = (T * T, isa(), rayon::current_num_threads());
    let (vx, rest) = aligned_mut(workspace).split_at_mut(points * l.x_point);
    let (vdy, rest) = rest.split_at_mut(points * l.dy_point);
    let du = SharedMut::new(&mut rest[..points * l.du_point]);
    for first in (0..s.n).step_by(l.images) {
        let tiles = l.images.min(s.n - first) * l.down * l.across;
        let (sx, sdy) = (SharedMut::new(vx), SharedMut::new(vdy));
        for_each_task(workers, tiles.div_ceil(TILE_BLOCK), &mut [], 0, &|task, _| {
            for t in task * TILE_BLOCK..((task + 1) * TILE_BLOCK).min(tiles) {
                let image = first + t / (l.down * l.across);
                let (oy, ox) = (t / l.across % l.down * M, t % l.across * M);
                let input = Window {
                    rows: Span::new(oy as isize - s.pad_top as isize, T, s.h),
                    cols: Span::new(ox as isize - s.pad_left as isize, T, s.w),
                    width: s.w,
                    channels: s.c,
                };
                let gradient = Window {
                    rows: Span::new(oy as isize, M, s.oh),
                    cols: Span::new(ox as isize, M, s.ow),
                    width: s.ow,
                    channels: s.k,
                };
                // SAFETY: the images lie in x and dy; each task writes its own tiles, whole vectors of padded rows.
                unsafe {
                    isa.run(Scatter::<W, T, M, false> {
                        image: x[image * s.h * s.w * s.c..].as_ptr(),
                        window: input,
                        out: sx.ptr().add(t * PANEL),
                        point_stride: l.x_point,
                        group_stride: l.x_group,
                        tile: PhantomData,
                    });
                    isa.run(Scatter::<W, T, M, true> {
                        image: dy[image * s.oh * s.ow * s.k..].as_ptr(),
                        window: gradient,
                        out: sdy.ptr().add(t * l.dy_pitch),
                        point_stride: l.dy_point,
                        group_stride: PANEL,
                        tile: PhantomData,
                    });
                }
            }
        });
        let (vx, vdy) = (&*vx, &*vdy);
        for_each_task(workers, points * l.panels, &mut [], 0, &|task, _| {
            let (point, panel) = (task / l.panels, task % l.panels);
            for t in (0..tiles).step_by(DEPTH) {
                // SAFETY: both operands hold `tiles` rows at this point; the task owns a panel of its product.
                unsafe {
                    PanelProduct {
                        rows: s.k,
                        cols: (s.c - panel * PANEL).min(PANEL),
                        depth: (tiles - t).min(DEPTH),
                        alpha: 1.0,
                        a: vdy[point * l.dy_point + t * l.dy_pitch..].as_ptr(),
                        lda: l.dy_pitch,
                        order: Order::ColMajor,
                        b: vx[point * l.x_point + panel * l.x_group + t * PANEL..].as_ptr(),
                        c: du.ptr().add(point * l.du_point + panel * PANEL),
                        ldc: l.du_pitch,
                        accumulate: first > 0 || t > 0,
                    }
                    .run(isa);
                }
            }
        });
    }
    let out = SharedMut::new(dw);
    for_each_task(workers, s.k, &mut [], 0, &|k, _| {
        // SAFETY: each task writes the filters of its own output channel.
        unsafe {
            isa.run(FilterGradient::<W, T, M> {
                du: du.ptr().add(k * l.du_pitch),
                point_stride: l.du_point,
                dw: out.ptr().add(k * 9 * s.c),
                channels: s.c,
                tile: PhantomData,
            });
        }
    });
}

/// `dw = G^T du G` for all input channels of one output channel.
struct FilterGradient<W, const T: usize, const M: usize> {
    du: *const f32,
    point_stride: usize,
    dw: *mut f32,
    channels: usize,
    tile: PhantomData<W>,
}

impl<W: Tile<T, M>, const T: usize, const M: usize> Kernel for FilterGradient<W, T, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for c in (0..self.channels).step_by(S::LANES) {
            // SAFETY: rows of du are padded to whole vectors; dw is written up to the last channel.
            unsafe {
                let mut rows = [[S::zero(); 3]; T];
                for (i, row) in rows.iter_mut().enumerate() {
                    for j in 0..T {
                        let v = S::load(self.du.add((i * T + j) * self.point_stride + c));
                        for (sum, &g) in row.iter_mut().zip(&W::G[j]) {
                            *sum = S::fma(S::splat(g as f32), v, *sum);
                        }
                    }
                }
                for r in 0..3 {
                    for tap in 0..3 {
                        let mut sum = S::zero();
                        for (row, g) in rows.iter().zip(&W::G) {
                            sum = S::fma(S::splat(g[r] as f32), row[tap], sum);
                        }
                        let len = (self.channels - c).min(S::LANES);
                        S::store_first(self.dw.add((r * 3 + tap) * self.channels + c), sum, len);
                    }
                }
            }
        }
    }
}
