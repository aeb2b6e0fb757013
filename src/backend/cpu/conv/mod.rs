//! Convolution of NHWC images: fprop, dgrad and wgrad.
//!
//! Weights are canonical `K x R x S x C`; [`PackedConv`] holds them in the order (or transformed, for Winograd) that one
//! pass wants. No kernel allocates: callers bring workspace, and the `*_workspace` functions say how much. Work runs on
//! the current rayon pool.

mod direct;
mod shape;
mod wgrad;
mod winograd;

pub use shape::{Algorithm, ConvShape, Pass, algorithm};

use super::gemm::{Epilogue, Gemm, Matrix, Operand, PackedMatrix, Threads, gemm};
use super::lines::{LINE, aligned, aligned_mut};
use winograd::{F2, F4};

/// Weights packed for one pass of one geometry (any batch size): a borrowed slice that [`PackedConv::pack`] filled.
#[derive(Clone, Copy, Debug)]
pub struct PackedConv<'a> {
    data: &'a [f32],
    shape: ConvShape,
    pass: Pass,
    algorithm: Algorithm,
}

/// Input and output channels of a pass.
fn channels(shape: &ConvShape, pass: Pass) -> (usize, usize) {
    match pass {
        Pass::Fprop => (shape.c, shape.k),
        Pass::Dgrad => (shape.k, shape.c),
    }
}

fn packed_len(shape: &ConvShape, pass: Pass, algorithm: Algorithm) -> usize {
    let (inputs, outputs) = channels(shape, pass);
    match algorithm {
        Algorithm::Gemm => PackedMatrix::len(inputs, outputs),
        Algorithm::Direct => direct::packed_len(shape, pass),
        Algorithm::Winograd2 => winograd::packed_len::<4>(shape, pass),
        Algorithm::Winograd4 => winograd::packed_len::<6>(shape, pass),
    }
}

impl<'a> PackedConv<'a> {
    /// Floats of storage that packing the weights of `shape` for `pass` needs.
    pub fn len(shape: &ConvShape, pass: Pass) -> usize {
        LINE + packed_len(shape, pass, algorithm(shape))
    }

    /// Packs the canonical weights into `storage`, on all threads of the current pool.
    pub fn pack(shape: &ConvShape, pass: Pass, weights: &[f32], storage: &'a mut [f32]) -> Self {
        Self::pack_for(algorithm(shape), shape, pass, weights, storage)
    }

    fn pack_for(algorithm: Algorithm, shape: &ConvShape, pass: Pass, weights: &[f32], storage: &'a mut [f32]) -> Self {
        shape.assert_valid();
        assert_eq!(weights.len(), shape.weight_len(), "convolution: weights do not fit {shape:?}");
        let (inputs, outputs) = channels(shape, pass);
        let out = aligned_mut(storage);
        assert!(out.len() >= packed_len(shape, pass, algorithm), "convolution: packed storage is too short");
        match algorithm {
            Algorithm::Gemm => {
                let matrix = match pass {
                    Pass::Fprop => Matrix::transposed(weights, shape.c),
                    Pass::Dgrad => Matrix::row_major(weights, shape.c),
                };
                PackedMatrix::pack(matrix, inputs, outputs, out, Threads::Pool);
            }
            Algorithm::Direct => direct::pack(shape, pass, weights, out),
            Algorithm::Winograd2 => winograd::pack::<F2, 4, 2>(shape, pass, weights, out),
            Algorithm::Winograd4 => winograd::pack::<F4, 6, 4>(shape, pass, weights, out),
        }
        Self { data: out, shape: *shape, pass, algorithm }
    }

    /// A view of the very `storage` that [`PackedConv::pack`] filled earlier for the same geometry and pass. The data
    /// begin on a cache line: a copy elsewhere may be aligned differently and must be packed again.
    pub fn from_packed(shape: &ConvShape, pass: Pass, storage: &'a [f32]) -> Self {
        let data = aligned(storage);
        assert!(data.len() >= packed_len(shape, pass, algorithm(shape)), "convolution: packed storage is too short");
        Self { data, shape: *shape, pass, algorithm: algorithm(shape) }
    }

    fn assert_fits(&self, shape: &ConvShape, pass: Pass) {
        let same = ConvShape { n: shape.n, ..self.shape } == *shape && self.pass == pass;
        assert!(
            same,
            "convolution: weights were packed for {:?} of {:?}, not {pass:?} of {shape:?}",
            self.pass, self.shape
        );
    }
}

fn pass_workspace(algorithm: Algorithm, shape: &ConvShape, pass: Pass, threads: usize) -> usize {
    match algorithm {
        Algorithm::Gemm => gemm_of(shape, pass).workspace(true, threads),
        Algorithm::Direct => direct::workspace(shape, pass, threads),
        Algorithm::Winograd2 => winograd::workspace::<4, 2>(shape, pass, threads),
        Algorithm::Winograd4 => winograd::workspace::<6, 4>(shape, pass, threads),
    }
}

fn gemm_of(shape: &ConvShape, pass: Pass) -> Gemm {
    let (inputs, outputs) = channels(shape, pass);
    Gemm { rows_per_image: shape.h * shape.w, ..Gemm::new(shape.n * shape.h * shape.w, outputs, inputs) }
}

/// One fprop or dgrad: `output = epilogue(input * filters)`, or added to what `output` holds.
struct Job<'a> {
    shape: &'a ConvShape,
    pass: Pass,
    input: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    output: &'a mut [f32],
    workspace: &'a mut [f32],
}

