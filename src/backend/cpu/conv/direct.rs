//! Convolution as an implicit GEMM, any filter size and stride: fprop and dgrad.
//!
//! Blocks of pixels are gathered tap by tap into L2-sized rows of A and multiplied with packed weights. dgrad runs
//! once per residue of the stride, see [`Gather`].

use super::Job;
use super::shape::{ConvShape, Gather, Pass};
use crate::backend::cpu::gemm::microkernel::{Order, PANEL, PanelProduct};
use crate::backend::cpu::gemm::pack::panels_len;
use crate::backend::cpu::gemm::{A_PITCH, Addends, FinishRow, Split, depth_blocks};
use crate::backend::cpu::lines::{LINE, aligned_mut};
use crate::backend::cpu::parallel::{SharedMut, for_each_task};
use crate::backend::cpu::simd::isa;

/// Pixels gathered at a time.
const ROWS: usize = 84;

fn gathers(shape: &ConvShape, pass: Pass) -> impl Iterator<Item = Gather> {
    (0..Gather::count(shape, pass)).map(move |i| Gather::new(shape, pass, i))
}

pub(super) fn packed_len(shape: &ConvShape, pass: Pass) -> usize {
    gathers(shape, pass).map(|g| panels_len(g.depth(), g.out_channels)).sum()
}

/// Packs canonical weights: for each sub-grid `[ceil(out / 32)][taps * in][32]`.
pub(super) fn pack(shape: &ConvShape, pass: Pass, weights: &[f32], out: &mut [f32]) {
    let mut rest = out;
    for g in gathers(shape, pass) {
        let (this, tail) = rest.split_at_mut(panels_len(g.depth(), g.out_channels));
        rest = tail;
        let shared = SharedMut::new(this);
        let taps = g.y.taps * g.x.taps;
        for_each_task(rayon::current_num_threads(), g.out_channels.div_ceil(PANEL), &mut [], 0, &|panel, _| {
            let len = g.depth() * PANEL;
            // SAFETY: each task writes its own panel.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(panel * len), len) };
            let cols = (g.out_channels - panel * PANEL).min(PANEL);
            for tap in 0..taps {
                let r = g.y.first + tap / g.x.taps * g.y.step;
                let s = g.x.first + tap % g.x.taps * g.x.step;
                let block = &mut out[tap * g.in_channels * PANEL..][..g.in_channels * PANEL];
                pack_tap(shape, pass, weights, (r, s), panel * PANEL, cols, block);
            }
        });
    }
}

fn pack_tap(
    shape: &ConvShape,
    pass: Pass,
    weights: &[f32],
    (r, s): (usize, usize),
    first: usize,
    cols: usize,
    out: &mut [f32],
) {
    let at = |k: usize| ((k * shape.r + r) * shape.s + s) * shape.c;
    match pass {
        Pass::Dgrad => {
            for (k, row) in out.chunks_exact_mut(PANEL).enumerate() {
                row[..cols].copy_from_slice(&weights[at(k) + first..][..cols]);
                row[cols..].fill(0.0);
            }
        }
        Pass::Fprop => {
            // Blocks of one cache line of channels: the strided side of the transposition stays in L1.
            for (block, rows) in out.chunks_mut(LINE * PANEL).enumerate() {
                if cols < PANEL {
                    rows.fill(0.0);
                }
                for j in 0..cols {
                    let line = &weights[at(first + j) + block * LINE..];
                    for (row, &w) in rows.chunks_exact_mut(PANEL).zip(line) {
                        row[j] = w;
                    }
                }
            }
        }
    }
}

/// Floats of scratch per thread: gathered rows and their sums.
fn scratch_len(out_channels: usize) -> usize {
    ROWS * A_PITCH + ROWS * sums_pitch(out_channels)
}

/// One cache line longer than the panels, so that rows of sums fall into different cache sets.
fn sums_pitch(cols: usize) -> usize {
    cols.next_multiple_of(PANEL) + LINE
}

pub(super) fn workspace(shape: &ConvShape, pass: Pass, threads: usize) -> usize {
    LINE + threads * gathers(shape, pass).map(|g| scratch_len(g.out_channels)).max().unwrap_or(0)
}

pub(super) fn run(job: Job, packed: &[f32]) {
    let Job { shape, pass, input, epilogue, output, workspace } = job;
    let workers = rayon::current_num_threads();
    let isa = isa();
    let out_width = if pass == Pass::Fprop { shape.ow } else { shape.w };
    let out_height = if pass == Pass::Fprop { shape.oh } else { shape.h };
    let shared = SharedMut::new(output);
    let scratch = aligned_mut(workspace);
    let mut packed = packed;
    for g in gathers(shape, pass) {
        let depth = g.depth();
        let (panels, rest) = packed.split_at(panels_len(depth, g.out_channels));
        packed = rest;
        let rows = shape.n * g.pixels();
        if rows == 0 {
            continue;
        }
        let split = Split::new(rows, g.out_channels, ROWS, workers);
        for_each_task(workers, split.tasks(), scratch, scratch_len(g.out_channels), &|task, scratch| {
            let block = split.block(task);
            let (first, rows) = (block.rows.0, block.rows.1 - block.rows.0);
            let cols = block.cols.1 - block.cols.0;
            let (a, sums) = scratch.split_at_mut(ROWS * A_PITCH);
            let pitch = sums_pitch(cols);
            if depth == 0 {
                sums[..rows * pitch].fill(0.0);
            }
            for (p0, len) in depth_blocks(depth) {
                for (i, row) in a.chunks_exact_mut(A_PITCH).take(rows).enumerate() {
                    g.copy_row(input, first + i, p0, &mut row[..len]);
                }
                for col in (0..cols).step_by(PANEL) {
                    // SAFETY: `a` holds `rows` rows, the panel `len` rows from p0 on, and `sums` rows x pitch.
                    unsafe {
                        PanelProduct {
                            rows,
                            cols: (cols - col).min(PANEL),
                            depth: len,
                            alpha: 1.0,
                            a: a.as_ptr(),
                            lda: A_PITCH,
                            order: Order::RowMajor,
                            b: panels[(block.cols.0 + col) * depth + p0 * PANEL..].as_ptr(),
                            c: sums[col..].as_mut_ptr(),
                            ldc: pitch,
                            accumulate: p0 > 0,
                        }
                        .run(isa);
                    }
                }
            }
            for i in 0..rows {
                let (image, pixel) = ((first + i) / g.pixels(), (first + i) % g.pixels());
                let oy = pixel / g.x.outputs * g.y.out_step + g.y.out_first;
                let ox = pixel % g.x.outputs * g.x.out_step + g.x.out_first;
                let at = ((image * out_height + oy) * out_width + ox) * g.out_channels + block.cols.0;
                let addends = Addends::at(epilogue, image, block.cols.0, g.out_channels);
                // SAFETY: tasks own disjoint (pixel, channel) blocks of the output; lengths were checked.
                unsafe {
                    isa.run(FinishRow { from: sums[i * pitch..].as_ptr(), y: shared.ptr(), at, len: cols, addends });
                }
            }
        });
    }
}
