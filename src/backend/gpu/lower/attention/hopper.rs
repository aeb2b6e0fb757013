//! The attention kernels of Hopper, `kernels/attention/*_sm90.cuh`: which problems they take, and their launches.

use bytemuck::{Pod, Zeroable};

use super::Problem;
use crate::backend::gpu::driver::{DeviceLimits, DevicePtr, Swizzle, TensorMap, TensorMapSpec};
use crate::backend::gpu::lower::Lowering;
use crate::backend::{BackendError, Precision};

/// Head sizes of the kernels: sums and products go up to the class.
const CLASSES: [u32; 3] = [64, 128, 256];
/// Tokens and channels of a copy, and rows of a consumer warpgroup.
const BOX: u32 = 64;
const WARPGROUP: u32 = 128;

/// `struct HopperAttentionArgs` of `kernels/attention/forward_sm90.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ForwardArgs {
    qkv: TensorMap,
    out: TensorMap,
    lse: DevicePtr,
    tokens: i32,
    heads: i32,
    head_size: i32,
    row_blocks: i32,
    items: i32,
    scale: f32,
    padding: [u32; 8],
}

/// `struct HopperAttentionGradArgs` of `kernels/attention/gradient_sm90.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GradientArgs {
    qkv: TensorMap,
    dout: TensorMap,
    dqkv: TensorMap,
    lse: DevicePtr,
    delta: DevicePtr,
    tokens: i32,
    heads: i32,
    head_size: i32,
    row_blocks: i32,
    items: i32,
    scale: f32,
    padding: [u32; 6],
}

/// Tokens of a step and slots of the ring in a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ring {
    rows: u32,
    slots: u32,
}

/// Of the forward kernel.
fn forward_ring(class: u32) -> Ring {
    match class {
        0..=64 => Ring { rows: 128, slots: 6 },
        65..=128 => Ring { rows: 128, slots: 4 },
        _ => Ring { rows: 64, slots: 4 },
    }
}

/// Shared memory of a forward block: ring, queries and two buffers of the result for two consumers, barriers.
fn forward_shared(class: u32) -> u32 {
    let ring = forward_ring(class);
    let (tile, staging) = (BOX * class * 2, 2 * BOX * BOX * 2);
    ring.slots * ring.rows * class * 2 + 2 * (tile + staging) + 8 * (4 + 2 * ring.slots)
}

/// Shared memory of a block for dQ: ring of three tiles of 64 tokens, Q and dO for two consumers, barriers.
fn query_gradient_shared(class: u32) -> u32 {
    (3 + 4) * BOX * class * 2 + 8 * (4 + 2 * 3)
}

/// Shared memory of a block for dK and dV: ring of four tiles of 64 tokens, K and V, a buffer of each result, weights in f32,
/// barriers.
fn key_gradient_shared(class: u32) -> u32 {
    (4 + 2) * BOX * class * 2 + 2 * BOX * BOX * 2 + BOX * BOX * 4 + 8 * (6 + 2 * 4)
}

/// The class of the kernels that compute this attention, or why they do not. A function of a head alone.
pub(super) fn takes(problem: &Problem, precision: Precision, limits: &DeviceLimits) -> Result<u32, &'static str> {
    if precision != Precision::Bf16 {
        return Err("wgmma has no f32");
    }
    if limits.compute_capability.0 != 9 {
        return Err("wgmma exists on capability 9.x only");
    }
    if !problem.head_size.is_multiple_of(8) {
        return Err("heads do not begin at multiples of 16 bytes, as tensor maps want");
    }
    if problem.head_size <= BOX / 2 {
        return Err("more than half of a copy of 64 channels would be zeros");
    }
    let class = CLASSES.into_iter().find(|&class| problem.head_size <= class);
    let class =
        class.ok_or("sums of 64 rows of more than 256 channels do not fit into the registers of a warpgroup")?;
    let shared = [forward_shared(class), query_gradient_shared(class), key_gradient_shared(class)];
    if shared.iter().any(|&bytes| bytes > limits.shared_bytes) {
        return Err("a block needs more shared memory than the device has");
    }
    Ok(class)
}

/// Blocks, and consumer warpgroups of each.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    consumers: u32,
    row_blocks: u32,
    items: u32,
}

/// Two consumers share keys and values, and each hides the other's softmax: 9 units of time for twice the rows, by the counts
/// of cycles in the journal, where one takes 5. One is better where there are fewer items than multiprocessors. Bits are the
/// same.
fn divide(problem: &Problem, limits: &DeviceLimits) -> Work {
    let work = |consumers: u32| {
        let row_blocks = problem.tokens.div_ceil(BOX * consumers);
        Work { consumers, row_blocks, items: row_blocks * problem.heads * problem.images }
    };
    let time = |work: &Work| work.items.div_ceil(limits.multiprocessors) * if work.consumers == 2 { 9 } else { 5 };
    let (one, two) = (work(1), work(2));
    if time(&two) <= time(&one) { two } else { one }
}

/// `parts` heads side by side in every token of `at`, in copies of 64 tokens by 64 channels of one of them.
fn heads_view(at: DevicePtr, problem: &Problem, parts: u32) -> TensorMapSpec {
    let bytes = |channels: u32| u64::from(channels) * 2;
    let (head, token) = (bytes(problem.head_size), bytes(problem.head_size) * u64::from(parts));
    TensorMapSpec {
        base: at,
        element_bytes: 2,
        dims: [problem.head_size, parts, problem.tokens, problem.images].map(u64::from).to_vec(),
        strides: vec![head, token, token * u64::from(problem.tokens)],
        box_dims: vec![BOX, 1, BOX, 1],
        swizzle: Swizzle::Bytes128,
    }
}