fn run_pass(job: Job, packed: &PackedConv) {
    let Job { shape, pass, .. } = job;
    packed.assert_fits(shape, pass);
    let (inputs, outputs) = channels(shape, pass);
    job.epilogue.assert_fits(shape.n, outputs, job.output.len());
    let need = pass_workspace(packed.algorithm, shape, pass, rayon::current_num_threads());
    assert!(job.workspace.len() >= need, "convolution: workspace of {} floats, needs {need}", job.workspace.len());
    if job.output.is_empty() {
        return;
    }
    match packed.algorithm {
        Algorithm::Gemm => {
            let g = gemm_of(shape, pass);
            let b = Operand::Packed(PackedMatrix::from_packed(inputs, outputs, packed.data));
            let a = Matrix::row_major(job.input, inputs);
            gemm(&g, a, b, job.output, job.epilogue, Threads::Pool, job.workspace);
        }
        Algorithm::Direct => direct::run(job, packed.data),
        Algorithm::Winograd2 => winograd::run::<F2, 4, 2>(job, packed.data),
        Algorithm::Winograd4 => winograd::run::<F4, 6, 4>(job, packed.data),
    }
}

/// Floats of workspace [`fprop`] needs in a pool of at most `threads` threads.
pub fn fprop_workspace(shape: &ConvShape, threads: usize) -> usize {
    pass_workspace(algorithm(shape), shape, Pass::Fprop, threads)
}

/// `y = (conv(x, w) + bias + per_image + residual) * scale`; `packed` was packed for [`Pass::Fprop`].
pub fn fprop(
    shape: &ConvShape,
    x: &[f32],
    packed: &PackedConv,
    epilogue: &Epilogue,
    y: &mut [f32],
    workspace: &mut [f32],
) {
    assert_eq!(x.len(), shape.x_len(), "fprop: x does not fit {shape:?}");
    assert_eq!(y.len(), shape.y_len(), "fprop: y does not fit {shape:?}");
    run_pass(Job { shape, pass: Pass::Fprop, input: x, epilogue, output: y, workspace }, packed);
}

/// Floats of workspace [`dgrad`] needs in a pool of at most `threads` threads.
pub fn dgrad_workspace(shape: &ConvShape, threads: usize) -> usize {
    pass_workspace(algorithm(shape), shape, Pass::Dgrad, threads)
}

/// The gradient of x: `dx = conv^T(dy, w) + residual`.
///
/// `packed` was packed for [`Pass::Dgrad`].
pub fn dgrad(
    shape: &ConvShape,
    dy: &[f32],
    packed: &PackedConv,
    residual: Option<&[f32]>,
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    assert_eq!(dy.len(), shape.y_len(), "dgrad: dy does not fit {shape:?}");
    assert_eq!(dx.len(), shape.x_len(), "dgrad: dx does not fit {shape:?}");
    let (pass, epilogue) = (Pass::Dgrad, &Epilogue { residual, ..Epilogue::NONE });
    run_pass(Job { shape, pass, input: dy, epilogue, output: dx, workspace }, packed);
}

/// Floats of workspace [`wgrad`] needs in a pool of at most `threads` threads.
pub fn wgrad_workspace(shape: &ConvShape, threads: usize) -> usize {
    wgrad_workspace_for(algorithm(shape), shape, threads)
}

fn wgrad_workspace_for(algorithm: Algorithm, shape: &ConvShape, threads: usize) -> usize {
    match algorithm {
        Algorithm::Gemm | Algorithm::Direct => wgrad::workspace(shape, threads),
        Algorithm::Winograd2 => winograd::wgrad::workspace::<4, 2>(shape),
        Algorithm::Winograd4 => winograd::wgrad::workspace::<6, 4>(shape),
    }
}

/// The gradients of the weights (`K x R x S x C`) and of the bias, summed over the batch.
pub fn wgrad(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], db: Option<&mut [f32]>, workspace: &mut [f32]) {
    wgrad_with(algorithm(shape), shape, x, dy, dw, db, workspace);
}

fn wgrad_with(
    algorithm: Algorithm,
    shape: &ConvShape,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
    workspace: &mut [f32],
) {
    shape.assert_valid();
    assert_eq!(x.len(), shape.x_len(), "wgrad: x does not fit {shape:?}");
    assert_eq!(dy.len(), shape.y_len(), "wgrad: dy does not fit {shape:?}");
    assert_eq!(dw.len(), shape.weight_len(), "wgrad: dw does not fit {shape:?}");
    let need = wgrad_workspace_for(algorithm, shape, rayon::current_num_threads());
    assert!(workspace.len() >= need, "wgrad: workspace of {} floats, needs {need}", workspace.len());
    match algorithm {
        _ if dy.is_empty() => dw.fill(0.0),
        Algorithm::Gemm | Algorithm::Direct => wgrad::run(shape, x, dy, dw, workspace),
        Algorithm::Winograd2 => winograd::wgrad::run::<F2, 4, 2>(shape, x, dy, dw, workspace),
        Algorithm::Winograd4 => winograd::wgrad::run::<F4, 6, 4>(shape, x, dy, dw, workspace),
    }
    if let Some(db) = db {
        assert_eq!(db.len(), shape.k, "wgrad: db does not fit {shape:?}");
        wgrad::bias(shape, dy, db);
    }
}

#[cfg(test)]
mod tests;
