//! Packing B into 32-wide panels.
//!
//! Layout: panel-major, `[ceil(n / 32)][k][32]`, zeros past column n, so that a depth block of a panel is contiguous.

use super::microkernel::PANEL;
use crate::backend::cpu::parallel::{SharedMut, for_each_task};

/// Floats of `k` x `n` packed into panels.
pub(crate) fn panels_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// A matrix view: element (i, j) at `data[i * row_stride + j * col_stride]`; one stride is 1.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows contiguous: element (i, j) at `data[i * row_stride + j]`.
    pub fn row_major(data: &'a [f32], row_stride: usize) -> Self {
        Self { data, row_stride, col_stride: 1 }
    }

    /// Columns contiguous: element (i, j) at `data[i + j * col_stride]`; a transposed row-major matrix.
    pub fn transposed(data: &'a [f32], col_stride: usize) -> Self {
        Self { data, row_stride: 1, col_stride }
    }

    pub(crate) fn assert_holds(&self, rows: usize, cols: usize, name: &str) {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "gemm: {name} is {} floats, needs {}", self.data.len(), last + 1);
        }
    }
}

/// Packs the `k` x `n` matrix `b` into `out` on `workers` threads.
pub(crate) fn pack_panels(workers: usize, b: Matrix, k: usize, n: usize, out: &mut [f32]) {
    b.assert_holds(k, n, "B");
    assert!(out.len() >= panels_len(k, n), "gemm: packed B needs {} floats, got {}", panels_len(k, n), out.len());
    let shared = SharedMut::new(out);
    for_each_task(workers, n.div_ceil(PANEL), &mut [], 0, &|panel, _| {
        let cols = (n - panel * PANEL).min(PANEL);
        // SAFETY: `out` holds every panel, and each task writes its own.
        let out = unsafe { std::slice::from_raw_parts_mut(shared.ptr().add(panel * PANEL * k), k * PANEL) };
        pack_panel(&b.data[(panel * PANEL * b.col_stride).min(b.data.len())..], b.row_stride, b.col_stride, cols, out);
    });
}

fn pack_panel(b: &[f32], row_stride: usize, col_stride: usize, cols: usize, out: &mut [f32]) {
    if col_stride == 1 {
        for (p, row) in out.chunks_exact_mut(PANEL).enumerate() {
            row[..cols].copy_from_slice(&b[p * row_stride..][..cols]);
            row[cols..].fill(0.0);
        }
        return;
    }
    // Columns are contiguous: transpose in square blocks so that both sides stay in L1.
    let k = out.len() / PANEL;
    for p0 in (0..k).step_by(16) {
        let depth = (k - p0).min(16);
        for j in 0..PANEL {
            let column = if j < cols { &b[p0 * row_stride + j * col_stride..] } else { &[] };
            for p in 0..depth {
                out[(p0 + p) * PANEL + j] = if j < cols { column[p * row_stride] } else { 0.0 };
            }
        }
    }
}
