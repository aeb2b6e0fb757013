//! 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3) and F(4x4, 3x3): fprop and dgrad.
//!
//! A task takes a block of tiles: it transforms their inputs (V, one matrix per point, kept in L2), multiplies them
//! with the packed filters one 32-wide panel of output channels at a time, and transforms the products back into y
//! while they are in cache. Each tile is a row of its GEMMs, so its results do not depend on the block it falls in.

mod filter;
mod tile;
mod transform;
pub(super) mod wgrad;

use super::Job;
use super::shape::{ConvShape, Pass};
use crate::backend::cpu::gemm::microkernel::{Order, PANEL, PanelProduct};
use crate::backend::cpu::gemm::{Addends, depth_blocks};
use crate::backend::cpu::lines::{LINE, aligned_mut, odd_lines};
use crate::backend::cpu::parallel::{SharedMut, for_each_task};
use crate::backend::cpu::simd::isa;
use std::marker::PhantomData;
pub(super) use tile::{F2, F4, Tile};
use transform::{Collect, Scatter, Span, Window};

/// Floats of V a block of tiles may fill: what fits in an L2 cache and a little more.
const V_BUDGET: usize = 200_000;

/// One pass seen as a stride-1 correlation of an input with 3x3 filters.
#[derive(Clone, Copy)]
struct Problem {
    n: usize,
    in_h: usize,
    in_w: usize,
    in_c: usize,
    out_h: usize,
    out_w: usize,
    out_c: usize,
    pad_top: usize,
    pad_left: usize,
}

impl Problem {
    fn new(s: &ConvShape, pass: Pass) -> Self {
        match pass {
            Pass::Fprop => Self {
                n: s.n,
                in_h: s.h,
                in_w: s.w,
                in_c: s.c,
                out_h: s.oh,
                out_w: s.ow,
                out_c: s.k,
                pad_top: s.pad_top,
                pad_left: s.pad_left,
            },
            Pass::Dgrad => Self {
                n: s.n,
                in_h: s.oh,
                in_w: s.ow,
                in_c: s.k,
                out_h: s.h,
                out_w: s.w,
                out_c: s.c,
                pad_top: 2 - s.pad_top,
                pad_left: 2 - s.pad_left,
            },
        }
    }

    /// Output tiles of `m` x `m` pixels down and across an image.
    fn tiles(&self, m: usize) -> (usize, usize) {
        (self.out_h.div_ceil(m), self.out_w.div_ceil(m))
    }

    /// Image, first output row and first output column of tile `t` of the batch.
    fn locate(&self, t: usize, m: usize) -> (usize, usize, usize) {
        let (down, across) = self.tiles(m);
        (t / (down * across), t / across % down * m, t % across * m)
    }
}

/// How a pass is cut into tasks; free to depend on the batch and the threads, since results do not.
struct Plan {
    tiles: usize,
    block: usize,
    panels: usize,
    task_panels: usize,
}

impl Plan {
    fn new(p: &Problem, t: usize, m: usize, workers: usize) -> Self {
        let tiles = p.n * p.tiles(m).0 * p.tiles(m).1;
        let fits = (V_BUDGET / (t * t * odd_lines(p.in_c))).clamp(16, 64);
        let blocks = tiles.div_ceil(fits);
        let blocks = if blocks > 1 { blocks.next_multiple_of(workers) } else { 1 };
        let block = tiles.div_ceil(blocks.max(1)).clamp(8, 64);
        let panels = p.out_c.div_ceil(PANEL);
        let splits = if tiles.div_ceil(block.max(1)) < workers { workers } else { 1 };
        Self { tiles, block, panels, task_panels: panels.div_ceil(splits.min(panels)) }
    }

    fn scratch(&self, p: &Problem, t: usize) -> usize {
        t * t * (self.block * odd_lines(p.in_c) + LINE + self.block * PANEL + LINE)
    }
}

pub(super) fn packed_len<const T: usize>(shape: &ConvShape, pass: Pass) -> usize {
    let (inputs, outputs) = if pass == Pass::Fprop { (shape.c, shape.k) } else { (shape.k, shape.c) };
    outputs.div_ceil(PANEL) * T * T * filter::point_stride(inputs)
}

