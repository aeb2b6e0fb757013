//! Group normalisation: one kernel where a slice of an image fits on chip, else blocks of rows with partial sums.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::{GroupNorm, Node, Op, Shape};

/// Threads of a block, at most.
const BLOCK: usize = 256;
/// Warps of a full block.
const WARPS: usize = BLOCK / 32;
/// The narrowest slice of a row worth reading: a sector of the memory system, in bytes.
const SECTOR: usize = 32;
/// Bytes of activations that a fused block keeps. Three such blocks, with their sums, share a multiprocessor of an H200,
/// and one fits every GPU since Ampere.
const ON_CHIP: usize = 64 << 10;
/// Bytes of activations below which a block's fixed costs dominate: one 16-byte access a thread.
const WORTHWHILE: usize = 16 * BLOCK;
/// More chunks of rows than this fill any GPU with a single image; partial sums stay few.
const MAX_CHUNKS: usize = 256;
/// Accesses that a thread makes, at least, where rows are split.
const ROWS_PER_LANE: usize = 4;

/// `struct Affine` of `kernels/norm/affine.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Affine {
    gamma: DevicePtr,
    beta: DevicePtr,
    scale_shift: DevicePtr,
}

/// `struct NormArgs` of `kernels/norm/group_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormArgs {
    x: DevicePtr,
    affine: Affine,
    y: DevicePtr,
    statistics: DevicePtr,
    partials: DevicePtr,
    low: DevicePtr,
    inverse_count: f64,
    pixels: u32,
    channels: u32,
    groups: u32,
    slice: u32,
    slices: u32,
    chunk_rows: u32,
    chunks: u32,
    run: u32,
    silu: u32,
    eps: f32,
    images: u32,
    inverse_scale: f32,
}

/// `struct NormGradArgs` of `kernels/norm/group_norm_grad.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormGradArgs {
    dy: DevicePtr,
    x: DevicePtr,
    affine: Affine,
    statistics: DevicePtr,
    dx: DevicePtr,
    dgamma: DevicePtr,
    dbeta: DevicePtr,
    dscale_shift: DevicePtr,
    partials: DevicePtr,
    totals: DevicePtr,
    means: DevicePtr,
    images: u32,
    pixels: u32,
    channels: u32,
    groups: u32,
    slice: u32,
    slices: u32,
    chunk_rows: u32,
    chunks: u32,
    silu: u32,
    padding: u32,
}

/// How the image of a shape is cut into blocks. A function of one image alone, so that its result never depends on the
/// batch it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Channels of one access.
    vector: usize,
    /// Channels of one group.
    width: usize,
    /// Whether a block sees all pixels of its slice and keeps them.
    fused: bool,
    /// Channels of a block: whole groups and whole vectors.
    slice: usize,
    /// Blocks side by side.
    slices: usize,
    /// Pixels of a block.
    chunk_rows: usize,
    /// Blocks over the pixels.
    chunks: usize,
    /// Bytes of an activation.
    element: usize,
}

impl Cut {
    /// `tensors`: how many tensors of the shape a fused block keeps.
    fn new(shape: Shape, groups: usize, element: usize, tensors: usize) -> Self {
        let (pixels, channels) = (shape.pixels(), shape.channels());
        let width = channels / groups;
        let widest = 16 / element;
        let vector = if channels.is_multiple_of(widest) { widest } else { 1 };
        // Whole groups and whole vectors; it divides C, because both do.
        let unit = width * vector / gcd(width, vector);
        let pixel_bytes = |slice: usize| slice * element * tensors;
        let mut slice = (unit * SECTOR.div_ceil(unit * element)).min(channels);
        let fused = pixels * pixel_bytes(slice) <= ON_CHIP && slice / vector <= BLOCK;
        if fused {
            while pixels * pixel_bytes(slice) < WORTHWHILE && slice < channels && 2 * slice / vector <= BLOCK {
                slice = (2 * slice).min(channels);
            }
        } else {
            // Whole rows where a block's threads cover them: long contiguous reads.
            slice = (unit * (BLOCK * vector / unit).max(1)).min(channels);
        }
        let lanes = (BLOCK * vector / slice).max(1);
        let chunk_rows = if fused { pixels } else { (ROWS_PER_LANE * lanes).max(pixels.div_ceil(MAX_CHUNKS)) };
        Self {
            vector,
            width,
            fused,
            slice,
            slices: channels.div_ceil(slice),
            chunk_rows,
            chunks: pixels.div_ceil(chunk_rows),
            element,
        }
    }

