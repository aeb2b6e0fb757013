//! Forward noising and the training loss.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::diffusion::{TrainingObjective, VarianceType};
use crate::graph::op::Noising;
use crate::graph::{LossNoise, Node, Op, Shape};

/// Threads of a block of noising.cu and sampler.cu: small blocks, so that a batch of small images fills the device evenly.
pub(super) const BLOCK: u32 = 128;
/// `THREADS` of loss.cu.
const LOSS_BLOCK: u32 = 256;
/// Quads of a chunk of the loss. A CIFAR image is one chunk; larger ones get more blocks and a second launch.
const LOSS_CHUNK: u32 = 1024;
/// Examples of a block of the loss's second launch.
const TOTAL_BLOCK: u32 = 128;

/// A batch of images as kernels cut it: by quads of four elements, which share a Philox call.
#[derive(Clone, Copy)]
pub(super) struct Images {
    /// Images of the batch.
    pub count: u32,
    /// Elements of one.
    pub elements: u32,
    /// Channels of one.
    pub channels: u32,
    /// Quads of one, the last one perhaps not whole.
    pub quads: u32,
    /// Whether all quads are whole, and so aligned to 16 bytes.
    pub whole: u32,
}

impl Images {
    pub fn new(shape: Shape) -> Result<Self, BackendError> {
        let elements = shape.numel() / shape.batch();
        // Kernels count the elements of an image, and the blocks of a grid, in 32 bits.
        if shape.numel() > i32::MAX as usize {
            let reason = format!("a batch of images {shape} has more than {} elements; take a smaller one", i32::MAX);
            return Err(BackendError::Device { device: "gpu".into(), reason });
        }
        Ok(Self {
            count: shape.batch() as u32,
            elements: elements as u32,
            channels: shape.channels() as u32,
            quads: elements.div_ceil(4) as u32,
            whole: u32::from(elements.is_multiple_of(4)),
        })
    }

    /// Blocks for one image at a quad a thread: they depend on the image alone, so its results do not on its batch.
    pub fn blocks(&self) -> u32 {
        self.quads.div_ceil(BLOCK)
    }
}

/// `struct NoisingArgs` of `kernels/diffusion/noising.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NoisingArgs {
    x0: DevicePtr,
    example_index: DevicePtr,
    key: DevicePtr,
    rows: DevicePtr,
    x_t: DevicePtr,
    t: DevicePtr,
    eps: DevicePtr,
    timesteps: u32,
    image_elements: u32,
    blocks_per_image: u32,
    whole: u32,
}

/// `struct LossArgs` of `kernels/diffusion/loss.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LossArgs {
    out: DevicePtr,
    x0: DevicePtr,
    x_t: DevicePtr,
    eps: DevicePtr,
    example_index: DevicePtr,
    key: DevicePtr,
    t: DevicePtr,
    rows: DevicePtr,
    losses: DevicePtr,
    partial: DevicePtr,
    dout: DevicePtr,
    vb_weight: f64,
    half_width: f64,
    edge: f64,
    batch: u32,
    timesteps: u32,
    image_elements: u32,
    channels: u32,
    chunks: u32,
    chunk_quads: u32,
    variance: u32,
    bound_trains_mean: u32,
    whole: u32,
    unused: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::DiffusionLoss { objective, noise } => loss(ctx, node, objective, *noise),
        Op::Noising(n) => noising(ctx, node, n),
        op => unreachable!("{} is no operation of the forward process", op.name()),
    }
}

fn noising(ctx: &mut Lowering, node: &Node, n: &Noising) -> Result<(), BackendError> {
    let images = Images::new(ctx.shape(node.inputs[0]))?;
    let rows: Vec<[f32; 2]> = n.rows.iter().map(|&(signal, noise)| [signal as f32, noise as f32]).collect();
    let args = NoisingArgs {
        x0: ctx.ptr(node.inputs[0]),
        example_index: ctx.ptr(node.inputs[1]),
        key: ctx.ptr(node.inputs[2]),
        rows: ctx.constant(&rows),
        x_t: ctx.ptr(node.outputs[0]),
        t: ctx.ptr(node.outputs[1]),
        eps: ctx.optional_ptr(&node.outputs, 2),
        timesteps: rows.len() as u32,
        image_elements: images.elements,
        blocks_per_image: images.blocks(),
        whole: images.whole,
    };
    let kernel = format!("noising_{}", ctx.dtype());
    ctx.launch(&kernel, [images.count * images.blocks(), 1, 1], BLOCK, 0, &args);
    Ok(())
}

fn loss(ctx: &mut Lowering, node: &Node, o: &TrainingObjective, noise: LossNoise) -> Result<(), BackendError> {
    let images = Images::new(ctx.shape(node.inputs[1]))?;
    let chunks = images.quads.div_ceil(LOSS_CHUNK);
    let rows: Vec<[f64; 12]> = (0..o.schedule().num_timesteps()).map(|t| loss_row(o, t)).collect();
    let given = noise == LossNoise::Given;
    let operand = |i: usize, is_given: bool| if is_given == given { ctx.ptr(node.inputs[i]) } else { DevicePtr::NULL };
    let args = LossArgs {
        out: ctx.ptr(node.inputs[0]),
        x0: ctx.ptr(node.inputs[1]),
        x_t: operand(2, true),
        eps: operand(3, true),
        example_index: operand(2, false),
        key: operand(3, false),
        t: ctx.ptr(node.inputs[4]),
        rows: ctx.constant(&rows),
        losses: ctx.ptr(node.outputs[0]),
        partial: if chunks > 1 { ctx.scratch(16 * (images.count * chunks) as usize) } else { DevicePtr::NULL },
        dout: ctx.ptr(node.outputs[1]),
        vb_weight: o.bound_weight(),
        half_width: o.bins().half_width(),
        edge: o.bins().edge(),
        batch: images.count,
        timesteps: rows.len() as u32,
        image_elements: images.elements,
        channels: images.channels,
        chunks,
        chunk_quads: LOSS_CHUNK,
        variance: variance(o.variance_type()),
        bound_trains_mean: u32::from(o.bound_trains_mean()),
        whole: images.whole,
        unused: 0,
    };
    let terms = if o.bound_weight() == 0.0 { "simple" } else { "bound" };
    let source = if given { "" } else { "_redrawn" };
    let kernel = format!("loss_{terms}{source}_{}", ctx.dtype());
    ctx.launch(&kernel, [images.count * chunks, 1, 1], LOSS_BLOCK, 0, &args);
    if chunks > 1 {
        ctx.launch("loss_total", [images.count.div_ceil(TOTAL_BLOCK), 1, 1], TOTAL_BLOCK, 0, &args);
    }
    Ok(())
}

/// `enum class Variance` of `kernels/diffusion/variance.cuh`.
fn variance(kind: VarianceType) -> u32 {
    match kind {
        VarianceType::Learned => 1,
        VarianceType::LearnedRange => 2,
        _ => 0,
    }
}

/// `struct LossRow` of `kernels/diffusion/loss.cu`; the last number is 0 where the objective refuses the timestep.
fn loss_row(o: &TrainingObjective, t: usize) -> [f64; 12] {
    o.scalars(t).map_or([0.0; 12], |s| {
        [
            s.forward.first,
            s.forward.second,
            s.target.first,
            s.target.second,
            s.x0.first,
            s.x0.second,
            s.mean_x0,
            s.posterior_log_variance,
            s.log_min,
            s.log_max,
            s.mse_weight,
            1.0,
        ]
    })
}
