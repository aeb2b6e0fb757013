//! cuBLASLt: matrix products of bf16 operands with f32 sums.
//!
//! The library is column-major: a row-major matrix is its transpose there, so every product is computed as
//! `out^T = b^T a^T` with the operands as they lie in memory.

mod api;

use std::ffi::c_void;
use std::path::Path;
use std::rc::Rc;

use super::search::address;
use super::{Algorithm, Algorithms, Call, PeerError, ResultType, WORKSPACE};
use crate::bench::{GemmShape, Pass, Product};
use api::{Api, Handle, HeuristicResult, Layout, Operation, Preference};

/// How many algorithms to ask for.
const MOST: usize = 32;

pub(super) use api::find;

/// The library with a handle.
pub(super) struct CublasLt {
    handle: Rc<Handle>,
}

impl CublasLt {
    /// Loads it and makes a handle in the current context.
    pub fn open(folder: Option<&Path>) -> Result<Self, PeerError> {
        Ok(Self { handle: Rc::new(Handle::new(Api::load(folder)?)?) })
    }
}

/// One operand as the library sees it: column-major, `ld` elements from column to column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matrix {
    rows: usize,
    cols: usize,
    ld: usize,
    transposed: bool,
}

/// `out = left right` in the library's terms; left is our second operand, right the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    left: Matrix,
    right: Matrix,
    out: Matrix,
}

impl Columns {
    fn new(shape: &GemmShape, pass: Pass) -> Self {
        let GemmShape { m, n, k, .. } = *shape;
        // A row-major [rows, cols] matrix is a column-major one of cols x rows.
        let lying = |rows: usize, cols: usize, transposed| Matrix { rows: cols, cols: rows, ld: cols, transposed };
        match pass {
            // y^T [n x m] = w [n x k] x^T [k x m].
            Pass::Fprop => Self { left: lying(n, k, true), right: lying(m, k, false), out: lying(m, n, false) },
            // dx^T [k x m] = w^T [k x n] dy^T [n x m].
            Pass::Dgrad => Self { left: lying(n, k, false), right: lying(m, n, false), out: lying(m, k, false) },
            // dw^T [k x n] = x^T [k x m] dy [m x n].
            Pass::Wgrad => Self { left: lying(m, k, false), right: lying(m, n, true), out: lying(n, k, false) },
        }
    }
}

impl Algorithms for CublasLt {
    fn name(&self) -> &'static str {
        "cublaslt"
    }

    fn version(&self) -> String {
        self.handle.api().version()
    }

    fn propose(&self, product: &Product, pass: Pass, result: ResultType) -> Result<Vec<Box<dyn Algorithm>>, PeerError> {
        let Product::Gemm(shape) = product else {
            return Err(PeerError::Unsupported { library: "cublaslt", what: format!("the convolution {product}") });
        };
        let columns = Columns::new(shape, pass);
        let problem = Rc::new(Problem::new(&self.handle, columns, result)?);
        let preference = Preference::new(&self.handle, WORKSPACE)?;
        let found = self.handle.heuristics(&problem.operation, &problem.layouts, &preference, MOST)?;
        let algorithm =
            |(rank, chosen)| Box::new(Chosen { problem: Rc::clone(&problem), chosen, rank }) as Box<dyn Algorithm>;
        Ok(found.into_iter().enumerate().map(algorithm).collect())
    }
}

/// Descriptors of a product.
struct Problem {
    operation: Operation,
    /// Left, right, result.
    layouts: [Layout; 3],
    handle: Rc<Handle>,
}

impl Problem {
    fn new(handle: &Rc<Handle>, columns: Columns, result: ResultType) -> Result<Self, PeerError> {
        let Columns { left, right, out } = columns;
        let operation = Operation::new(handle, left.transposed, right.transposed)?;
        let layout = |m: Matrix, of| Layout::new(handle, of, m.rows as u64, m.cols as u64, m.ld as i64);
        let layouts = [layout(left, ResultType::Bf16)?, layout(right, ResultType::Bf16)?, layout(out, result)?];
        Ok(Self { operation, layouts, handle: Rc::clone(handle) })
    }
}

