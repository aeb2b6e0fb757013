//! Self-attention and its gradient: `kernels/attention/`.
//!
//! A row's arithmetic depends on its own image, the head size and the number of tokens, never on how many rows share a
//! block. So the number of warps of a bf16 block may follow the batch and the device, and results stay the same bits.
//!
//! On Hopper, heads that its kernels take go to [`hopper`]; which ones is a function of the head and the device alone.

mod hopper;

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::Precision;
use crate::backend::gpu::driver::{DeviceLimits, DevicePtr};
use crate::graph::{Node, Op, ValueId};

/// `struct AttentionArgs` of `kernels/attention/problem.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionArgs {
    qkv: DevicePtr,
    out: DevicePtr,
    lse: DevicePtr,
    tokens: u32,
    heads: u32,
    head_size: u32,
    scale: f32,
}

/// `struct AttentionGradArgs` of `kernels/attention/problem.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionGradArgs {
    dout: DevicePtr,
    qkv: DevicePtr,
    lse: DevicePtr,
    delta: DevicePtr,
    dqkv: DevicePtr,
    tokens: u32,
    heads: u32,
    head_size: u32,
    scale: f32,
}

/// What decides the launches of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Problem {
    images: u32,
    tokens: u32,
    heads: u32,
    head_size: u32,
}

impl Problem {
    fn scale(&self) -> f32 {
        (1.0 / f64::from(self.head_size).sqrt()) as f32
    }
}

/// Grid, threads and dynamic shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Geometry {
    grid: [u32; 3],
    threads: u32,
    shared: u32,
}

/// The tiles of a bf16 kernel; see `weighted_sum_bf16.cuh` and `gradient_bf16.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tiles {
    /// Blocks that share the columns of a result.
    splits: u32,
    /// Bytes of shared memory for each row of a block.
    row_bytes: u32,
    /// Bytes of shared memory for the columns of a step.
    column_bytes: u32,
}

/// The smallest of `sizes` that a head fits into.
fn head_class(head_size: u32, sizes: &[u32]) -> Result<u32, BackendError> {
    sizes.iter().copied().find(|&size| head_size <= size).ok_or_else(|| BackendError::Device {
        device: "gpu".into(),
        reason: format!("attention heads of {head_size} channels have no kernel (at most 512); take more heads"),
    })
}

/// Tiles of `softmax(Q K^T) V` and of `dV = P^T dO`: rows and columns of the whole head, values of at most 256 columns.
fn weighted_sum_tiles(class: u32) -> Tiles {
    let step = if class <= 128 { 64 } else { 32 };
    Tiles { splits: class.div_ceil(256), row_bytes: 2 * class, column_bytes: 2 * step * (class + class.min(256)) }
}

/// Tiles of delta, dQ and dK: two operands of rows and two of columns. delta has no columns to share.
fn gradient_tiles(class: u32, sums: bool) -> Tiles {
    let step = match class {
        0..=64 => 64,
        65..=256 => 32,
        _ => 16,
    };
    let splits = if sums { class.div_ceil(256) } else { 1 };
    Tiles { splits, row_bytes: 4 * class, column_bytes: 4 * class * step }
}

/// A bf16 block has 4 warps of 16 rows, which read keys and values from L2 least often. It has 2 where 4 would leave
/// multiprocessors idle, or do not fit: then 64 rows of two operands of 512 take 160 KB. With one warp a block would take
/// as long as with two, for it waits for the same keys and values; it has one only where there are no more rows.
fn bf16_geometry(problem: &Problem, tiles: &Tiles, limits: &DeviceLimits) -> Geometry {
    let shared = |warps: u32| 16 * warps * tiles.row_bytes + tiles.column_bytes;
    let blocks = |warps: u32| problem.tokens.div_ceil(16 * warps);
    let others = problem.heads * tiles.splits * problem.images;
    let fills = |warps: u32| blocks(warps) * others >= limits.multiprocessors && shared(warps) <= limits.shared_bytes;
    let most = problem.tokens.div_ceil(16).next_power_of_two();
    let warps = if fills(4) { 4 } else { 2 }.min(most);
    Geometry {
        grid: [blocks(warps), problem.heads * tiles.splits, problem.images],
        threads: 32 * warps,
        shared: shared(warps),
    }
}

/// 64 rows and 256 threads: two operands of 32 channels, the weights, and 16 rows of values; see `tile_f32.cuh`.
fn f32_geometry(problem: &Problem, class: u32) -> Geometry {
    let (depth, pitch, tile, values) = (32, 68, 64, 16);
    Geometry {
        grid: [problem.tokens.div_ceil(tile), problem.heads, problem.images],
        threads: 256,
        shared: 4 * (2 * depth * pitch + tile * pitch + values * class),
    }
}

/// Head sizes of the f32 kernels: columns up to the class are computed, those of smaller heads on zeros.
const F32_CLASSES: [u32; 3] = [64, 256, 512];
/// Head sizes of the bf16 kernels.
const BF16_CLASSES: [u32; 5] = [32, 64, 128, 256, 512];

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::AttentionGrad { heads } => gradient(ctx, node, heads),
        Op::Attention { heads } => forward(ctx, node, heads),
        _ => Ok(()),
    }
}

fn problem(ctx: &Lowering, qkv: ValueId, heads: usize) -> Problem {
    let shape = ctx.shape(qkv);
    Problem {
        images: shape.batch() as u32,
        tokens: shape.pixels() as u32,
        heads: heads as u32,
        head_size: (shape.channels() / 3 / heads) as u32,
    }
}