pub(super) fn pack<W: Tile<T, M>, const T: usize, const M: usize>(
    shape: &ConvShape,
    pass: Pass,
    weights: &[f32],
    out: &mut [f32],
) {
    filter::pack::<W, T, M>(shape, pass, weights, out);
}

pub(super) fn workspace<const T: usize, const M: usize>(shape: &ConvShape, pass: Pass, threads: usize) -> usize {
    let p = Problem::new(shape, pass);
    // A pool smaller than `threads` may use larger blocks.
    let most = (1..=threads.max(1)).map(|t| t * Plan::new(&p, T, M, t).scratch(&p, T)).max().unwrap_or(0);
    LINE + most
}

pub(super) fn run<W: Tile<T, M> + Sync, const T: usize, const M: usize>(job: Job, packed: &[f32]) {
    let Job { shape, pass, input, epilogue, output, workspace } = job;
    let p = Problem::new(shape, pass);
    let workers = rayon::current_num_threads();
    let plan = Plan::new(&p, T, M, workers);
    let (points, pitch, isa) = (T * T, odd_lines(p.in_c), isa());
    let v_stride = plan.block * pitch + LINE;
    let m_stride = plan.block * PANEL + LINE;
    let splits = plan.panels.div_ceil(plan.task_panels);
    let tasks = plan.tiles.div_ceil(plan.block) * splits;
    let shared = SharedMut::new(output);
    for_each_task(workers, tasks, aligned_mut(workspace), plan.scratch(&p, T), &|task, scratch| {
        let first = task / splits * plan.block;
        let tiles = plan.block.min(plan.tiles - first);
        let (v, sums) = scratch.split_at_mut(points * v_stride);
        for t in 0..tiles {
            let (image, oy, ox) = p.locate(first + t, M);
            let window = Window {
                rows: Span::new(oy as isize - p.pad_top as isize, T, p.in_h),
                cols: Span::new(ox as isize - p.pad_left as isize, T, p.in_w),
                width: p.in_w,
                channels: p.in_c,
            };
            // SAFETY: the image lies in `input`; a row of V is `pitch` floats at each point, whole vectors.
            unsafe {
                isa.run(Scatter::<W, T, M, false> {
                    image: input[image * p.in_h * p.in_w * p.in_c..].as_ptr(),
                    window,
                    out: v[t * pitch..].as_mut_ptr(),
                    point_stride: v_stride,
                    group_stride: PANEL,
                    tile: PhantomData,
                });
            }
        }
        let begin = task % splits * plan.task_panels;
        for panel in begin..(begin + plan.task_panels).min(plan.panels) {
            let cols = (p.out_c - panel * PANEL).min(PANEL);
            for point in 0..points {
                let filters = &packed[(panel * points + point) * filter::point_stride(p.in_c)..][..p.in_c * PANEL];
                for (c0, depth) in depth_blocks(p.in_c) {
                    // SAFETY: `tiles` rows of V, `depth` rows of the panel and `tiles` rows of 32 sums.
                    unsafe {
                        PanelProduct {
                            rows: tiles,
                            cols,
                            depth,
                            alpha: 1.0,
                            a: v[point * v_stride + c0..].as_ptr(),
                            lda: pitch,
                            order: Order::RowMajor,
                            b: filters[c0 * PANEL..].as_ptr(),
                            c: sums[point * m_stride..].as_mut_ptr(),
                            ldc: PANEL,
                            accumulate: c0 > 0,
                        }
                        .run(isa);
                    }
                }
            }
            for t in 0..tiles {
                let (image, oy, ox) = p.locate(first + t, M);
                let window = Window {
                    rows: Span::new(oy as isize, M, p.out_h),
                    cols: Span::new(ox as isize, M, p.out_w),
                    width: p.out_w,
                    channels: p.out_c,
                };
                let addends = Addends::at(epilogue, image, panel * PANEL, p.out_c);
                // SAFETY: tasks own disjoint (tile, channel) blocks of the output, and lengths were checked.
                unsafe {
                    isa.run(Collect::<W, T, M> {
                        sums: sums[t * PANEL..].as_ptr(),
                        point_stride: m_stride,
                        len: cols,
                        y: shared.ptr(),
                        base: image * p.out_h * p.out_w * p.out_c + panel * PANEL,
                        window,
                        addends,
                        tile: PhantomData,
                    });
                }
            }
        }
    });
}
