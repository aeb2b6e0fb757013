//! Operations that map elements one by one, and the largest magnitude of all.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::{Node, Op, ValueId};

const BLOCK: u32 = 256;

/// `struct MapArgs` of `kernels/elementwise/map.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MapArgs {
    a: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    count: u64,
    mul: f32,
    add: f32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    if matches!(node.op, Op::AbsMax) {
        abs_max(ctx, node);
        return Ok(());
    }
    if let Op::Constant { len, value } = node.op {
        constant(ctx, node, len, value);
        return Ok(());
    }
    let (name, mul, add) = match node.op {
        Op::Activation(f) => (f.name(), 1.0, 0.0),
        Op::ActivationGrad(f) => (f.gradient_name(), 1.0, 0.0),
        Op::Add => ("add", 1.0, 0.0),
        Op::Affine { mul, add } => ("affine", mul as f32, add as f32),
        Op::ToAct => ("to_act", 1.0, 0.0),
        Op::RepeatBatch => ("repeat_batch", 1.0, 0.0),
        ref op => return Err(super::missing(op)),
    };
    let args = MapArgs {
        a: ctx.ptr(node.inputs[0]),
        b: ctx.optional_ptr(&node.inputs, 1),
        y: ctx.ptr(node.outputs[0]),
        count: ctx.shape(node.inputs[0]).numel() as u64,
        mul,
        add,
    };
    launch(ctx, name, &args);
    Ok(())
}

/// Numbers of parameters, so f32 whatever the activations are.
fn constant(ctx: &mut Lowering, node: &Node, len: usize, value: f64) {
    let (a, b) = (DevicePtr::NULL, DevicePtr::NULL);
    let args = MapArgs { a, b, y: ctx.ptr(node.outputs[0]), count: len as u64, mul: 0.0, add: value as f32 };
    ctx.launch("constant_f32", [blocks(ctx, len), 1, 1], BLOCK, 0, &args);
}

/// Converts an f32 value to the type of the activations, in the node's workspace.
pub(super) fn to_act(ctx: &mut Lowering, v: ValueId) -> DevicePtr {
    let count = ctx.shape(v).numel();
    let y = ctx.scratch(ctx.act_bytes() * count);
    let args = MapArgs { a: ctx.ptr(v), b: DevicePtr::NULL, y, count: count as u64, mul: 1.0, add: 0.0 };
    launch(ctx, "to_act", &args);
    y
}

/// `struct AbsMaxArgs` of `kernels/elementwise/abs_max.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AbsMaxArgs {
    x: DevicePtr,
    y: DevicePtr,
    partials: DevicePtr,
    count: u64,
    blocks: u32,
    padding: u32,
}

fn abs_max(ctx: &mut Lowering, node: &Node) {
    let count = ctx.shape(node.inputs[0]).numel();
    let blocks = blocks(ctx, count);
    let args = AbsMaxArgs {
        x: ctx.ptr(node.inputs[0]),
        y: ctx.ptr(node.outputs[0]),
        partials: ctx.scratch(4 * blocks as usize),
        count: count as u64,
        blocks,
        padding: 0,
    };
    let kernel = format!("abs_max_{}", ctx.dtype());
    ctx.launch(&kernel, [blocks, 1, 1], BLOCK, 0, &args);
    ctx.launch("abs_max_finish_f32", [1, 1, 1], BLOCK, 0, &args);
}

/// One 16-byte vector a thread, and no more blocks than keep the device busy: the kernels stride over the rest.
fn blocks(ctx: &Lowering, count: usize) -> u32 {
    let vector = 16 / ctx.act_bytes();
    let busy = 16 * ctx.limits().multiprocessors as usize;
    count.div_ceil(vector * BLOCK as usize).clamp(1, busy) as u32
}

fn launch(ctx: &mut Lowering, name: &str, args: &MapArgs) {
    let kernel = format!("{name}_{}", ctx.dtype());
    ctx.launch(&kernel, [blocks(ctx, args.count as usize), 1, 1], BLOCK, 0, args);
}