    /// Columns of a full slice.
    fn columns(&self) -> usize {
        self.slice / self.vector
    }

    /// Threads of a block: no more than the slice has vectors.
    fn block(&self) -> usize {
        (self.columns() * self.chunk_rows).next_multiple_of(32).min(BLOCK)
    }

    fn grid(&self, images: usize) -> [u32; 3] {
        [(images * self.slices) as u32, self.chunks as u32, 1]
    }

    /// Channels of a run: the largest power of two that divides a vector and a group.
    fn run(&self) -> usize {
        gcd(self.vector, self.width)
    }

    fn slab(&self, tensors: usize) -> usize {
        (self.chunk_rows * self.slice * self.element * tensors).next_multiple_of(16)
    }

    /// Vectors that a block's threads hold at once: all threads' or, where there are more, the slice's.
    fn held(&self) -> usize {
        self.columns().max(self.block())
    }

    /// Shared memory of the moments of runs: see `Runs` of `kernels/norm/moments.cuh`.
    fn runs_bytes(&self) -> usize {
        (self.held() * self.vector / self.run() * 12).next_multiple_of(16)
    }

    /// Shared memory of sums per channel and lane: see `LaneSums` of `kernels/device/columns.cuh`.
    fn lane_sums_bytes(&self) -> usize {
        2 * 4 * self.vector * (self.held() + self.columns())
    }

