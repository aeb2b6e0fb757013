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
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    let count = ctx.shape(node.outputs[0]).numel();
    let args = MapArgs {
        a: ctx.ptr(node.inputs[0]),
        b: ctx.optional_ptr(&node.inputs, 1),
        y: ctx.ptr(node.outputs[0]),
        count: count as u64,
    };
    let name = match node.op {
        Op::Silu => "silu",
        Op::SiluGrad => "silu_grad",
        Op::Add => "add",
        _ => "to_act",
    };
    launch(ctx, name, &args);
    Ok(())
}

/// Converts an f32 value to the type of the activations, in the node's workspace.
pub(super) fn to_act(ctx: &mut Lowering, v: ValueId) -> DevicePtr {
    let count = ctx.shape(v).numel();
    let y = ctx.scratch(2 * count);
    launch(ctx, "to_act", &MapArgs { a: ctx.ptr(v), b: DevicePtr::NULL, y, count: count as u64 });
    y
}

/// Four elements a thread, and no more blocks than keep the device busy: the kernels stride over the rest.
fn launch(ctx: &mut Lowering, name: &str, args: &MapArgs) {
    let blocks = (args.count as usize).div_ceil(4 * BLOCK as usize);
    let busy = 16 * ctx.limits().multiprocessors as usize;
    let kernel = format!("{name}_{}", ctx.dtype());
    ctx.launch(&kernel, [blocks.clamp(1, busy) as u32, 1, 1], BLOCK, 0, args);
}