/// Launches `out = softmax(scale q k^T) v` and its `lse`.
pub(super) fn forward(
    ctx: &mut Lowering,
    problem: &Problem,
    class: u32,
    (qkv, out, lse): (DevicePtr, DevicePtr, DevicePtr),
) -> Result<(), BackendError> {
    let work = divide(problem, ctx.limits());
    let args = ForwardArgs {
        qkv: ctx.tensor_map(&heads_view(qkv, problem, 3 * problem.heads))?,
        out: ctx.tensor_map(&heads_view(out, problem, problem.heads))?,
        lse,
        tokens: problem.tokens as i32,
        heads: problem.heads as i32,
        head_size: problem.head_size as i32,
        row_blocks: work.row_blocks as i32,
        items: work.items as i32,
        scale: problem.scale(),
        padding: [0; 8],
    };
    let grid = [work.items.min(ctx.limits().multiprocessors), 1, 1];
    let threads = WARPGROUP * (1 + work.consumers);
    ctx.launch(&format!("attention_hopper_forward_d{class}_bf16"), grid, threads, forward_shared(class), &args);
    Ok(())
}

/// What the gradient reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct GradientPointers {
    pub dout: DevicePtr,
    pub qkv: DevicePtr,
    pub lse: DevicePtr,
    /// Workspace: one f32 a row.
    pub delta: DevicePtr,
    pub dqkv: DevicePtr,
}

/// Launches delta and `dq`, then `dk` and `dv`.
pub(super) fn gradient(
    ctx: &mut Lowering,
    problem: &Problem,
    class: u32,
    at: &GradientPointers,
) -> Result<(), BackendError> {
    let multiprocessors = ctx.limits().multiprocessors;
    let work = divide(problem, ctx.limits());
    let queries = GradientArgs {
        qkv: ctx.tensor_map(&heads_view(at.qkv, problem, 3 * problem.heads))?,
        dout: ctx.tensor_map(&heads_view(at.dout, problem, problem.heads))?,
        dqkv: ctx.tensor_map(&heads_view(at.dqkv, problem, 3 * problem.heads))?,
        lse: at.lse,
        delta: at.delta,
        tokens: problem.tokens as i32,
        heads: problem.heads as i32,
        head_size: problem.head_size as i32,
        row_blocks: work.row_blocks as i32,
        items: work.items as i32,
        scale: problem.scale(),
        padding: [0; 6],
    };
    let threads = WARPGROUP * (1 + work.consumers);
    let shared = query_gradient_shared(class);
    let grid = [work.items.min(multiprocessors), 1, 1];
    ctx.launch(&format!("attention_hopper_dq_d{class}_bf16"), grid, threads, shared, &queries);

    let row_blocks = problem.tokens.div_ceil(BOX);
    let items = row_blocks * problem.heads * problem.images;
    let keys = GradientArgs { row_blocks: row_blocks as i32, items: items as i32, ..queries };
    let grid = [items.min(multiprocessors), 1, 1];
    let shared = key_gradient_shared(class);
    ctx.launch(&format!("attention_hopper_dkdv_d{class}_bf16"), grid, 3 * WARPGROUP, shared, &keys);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(compute_capability: (u32, u32)) -> DeviceLimits {
        DeviceLimits {
            name: "test".into(),
            compute_capability,
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            memory_bytes: 1 << 30,
            shifted_operands: false,
        }
    }

    fn heads_of(head_size: u32) -> Problem {
        Problem { images: 1, tokens: 256, heads: 2, head_size }
    }

    #[test]
    fn heads_go_to_the_smallest_class() {
        let h100 = limits((9, 0));
        let class = |head_size| takes(&heads_of(head_size), Precision::Bf16, &h100);
        let sizes = [40, 64, 72, 128, 136, 256];
        assert_eq!(sizes.map(|size| class(size).unwrap()), [64, 64, 128, 128, 256, 256]);
        assert!(class(60).unwrap_err().contains("16 bytes"));
        assert!(class(32).unwrap_err().contains("zeros"));
        assert!(class(264).unwrap_err().contains("registers"));
        assert!(takes(&heads_of(64), Precision::F32, &h100).unwrap_err().contains("f32"));
        for capability in [(8, 0), (10, 0), (12, 0)] {
            assert!(takes(&heads_of(64), Precision::Bf16, &limits(capability)).unwrap_err().contains("9.x"));
        }
        let small = DeviceLimits { shared_bytes: 99 << 10, ..h100 };
        assert!(takes(&heads_of(256), Precision::Bf16, &small).unwrap_err().contains("shared memory"));
    }

    #[test]
    fn second_consumers_come_with_the_work() {
        let h100 = limits((9, 0));
        let work = |images, tokens| divide(&Problem { images, tokens, heads: 1, head_size: 256 }, &h100);
        assert_eq!(work(1, 256), Work { consumers: 1, row_blocks: 4, items: 4 });
        assert_eq!(work(33, 256).consumers, 1);
        assert_eq!(work(64, 256), Work { consumers: 2, row_blocks: 2, items: 128 });
        assert_eq!(work(256, 256), Work { consumers: 2, row_blocks: 2, items: 512 });
        // 64 rows have nothing for a second one to do.
        assert_eq!(work(512, 64).consumers, 1);
    }
}
