//! The weight gradient as an implicit GEMM over pixels, any filter size and stride, and the bias gradient.

use super::shape::{ConvShape, Gather, Pass};
use crate::backend::cpu::gemm::microkernel::{Order, PANEL, PanelProduct};
use crate::backend::cpu::gemm::{DEPTH, Split};
use crate::backend::cpu::lines::{LINE, aligned_mut, odd_lines};
use crate::backend::cpu::parallel::{SharedMut, for_each_task};
use crate::backend::cpu::simd::{Kernel, Simd, isa};

/// Columns (taps times channels) gathered by a task.
const COLS: usize = 8 * PANEL;

struct Plan {
    split: Split,
    dy_pitch: usize,
    scratch: usize,
}

impl Plan {
    fn new(s: &ConvShape, workers: usize) -> Self {
        let depth = s.r * s.s * s.c;
        let tasks = depth.div_ceil(COLS);
        // Rows are split only where columns do not keep all workers busy: each split gathers the columns again.
        let row_tasks = workers.div_ceil(tasks).min(s.k.div_ceil(16));
        let rows = s.k.div_ceil(row_tasks);
        let cols = depth.div_ceil(tasks.next_multiple_of(workers)).next_multiple_of(PANEL);
        let dy_pitch = odd_lines(rows);
        Self { split: Split::with_blocks(s.k, depth, rows, cols), dy_pitch, scratch: DEPTH * dy_pitch + DEPTH * cols }
    }
}

pub(super) fn workspace(shape: &ConvShape, threads: usize) -> usize {
    LINE + (1..=threads.max(1)).map(|t| t * Plan::new(shape, t).scratch).max().unwrap_or(0)
}

pub(super) fn run(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], workspace: &mut [f32]) {
    let s = *shape;
    let workers = rayon::current_num_threads();
    let plan = Plan::new(shape, workers);
    let gather = Gather::new(shape, Pass::Fprop, 0);
    let (isa, depth, pixels) = (isa(), gather.depth(), s.n * gather.pixels());
    let out = SharedMut::new(dw);
    for_each_task(workers, plan.split.tasks(), aligned_mut(workspace), plan.scratch, &|task, scratch| {
        let block = plan.split.block(task);
        let (k0, rows) = (block.rows.0, block.rows.1 - block.rows.0);
        let (a, panels) = scratch.split_at_mut(DEPTH * plan.dy_pitch);
        for p0 in (0..pixels).step_by(DEPTH) {
            let len = (pixels - p0).min(DEPTH);
            for (i, row) in a.chunks_exact_mut(plan.dy_pitch).take(len).enumerate() {
                row[..rows].copy_from_slice(&dy[(p0 + i) * s.k + k0..][..rows]);
            }
            let mut gathered = [0.0; COLS];
            let gathered = &mut gathered[..block.cols.1 - block.cols.0];
            for i in 0..len {
                gather.copy_row(x, p0 + i, block.cols.0, gathered);
                for (j, columns) in gathered.chunks(PANEL).enumerate() {
                    panels[(j * DEPTH + i) * PANEL..][..columns.len()].copy_from_slice(columns);
                }
            }
            for (j, col) in (block.cols.0..block.cols.1).step_by(PANEL).enumerate() {
                let cols = (block.cols.1 - col).min(PANEL);
                let panel = &panels[j * DEPTH * PANEL..][..DEPTH * PANEL];
                // SAFETY: `a` holds `len` rows of dy, the panel `len` rows; the task owns its block of dW.
                unsafe {
                    PanelProduct {
                        rows,
                        cols,
                        depth: len,
                        alpha: 1.0,
                        a: a.as_ptr(),
                        lda: plan.dy_pitch,
                        order: Order::ColMajor,
                        b: panel.as_ptr(),
                        c: out.ptr().add(k0 * depth + col),
                        ldc: depth,
                        accumulate: p0 > 0,
                    }
                    .run(isa);
                }
            }
        }
    });
}

/// `db[k] = sum over pixels of dy`, in blocks of [`DEPTH`] pixels so that rounding errors stay small.
pub(super) fn bias(shape: &ConvShape, dy: &[f32], db: &mut [f32]) {
    let (k, pixels, isa) = (shape.k, shape.n * shape.oh * shape.ow, isa());
    let out = SharedMut::new(db);
    for_each_task(rayon::current_num_threads(), k.div_ceil(PANEL), &mut [], 0, &|task, _| {
        let first = task * PANEL;
        // SAFETY: channels `first ..` of every pixel lie in dy; each task writes its own channels of db.
        unsafe {
            isa.run(ColumnSums {
                from: dy.as_ptr().add(first.min(dy.len())),
                rows: pixels,
                pitch: k,
                cols: (k - first).min(PANEL),
                out: out.ptr().add(first),
            });
        }
    });
}

struct ColumnSums {
    from: *const f32,
    rows: usize,
    pitch: usize,
    cols: usize,
    out: *mut f32,
}

impl Kernel for ColumnSums {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for c in (0..self.cols).step_by(S::LANES) {
            let len = (self.cols - c).min(S::LANES);
            // SAFETY: the caller vouches for `rows` rows of `cols` floats, and for `cols` outputs.
            unsafe {
                let mut total = S::zero();
                for begin in (0..self.rows).step_by(DEPTH) {
                    let mut sum = S::zero();
                    for i in begin..(begin + DEPTH).min(self.rows) {
                        sum = S::add(sum, S::load_first(self.from.add(i * self.pitch + c), len));
                    }
                    total = S::add(total, sum);
                }
                S::store_first(self.out.add(c), total, len);
            }
        }
    }
}
