//! Operations that map elements one by one.

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
    let (name, mul, add) = match node.op {
        Op::Silu => ("silu", 1.0, 0.0),
        Op::SiluGrad => ("silu_grad", 1.0, 0.0),
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

/// Converts an f32 value to the type of the activations, in the node's workspace.
pub(super) fn to_act(ctx: &mut Lowering, v: ValueId) -> DevicePtr {
    let count = ctx.shape(v).numel();
    let y = ctx.scratch(ctx.act_bytes() * count);
    let args = MapArgs { a: ctx.ptr(v), b: DevicePtr::NULL, y, count: count as u64, mul: 1.0, add: 0.0 };
    launch(ctx, "to_act", &args);
    y
}

/// One 16-byte result a thread, and no more blocks than keep the device busy: the kernels stride over the rest.
fn launch(ctx: &mut Lowering, name: &str, args: &MapArgs) {
    let vector = 16 / ctx.act_bytes();
    let blocks = (args.count as usize).div_ceil(vector * BLOCK as usize);
    let busy = 16 * ctx.limits().multiprocessors as usize;
    let kernel = format!("{name}_{}", ctx.dtype());
    ctx.launch(&kernel, [blocks.clamp(1, busy) as u32, 1, 1], BLOCK, 0, args);
}