    /// Name of a kernel that comes with and without vector accesses.
    fn kernel(&self, name: &str, dtype: &str) -> String {
        format!("{name}_{}{dtype}", if self.vector > 1 { "" } else { "scalar_" })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Blocks of kernels that give a warp to each of `n` things.
fn warps(n: usize) -> [u32; 3] {
    [n.div_ceil(WARPS) as u32, 1, 1]
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::GroupNorm(norm) => forward(ctx, node, norm),
        Op::GroupNormGrad(norm) => backward(ctx, node, norm),
        op => return Err(super::missing(op)),
    }
    Ok(())
}

fn forward(ctx: &mut Lowering, node: &Node, norm: &GroupNorm) {
    let (shape, dtype) = (ctx.shape(node.inputs[0]), ctx.dtype());
    let cut = Cut::new(shape, norm.groups, ctx.act_bytes(), 1);
    let images = shape.batch();
    let e4m3 = ctx.e4m3_scale(node.outputs[0]);
    let stored = if e4m3.is_some() { "e4m3" } else { dtype };
    let (partials, low) = if cut.fused {
        (DevicePtr::NULL, DevicePtr::NULL)
    } else {
        (ctx.scratch(images * cut.chunks * norm.groups * 16), ctx.scratch(images * norm.groups * 4))
    };
    let args = NormArgs {
        x: ctx.ptr(node.inputs[0]),
        affine: affine(ctx, node, 1, norm),
        y: ctx.ptr(node.outputs[0]),
        statistics: ctx.ptr(node.outputs[1]),
        partials,
        low,
        inverse_count: 1.0 / (shape.pixels() * cut.width) as f64,
        pixels: shape.pixels() as u32,
        channels: shape.channels() as u32,
        groups: norm.groups as u32,
        slice: cut.slice as u32,
        slices: cut.slices as u32,
        chunk_rows: cut.chunk_rows as u32,
        chunks: cut.chunks as u32,
        run: cut.run() as u32,
        silu: u32::from(norm.silu),
        eps: norm.eps as f32,
        images: images as u32,
        inverse_scale: e4m3.map_or(1.0, |scale| 1.0 / scale),
    };
    let (grid, block) = (cut.grid(images), cut.block() as u32);
    if cut.fused {
        let shared = cut.slice / cut.width * 16 + cut.runs_bytes() + cut.slab(1);
        ctx.launch(&cut.kernel("norm_fused", stored), grid, block, shared as u32, &args);
        return;
    }
    ctx.launch(&cut.kernel("norm_moments", dtype), grid, block, cut.runs_bytes() as u32, &args);
    ctx.launch("norm_finish_f32", warps(images * norm.groups), BLOCK as u32, 0, &args);
    ctx.launch(&cut.kernel("norm_apply", stored), grid, block, 0, &args);
}

/// Inputs: dy, x, gamma, beta, (scale_shift), statistics.
fn backward(ctx: &mut Lowering, node: &Node, norm: &GroupNorm) {
    let (shape, dtype) = (ctx.shape(node.inputs[1]), ctx.dtype());
    let cut = Cut::new(shape, norm.groups, ctx.act_bytes(), 2);
    let (images, channels) = (shape.batch(), shape.channels());
    let (partials, means) = if cut.fused {
        (DevicePtr::NULL, DevicePtr::NULL)
    } else {
        (ctx.scratch(images * cut.chunks * 2 * channels * 4), ctx.scratch(images * norm.groups * 2 * 4))
    };
    let args = NormGradArgs {
        dy: ctx.ptr(node.inputs[0]),
        x: ctx.ptr(node.inputs[1]),
        affine: affine(ctx, node, 2, norm),
        statistics: ctx.ptr(node.inputs[node.inputs.len() - 1]),
        dx: ctx.ptr(node.outputs[0]),
        dgamma: ctx.ptr(node.outputs[1]),
        dbeta: ctx.ptr(node.outputs[2]),
        dscale_shift: ctx.optional_ptr(&node.outputs, 3),
        partials,
        totals: ctx.scratch(images * 2 * channels * 4),
        means,
        images: images as u32,
        pixels: shape.pixels() as u32,
        channels: channels as u32,
        groups: norm.groups as u32,
        slice: cut.slice as u32,
        slices: cut.slices as u32,
        chunk_rows: cut.chunk_rows as u32,
        chunks: cut.chunks as u32,
        silu: u32::from(norm.silu),
        padding: 0,
    };
    let (grid, block) = (cut.grid(images), cut.block() as u32);
    if cut.fused {
        let sums = 4 * (2 * cut.slice + 2 * cut.slice / cut.width);
        let shared = cut.slab(2) + sums + cut.lane_sums_bytes();
        ctx.launch(&cut.kernel("norm_grad_fused", dtype), grid, block, shared as u32, &args);
    } else {
        ctx.launch(&cut.kernel("norm_grad_sums", dtype), grid, block, cut.lane_sums_bytes() as u32, &args);
        let finish = format!("norm_grad_finish_{dtype}");
        ctx.launch(&finish, warps(images * norm.groups), BLOCK as u32, 0, &args);
        ctx.launch(&cut.kernel("norm_grad_apply", dtype), grid, block, 0, &args);
    }
    let params = format!("norm_grad_params_{dtype}");
    ctx.launch(&params, [channels.div_ceil(32) as u32, 1, 1], BLOCK as u32, 0, &args);
}

/// gamma, beta and, where modulated, (scale, shift): the operands from `first` on.
fn affine(ctx: &Lowering, node: &Node, first: usize, norm: &GroupNorm) -> Affine {
    Affine {
        gamma: ctx.param_f32(node.inputs[first]),
        beta: ctx.param_f32(node.inputs[first + 1]),
        scale_shift: if norm.modulated { ctx.ptr(node.inputs[first + 2]) } else { DevicePtr::NULL },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_image_with_whole_groups_and_vectors() {
        for (pixels, channels, groups) in
            [(1024, 128, 32), (16, 512, 32), (1, 5, 5), (65536, 24, 8), (4096, 4100, 4), (77, 2056, 1), (9, 15, 3)]
        {
            for (element, tensors) in [(2, 1), (2, 2), (4, 1), (4, 2)] {
                let cut = Cut::new([3, pixels, channels].into(), groups, element, tensors);
                assert!(cut.slice.is_multiple_of(cut.width) && cut.slice.is_multiple_of(cut.vector), "{cut:?}");
                assert!((cut.slices - 1) * cut.slice < channels && cut.slices * cut.slice >= channels, "{cut:?}");
                assert!((cut.chunks - 1) * cut.chunk_rows < pixels && cut.chunks * cut.chunk_rows >= pixels);
                assert!(!cut.fused || (cut.columns() <= BLOCK && cut.chunks == 1), "{cut:?}");
                let shared =
                    if cut.fused { cut.slab(tensors) } else { 0 } + cut.lane_sums_bytes().max(cut.runs_bytes());
                assert!(shared <= 99 << 10, "{cut:?} takes {shared} bytes");
            }
        }
    }

    #[test]
    fn a_single_image_of_the_cifar_network_stays_on_chip_in_several_blocks() {
        let cut = Cut::new([1, 32, 32, 128].into(), 32, 2, 1);
        assert!(cut.fused && cut.slices == 8, "{cut:?}");
        let cut = Cut::new([1, 64, 64, 128].into(), 32, 2, 1);
        assert!(!cut.fused && cut.chunks == 64, "{cut:?}");
    }
}