struct Chosen {
    problem: Rc<Problem>,
    chosen: HeuristicResult,
    rank: usize,
}

impl Algorithm for Chosen {
    fn name(&self) -> String {
        format!("heuristic {}, {:.2} waves", self.rank, self.chosen.waves)
    }

    fn prepare(&mut self) -> Result<usize, PeerError> {
        Ok(self.chosen.workspace_bytes)
    }

    unsafe fn enqueue(&mut self, call: &Call, stream: *mut c_void) -> Result<(), PeerError> {
        let p = &self.problem;
        let [right, left] = call.operands.map(address);
        let workspace = (address(call.workspace), call.workspace_bytes);
        // SAFETY: the caller's; the layouts say what lies at the addresses.
        unsafe {
            let operands = [left, right, address(call.result)];
            p.handle.matmul(&p.operation, &p.layouts, operands, &self.chosen, workspace, stream)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `out = op(left) op(right)` as the library's documentation has it, in f64.
    fn column_major(c: &Columns, left: &[f64], right: &[f64]) -> Vec<f64> {
        let at = |m: &Matrix, data: &[f64], row: usize, col: usize| {
            let (row, col) = if m.transposed { (col, row) } else { (row, col) };
            assert!(row < m.rows && col < m.cols, "outside of the layout");
            data[row + col * m.ld]
        };
        let depth = if c.left.transposed { c.left.rows } else { c.left.cols };
        assert_eq!(depth, if c.right.transposed { c.right.cols } else { c.right.rows });
        let mut out = vec![f64::NAN; c.out.ld * c.out.cols];
        for row in 0..c.out.rows {
            for col in 0..c.out.cols {
                out[row + col * c.out.ld] =
                    (0..depth).map(|d| at(&c.left, left, row, d) * at(&c.right, right, d, col)).sum();
            }
        }
        out
    }

    fn numbers(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 37 + seed * 101) % 23) as f64 - 11.0).collect()
    }

    #[test]
    fn descriptors_compute_the_products_of_a_linear_layer() {
        let shape = GemmShape { m: 5, n: 3, k: 7, b: 1 };
        let GemmShape { m, n, k, .. } = shape;
        for pass in Pass::ALL {
            let [la, lb, _] = Product::Gemm(shape).operands(pass);
            let (a, b) = (numbers(la, 1), numbers(lb, 2));
            let columns = Columns::new(&shape, pass);
            let sum = |len: usize, f: &dyn Fn(usize) -> f64| (0..len).map(f).sum::<f64>();
            let expected: Vec<f64> = match pass {
                // y = x w^T
                Pass::Fprop => (0..m * n).map(|i| sum(k, &|d| a[i / n * k + d] * b[i % n * k + d])).collect(),
                // dx = dy w
                Pass::Dgrad => (0..m * k).map(|i| sum(n, &|d| a[i / k * n + d] * b[d * k + i % k])).collect(),
                // dw = dy^T x
                Pass::Wgrad => (0..n * k).map(|i| sum(m, &|d| a[d * n + i / k] * b[d * k + i % k])).collect(),
            };
            assert_eq!(column_major(&columns, &b, &a), expected, "{pass:?}");
        }
    }

    /// With the library at hand (no GPU needed), its own functions accept the descriptors.
    #[test]
    fn the_library_takes_the_descriptors() {
        let Some(folder) = std::env::var_os("WARPDIFF_PEER_PATH") else {
            eprintln!("skipped: WARPDIFF_PEER_PATH names no folder with libcublasLt");
            return;
        };
        let api = Api::load(Some(Path::new(&folder))).unwrap();
        let handle = Rc::new(Handle::unconnected(api));
        for pass in Pass::ALL {
            for result in [ResultType::Bf16, ResultType::F32] {
                Problem::new(&handle, Columns::new(&GemmShape { m: 512, n: 768, k: 256, b: 2 }, pass), result).unwrap();
            }
        }
        Preference::new(&handle, WORKSPACE).unwrap();
    }
}
