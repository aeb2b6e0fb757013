//! The global norm of the gradients, and AdamW over all parameters.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::gpu::driver::DevicePtr;
use crate::backend::{BackendError, Store};
use crate::graph::plan::ALIGN;
use crate::graph::{AdamW, Node, Op, ParamId, Plan};

const BLOCK: u32 = 256;
/// Gradients that a block adds up: 64 a thread, about a thousand blocks for the CIFAR-10 U-Net. Fixed, so that the norm
/// does not depend on the device.
const NORM_CHUNK: u32 = 1 << 14;
/// Parameters that a thread updates: 16 bytes of f32.
const WIDTH: usize = 4;

/// `struct GlobalNormArgs` of `kernels/optim/global_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GlobalNormArgs {
    grads: DevicePtr,
    partial: DevicePtr,
    norm: DevicePtr,
    ticket: DevicePtr,
    count: u64,
    chunks: u32,
    chunk_values: u32,
}

/// `struct AdamWArgs` of `kernels/optim/adamw.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdamWArgs {
    params: DevicePtr,
    grads: DevicePtr,
    moment1: DevicePtr,
    moment2: DevicePtr,
    average: DevicePtr,
    copy: DevicePtr,
    norm: DevicePtr,
    hyper: DevicePtr,
    count: u64,
    max_grad_norm: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
    unused: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::AdamW(o) => adamw(ctx, node, o),
        _ => global_norm(ctx, node),
    }
    Ok(())
}

fn global_norm(ctx: &mut Lowering, node: &Node) {
    let (grads, bytes) = ctx.grads();
    let count = (bytes / size_of::<f32>()) as u64;
    let chunks = count.div_ceil(u64::from(NORM_CHUNK)) as u32;
    let args = GlobalNormArgs {
        grads,
        partial: ctx.scratch(size_of::<f64>() * chunks as usize),
        norm: ctx.ptr(node.outputs[0]),
        ticket: ctx.counters(1),
        count,
        chunks,
        chunk_values: NORM_CHUNK,
    };
    ctx.launch("global_norm", [chunks, 1, 1], BLOCK, 0, &args);
}

fn adamw(ctx: &mut Lowering, node: &Node, o: &AdamW) {
    for (start, len) in trained_runs(ctx.plan()) {
        let store = |s: Store| ctx.store(s).offset(start);
        let args = AdamWArgs {
            params: store(Store::Params),
            grads: ctx.grads().0.offset(start),
            moment1: store(Store::Moment1),
            moment2: store(Store::Moment2),
            average: store(Store::Ema),
            copy: ctx.mirror().map_or(DevicePtr::NULL, |m| m.offset(start / 2)),
            norm: ctx.ptr(node.inputs[0]),
            hyper: ctx.ptr(node.inputs[1]),
            count: (len / size_of::<f32>()) as u64,
            max_grad_norm: o.max_grad_norm as f32,
            beta1: o.beta1 as f32,
            one_minus_beta1: (1.0 - o.beta1) as f32,
            beta2: o.beta2 as f32,
            one_minus_beta2: (1.0 - o.beta2) as f32,
            eps: o.eps as f32,
            weight_decay: o.weight_decay as f32,
            unused: 0,
        };
        let threads = (len / size_of::<f32>()).div_ceil(WIDTH);
        ctx.launch("adamw", [threads.div_ceil(BLOCK as usize) as u32, 1, 1], BLOCK, 0, &args);
    }
}

/// Byte ranges `(start, length)` of neighbouring parameters that have gradients, the gaps behind them included: one
/// launch each, one in all where every parameter is trained.
fn trained_runs(plan: &Plan) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, place) in plan.param_places().iter().enumerate() {
        if plan.graph().grad(ParamId(i as u32)).is_none() {
            continue;
        }
        let len = place.len.next_multiple_of(ALIGN);
        match runs.last_mut() {
            Some((start, run)) if *start + *run == place.offset => *run += len,
            _ => runs.push((place.offset, len)),
        }
    }
    runs
}
