//! Matrix product on packed panels, the base of every kernel of this backend.
//!
//! `C = alpha * A * B + beta * C`, then the [`Epilogue`]. B is packed into 32-wide panels (once, for weights), A is
//! read where it lies. The depth is cut into blocks of at most 128 that depend on the depth alone; within a
//! block an element is one chain of fused multiply-adds, and blocks are added in order. So a row of C depends on its
//! row of A, on B and on the depth, and on nothing else: not on m, on the threads, or on where tiles end.

mod epilogue;
pub(crate) mod microkernel;
pub(crate) mod pack;

pub use epilogue::Epilogue;
pub(crate) use epilogue::{Addends, FinishRow};
pub use pack::Matrix;

use super::lines::{LINE, aligned, aligned_mut};
use super::parallel::{SharedMut, for_each_task};
use super::simd::{Isa, isa};
use microkernel::{Order, PANEL, PanelProduct};
use pack::{pack_panels, panels_len};

/// Longest chain of products before the sum is added to C: a 32-wide panel of it fills half the L1 cache.
pub(crate) const DEPTH: usize = 128;

/// Cuts a depth into equal blocks of at most [`DEPTH`], a pure function of the depth.
pub(crate) fn depth_blocks(depth: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = depth.div_ceil(DEPTH).max(1);
    let size = depth.div_ceil(blocks).next_multiple_of(4).max(1);
    (0..depth).step_by(size).map(move |begin| (begin, size.min(depth - begin)))
}

/// How many threads a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone, for callers that are parallel themselves.
    Serial,
    /// All threads of the current rayon pool.
    Pool,
}

impl Threads {
    fn count(self) -> usize {
        match self {
            Threads::Serial => 1,
            Threads::Pool => rayon::current_num_threads(),
        }
    }
}

/// B packed for [`gemm`]: a borrowed slice that [`PackedMatrix::pack`] filled.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    panels: &'a [f32],
    k: usize,
    n: usize,
}

impl<'a> PackedMatrix<'a> {
    /// Floats of storage that packing a `k` x `n` matrix needs.
    pub fn len(k: usize, n: usize) -> usize {
        panels_len(k, n) + LINE
    }

    /// Packs the `k` x `n` matrix `b` into `storage`.
    pub fn pack(b: Matrix, k: usize, n: usize, storage: &'a mut [f32], threads: Threads) -> Self {
        let panels = aligned_mut(storage);
        pack_panels(threads.count(), b, k, n, panels);
        Self { panels, k, n }
    }

    /// A view of the very `storage` that [`PackedMatrix::pack`] filled earlier with the same `k` and `n`. The panels
    /// begin on a cache line: a copy elsewhere may be aligned differently and must be packed again.
    pub fn from_packed(k: usize, n: usize, storage: &'a [f32]) -> Self {
        let panels = aligned(storage);
        assert!(panels.len() >= panels_len(k, n), "gemm: packed B is too short for {k} x {n}");
        Self { panels, k, n }
    }
}

/// The right operand of [`gemm`].
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Packed by the call, into its workspace.
    Plain(Matrix<'a>),
    /// Packed before.
    Packed(PackedMatrix<'a>),
}

/// One matrix product: `C[m, n] = alpha * A[m, k] * B[k, n] + beta * C`.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Adds the product to C (beta = 1) instead of overwriting it (beta = 0; C may then hold anything).
    pub accumulate: bool,
    /// Floats from one row of C to the next.
    pub ldc: usize,
    /// Rows of C that share a row of the epilogue's `per_image`.
    pub rows_per_image: usize,
}

impl Gemm {
    /// The plain product `C = A * B`.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, alpha: 1.0, accumulate: false, ldc: n, rows_per_image: m.max(1) }
    }

    /// Floats of workspace [`gemm`] needs: for packing B (none if it is packed) and blocks of A.
    pub fn workspace(&self, packed: bool, threads: usize) -> usize {
        let b = if packed { 0 } else { panels_len(self.k, self.n) + LINE };
        b + LINE + threads * A_BLOCK
    }
}

/// Rows of A that a task takes at a time: a depth block of them stays in L2 while panels of B stream past.
const ROWS: usize = 96;
/// A block of A copied out: rows of a depth block, one cache line longer so that rows fall into different sets.
pub(crate) const A_PITCH: usize = DEPTH + LINE;
const A_BLOCK: usize = ROWS * A_PITCH;

