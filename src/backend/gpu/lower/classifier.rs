//! The head of a classifier: tokens of a pool, and the log-probability of a class.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::{Node, Op};

const BLOCK: u32 = 256;

/// `struct TokenArgs` of `kernels/classifier/tokens.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TokenArgs {
    x: DevicePtr,
    positions: DevicePtr,
    y: DevicePtr,
    images: u32,
    tokens: u32,
    channels: u32,
    padding: u32,
}

/// `struct LogProbabilityArgs` of `kernels/classifier/log_probability.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LogProbabilityArgs {
    logits: DevicePtr,
    label: DevicePtr,
    log_p: DevicePtr,
    dlogits: DevicePtr,
    classes: u32,
    padding: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    let (x, y) = (ctx.shape(node.inputs[0]), ctx.shape(node.outputs[0]));
    let tokens = match node.op {
        Op::PoolTokens | Op::FirstTokenGrad { .. } => y.pixels(),
        Op::PoolTokensGrad { .. } | Op::FirstToken => x.pixels(),
        // As if a token were before the pixels.
        Op::SpreadPixels { .. } => y.pixels() + 1,
        Op::LogProbability => {
            log_probability(ctx, node);
            return Ok(());
        }
        ref op => return Err(super::missing(op)),
    };
    let args = TokenArgs {
        x: ctx.ptr(node.inputs[0]),
        positions: match node.inputs.get(1) {
            Some(&positions) => ctx.param_f32(positions),
            None => DevicePtr::NULL,
        },
        y: ctx.ptr(node.outputs[0]),
        images: x.batch() as u32,
        tokens: tokens as u32,
        channels: x.channels() as u32,
        padding: 0,
    };
    let blocks = (args.images * args.channels).div_ceil(BLOCK);
    ctx.launch(&format!("{}_{}", node.op.name(), ctx.dtype()), [blocks, 1, 1], BLOCK, 0, &args);
    Ok(())
}

fn log_probability(ctx: &mut Lowering, node: &Node) {
    let logits = ctx.shape(node.inputs[0]);
    let args = LogProbabilityArgs {
        logits: ctx.ptr(node.inputs[0]),
        label: ctx.ptr(node.inputs[1]),
        log_p: ctx.ptr(node.outputs[0]),
        dlogits: ctx.ptr(node.outputs[1]),
        classes: logits.channels() as u32,
        padding: 0,
    };
    ctx.launch(&format!("log_probability_{}", ctx.dtype()), [logits.batch() as u32, 1, 1], 32, 0, &args);
}