fn launch<A: Pod>(ctx: &mut Lowering, kernel: &str, geometry: &Geometry, args: &A) {
    ctx.launch(kernel, geometry.grid, geometry.threads, geometry.shared, args);
}

fn forward(ctx: &mut Lowering, node: &Node, heads: usize) -> Result<(), BackendError> {
    let problem = problem(ctx, node.inputs[0], heads);
    let (qkv, out, lse) = (ctx.ptr(node.inputs[0]), ctx.ptr(node.outputs[0]), ctx.ptr(node.outputs[1]));
    if let Ok(class) = hopper::takes(&problem, ctx.precision(), ctx.limits()) {
        return hopper::forward(ctx, &problem, class, (qkv, out, lse));
    }
    let args = AttentionArgs {
        qkv,
        out,
        lse,
        tokens: problem.tokens,
        heads: problem.heads,
        head_size: problem.head_size,
        scale: problem.scale(),
    };
    if ctx.precision() == Precision::F32 {
        let class = head_class(problem.head_size, &F32_CLASSES)?;
        launch(ctx, &format!("attention_forward_d{class}_f32"), &f32_geometry(&problem, class), &args);
    } else {
        let class = head_class(problem.head_size, &BF16_CLASSES)?;
        let geometry = bf16_geometry(&problem, &weighted_sum_tiles(class), ctx.limits());
        launch(ctx, &format!("attention_forward_d{class}_bf16"), &geometry, &args);
    }
    Ok(())
}

fn gradient(ctx: &mut Lowering, node: &Node, heads: usize) -> Result<(), BackendError> {
    let problem = problem(ctx, node.inputs[1], heads);
    let rows = (problem.images * problem.heads) as usize * problem.tokens as usize;
    let at = hopper::GradientPointers {
        dout: ctx.ptr(node.inputs[0]),
        qkv: ctx.ptr(node.inputs[1]),
        lse: ctx.ptr(node.inputs[3]),
        delta: ctx.scratch(rows * size_of::<f32>()),
        dqkv: ctx.ptr(node.outputs[0]),
    };
    if let Ok(class) = hopper::takes(&problem, ctx.precision(), ctx.limits()) {
        return hopper::gradient(ctx, &problem, class, &at);
    }
    let args = AttentionGradArgs {
        dout: at.dout,
        qkv: at.qkv,
        lse: at.lse,
        delta: at.delta,
        dqkv: at.dqkv,
        tokens: problem.tokens,
        heads: problem.heads,
        head_size: problem.head_size,
        scale: problem.scale(),
    };
    if ctx.precision() == Precision::F32 {
        let class = head_class(problem.head_size, &F32_CLASSES)?;
        let geometry = f32_geometry(&problem, class);
        launch(ctx, "attention_delta_f32", &geometry, &args);
        for result in ["dq", "dk", "dv"] {
            launch(ctx, &format!("attention_{result}_d{class}_f32"), &geometry, &args);
        }
        return Ok(());
    }
    let class = head_class(problem.head_size, &BF16_CLASSES)?;
    let steps = [
        ("delta", gradient_tiles(class, false)),
        ("dq", gradient_tiles(class, true)),
        ("dk", gradient_tiles(class, true)),
        ("dv", weighted_sum_tiles(class)),
    ];
    for (result, tiles) in steps {
        let geometry = bf16_geometry(&problem, &tiles, ctx.limits());
        launch(ctx, &format!("attention_{result}_d{class}_bf16"), &geometry, &args);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The multiprocessors and shared memory of an H100, an A100 and a GeForce card.
    const DEVICES: [(u32, u32); 3] = [(132, 227 << 10), (108, 163 << 10), (84, 99 << 10)];

    fn limits((multiprocessors, shared_bytes): (u32, u32)) -> DeviceLimits {
        DeviceLimits {
            name: "test".into(),
            compute_capability: (8, 0),
            multiprocessors,
            shared_bytes,
            memory_bytes: 1 << 30,
            shifted_operands: false,
        }
    }

    #[test]
    fn every_head_size_fits_into_every_device() {
        for device in DEVICES {
            for head_size in 1..=512 {
                let class = head_class(head_size, &BF16_CLASSES).unwrap();
                for images in [1, 256] {
                    let problem = Problem { images, tokens: 256, heads: 1, head_size };
                    for tiles in [weighted_sum_tiles(class), gradient_tiles(class, false), gradient_tiles(class, true)]
                    {
                        let g = bf16_geometry(&problem, &tiles, &limits(device));
                        assert!(g.shared <= device.1, "{head_size} on {device:?}: {g:?}");
                        assert!(g.grid[0] * (g.threads / 2) >= 256);
                    }
                }
                let class = head_class(head_size, &F32_CLASSES).unwrap();
                let problem = Problem { images: 1, tokens: 256, heads: 1, head_size };
                assert!(f32_geometry(&problem, class).shared <= 99 << 10);
            }
        }
        assert!(head_class(513, &BF16_CLASSES).unwrap_err().to_string().contains("513"));
    }

    #[test]
    fn few_images_take_smaller_blocks() {
        let h100 = limits(DEVICES[0]);
        let geometry = |images, tokens| {
            let problem = Problem { images, tokens, heads: 1, head_size: 256 };
            bf16_geometry(&problem, &weighted_sum_tiles(256), &h100)
        };
        assert_eq!(geometry(1, 256), Geometry { grid: [8, 1, 1], threads: 64, shared: 48 << 10 });
        assert_eq!(geometry(128, 256), Geometry { grid: [4, 1, 128], threads: 128, shared: 64 << 10 });
        assert_eq!(geometry(1, 16).threads, 32);
    }
}