/// Computes `C = alpha * A * B (+ C)` and applies `epilogue` to the rows of C.
///
/// `c` is row-major. The epilogue's `bias` has n values, its `per_image` n for every `rows_per_image` rows, and its
/// `residual` is laid out like C.
pub fn gemm(
    g: &Gemm,
    a: Matrix,
    b: Operand,
    c: &mut [f32],
    epilogue: &Epilogue,
    threads: Threads,
    workspace: &mut [f32],
) {
    let (ldc, rows_per_image) = (g.ldc, g.rows_per_image.max(1));
    if g.m == 0 || g.n == 0 {
        return;
    }
    a.assert_holds(g.m, g.k, "A");
    assert!(ldc >= g.n && c.len() >= (g.m - 1) * ldc + g.n, "gemm: C is too short for {} x {} rows of {ldc}", g.m, g.n);
    epilogue.assert_fits(g.m.div_ceil(rows_per_image), g.n, (g.m - 1) * ldc + g.n);
    let workers = threads.count();
    let packed = matches!(b, Operand::Packed(_));
    assert!(workspace.len() >= g.workspace(packed, workers), "gemm: workspace is too short");
    let mut rest = workspace;
    let panels = match b {
        Operand::Packed(p) => {
            assert!(p.k == g.k && p.n == g.n, "gemm: packed B is {} x {}, not {} x {}", p.k, p.n, g.k, g.n);
            p.panels
        }
        Operand::Plain(matrix) => {
            let (storage, tail) = rest.split_at_mut(panels_len(g.k, g.n) + LINE);
            rest = tail;
            PackedMatrix::pack(matrix, g.k, g.n, storage, threads).panels
        }
    };
    let plan = Split::new(g.m, g.n, ROWS, workers);
    let out = SharedMut::new(c);
    let isa = isa();
    for_each_task(workers, plan.tasks(), aligned_mut(rest), A_BLOCK, &|task, scratch| {
        let block = plan.block(task);
        // SAFETY: the extents of A, B and C were checked above; tasks own disjoint blocks of C.
        unsafe { run_block(isa, g, a, panels, out.ptr(), &block, scratch) };
        if !epilogue.is_none() {
            for row in block.rows.0..block.rows.1 {
                let at = row * ldc + block.cols.0;
                // SAFETY: as above, and `assert_fits` checked the addends.
                unsafe {
                    isa.run(FinishRow {
                        from: out.ptr().add(at),
                        y: out.ptr(),
                        at,
                        len: block.cols.1 - block.cols.0,
                        addends: Addends::at(epilogue, row / rows_per_image, block.cols.0, g.n),
                    });
                }
            }
        }
    });
}

/// Half-open ranges of rows and columns of C.
pub(crate) struct Block {
    pub rows: (usize, usize),
    pub cols: (usize, usize),
}

/// A grid of blocks over C: free to depend on the threads, since results do not depend on it.
pub(crate) struct Split {
    m: usize,
    n: usize,
    rows: usize,
    cols: usize,
}

impl Split {
    /// Blocks of at most `rows` rows and of whole panels.
    pub(crate) fn new(m: usize, n: usize, rows: usize, workers: usize) -> Self {
        let blocks = m.div_ceil(rows);
        // A few tasks per worker even out their speeds; panels are split only where rows do not suffice.
        let want = if workers == 1 { 1 } else { 4 * workers };
        let col_tasks = want.div_ceil(blocks).min(n.div_ceil(PANEL));
        let cols = n.div_ceil(PANEL).div_ceil(col_tasks) * PANEL;
        Self { m, n, rows: m.div_ceil(blocks), cols }
    }

    /// Blocks of at most `rows` x `cols`.
    pub(crate) fn with_blocks(m: usize, n: usize, rows: usize, cols: usize) -> Self {
        Self { m, n, rows, cols }
    }

    pub(crate) fn tasks(&self) -> usize {
        self.m.div_ceil(self.rows) * self.n.div_ceil(self.cols)
    }

    pub(crate) fn block(&self, task: usize) -> Block {
        let across = self.n.div_ceil(self.cols);
        let (i, j) = (task / across * self.rows, task % across * self.cols);
        Block { rows: (i, (i + self.rows).min(self.m)), cols: (j, (j + self.cols).min(self.n)) }
    }
}

/// One task of [`gemm`].
///
/// # Safety
/// The extents of A, the panels and C fit `g`, and no other task writes this block of C.
unsafe fn run_block(isa: Isa, g: &Gemm, a: Matrix, panels: &[f32], c: *mut f32, block: &Block, scratch: &mut [f32]) {
    let ldc = g.ldc;
    let rows = block.rows.1 - block.rows.0;
    if g.k == 0 {
        for i in block.rows.0..block.rows.1 {
            // SAFETY: the block lies within C.
            let row =
                unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc + block.cols.0), block.cols.1 - block.cols.0) };
            if !g.accumulate {
                row.fill(0.0);
            }
        }
    }
    for (p0, depth) in depth_blocks(g.k) {
        let at = block.rows.0 * a.row_stride + p0 * a.col_stride;
        let (a_ptr, lda, order) = if a.col_stride == 1 {
            // Strides of 2 KiB and its multiples put all rows of a tile into a few cache sets: copy those.
            if a.row_stride.is_multiple_of(512) && block.cols.1 - block.cols.0 > PANEL {
                for i in 0..rows {
                    scratch[i * A_PITCH..][..depth].copy_from_slice(&a.data[at + i * a.row_stride..][..depth]);
                }
                (scratch.as_ptr(), A_PITCH, Order::RowMajor)
            } else {
                (a.data[at..].as_ptr(), a.row_stride, Order::RowMajor)
            }
        } else {
            for p in 0..depth {
                scratch[p * ROWS..][..rows].copy_from_slice(&a.data[at + p * a.col_stride..][..rows]);
            }
            (scratch.as_ptr(), ROWS, Order::ColMajor)
        };
        for col in (block.cols.0..block.cols.1).step_by(PANEL) {
            // SAFETY: the caller vouches for C; A and B were checked by `gemm`.
            unsafe {
                PanelProduct {
                    rows,
                    cols: (block.cols.1 - col).min(PANEL),
                    depth,
                    alpha: g.alpha,
                    a: a_ptr,
                    lda,
                    order,
                    b: panels[col * g.k + p0 * PANEL..].as_ptr(),
                    c: c.add(block.rows.0 * ldc + col),
                    ldc,
                    accumulate: g.accumulate || p0 > 0,
                }
                .run(isa);
            }
        }
    }
}

#[cfg(test)]
mod tests;
