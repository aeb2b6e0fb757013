//! Embeddings of timesteps and of class labels.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::op::TimeEmbedding;
use crate::graph::{Node, Op};

const BLOCK: usize = 256;
/// Blocks in the second direction of a grid, at most.
const MAX_GRID_Y: usize = 65_535;

/// `struct TimeArgs` of `kernels/embedding/time.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TimeArgs {
    t: DevicePtr,
    frequencies: DevicePtr,
    y: DevicePtr,
    images: u32,
    half: u32,
    dim: u32,
    cosine_first: u32,
}

/// `struct TableArgs` of `kernels/embedding/table.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TableArgs {
    rows: DevicePtr,
    index: DevicePtr,
    y: DevicePtr,
    count: u32,
    width: u32,
}

/// `struct IndexArgs` of `kernels/embedding/table.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct IndexArgs {
    t: DevicePtr,
    index: DevicePtr,
    count: u32,
    rows: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::TimeEmbedding(e) => {
            let frequencies = ctx.constant(&turns(e));
            time(ctx, node, "time_embedding", frequencies, e.dim / 2, e.flip_sin_to_cos);
        }
        Op::FourierEmbedding => {
            let w = node.inputs[1];
            time(ctx, node, "fourier_embedding", ctx.param_f32(w), ctx.shape(w).numel(), false);
        }
        Op::TimestepIndex { count } => {
            let t = ctx.shape(node.inputs[0]).numel();
            let args = IndexArgs {
                t: ctx.ptr(node.inputs[0]),
                index: ctx.ptr(node.outputs[0]),
                count: t as u32,
                rows: *count as u32,
            };
            ctx.launch("timestep_index", [t.div_ceil(BLOCK) as u32, 1, 1], BLOCK as u32, 0, &args);
        }
        Op::Embedding => {
            let y = ctx.shape(node.outputs[0]);
            let grid = [y.channels().div_ceil(BLOCK) as u32, y.batch().min(MAX_GRID_Y) as u32, 1];
            table(ctx, node, "embedding", y.batch(), y.channels(), grid);
        }
        Op::EmbeddingGrad { vocabulary } => {
            let dy = ctx.shape(node.inputs[0]);
            let grid = [*vocabulary as u32, dy.channels().div_ceil(BLOCK) as u32, 1];
            table(ctx, node, "embedding_grad", dy.batch(), dy.channels(), grid);
        }
        op => return Err(super::missing(op)),
    }
    Ok(())
}

/// Turns per unit of time, `scale exp(-ln(10000) i / (half - shift)) / (2 pi)`.
fn turns(e: &TimeEmbedding) -> Vec<f64> {
    let half = e.dim / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / (half as f64 - e.freq_shift)).exp();
    (0..half).map(|i| e.scale * frequency(i) / std::f64::consts::TAU).collect()
}

fn time(ctx: &mut Lowering, node: &Node, name: &str, frequencies: DevicePtr, half: usize, cosine_first: bool) {
    let y = ctx.shape(node.outputs[0]);
    let args = TimeArgs {
        t: ctx.ptr(node.inputs[0]),
        frequencies,
        y: ctx.ptr(node.outputs[0]),
        images: y.batch() as u32,
        half: half as u32,
        dim: y.channels() as u32,
        cosine_first: u32::from(cosine_first),
    };
    let grid = [(y.batch() * half).div_ceil(BLOCK) as u32, 1, 1];
    ctx.launch(&format!("{name}_{}", ctx.dtype()), grid, BLOCK as u32, 0, &args);
}

/// Rows in, result out: table and y, or dy and its table's gradient.
fn table(ctx: &mut Lowering, node: &Node, name: &str, count: usize, width: usize, grid: [u32; 3]) {
    let args = TableArgs {
        rows: ctx.ptr(node.inputs[0]),
        index: ctx.ptr(node.inputs[1]),
        y: ctx.ptr(node.outputs[0]),
        count: count as u32,
        width: width as u32,
    };
    ctx.launch(&format!("{name}_{}", ctx.dtype()), grid, BLOCK as u32, 0, &args);
}
