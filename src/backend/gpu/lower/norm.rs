//! Group normalisation: one kernel where a slice of an image fits on chip, else blocks of rows with partial sums; or,
//! where the producers of x left moments, blocks of rows that read x once.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use super::fusions::Stored;
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
/// Bytes of a channel's moments over one part: see `PartMoments` of `kernels/norm/source.cuh`.
const PART_BYTES: usize = 8;
/// Bytes of activations that a block reads for each byte of moments, where it merges them itself.
const BYTES_PER_PART_BYTE: usize = 4;
/// Parts of an image, at most, that every block merges for itself: those of 64x64 pixels in patches of 128. With more,
/// the image is so large that another launch does not show, and the rows above would leave too few blocks.
const MERGED_BY_BLOCKS: usize = 32;

/// Moments of the values that the producer of a tensor stored: `struct PartMoments [N, parts, C]`, parts in rows of
/// patches that are cut off at the right and the bottom of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialMoments {
    /// Where they lie.
    pub at: DevicePtr,
    /// Pixels of a part: width and height.
    pub patch: (usize, usize),
}

impl PartialMoments {
    /// Parts side by side, and of an image of this width and height.
    fn parts(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let parts_x = width.div_ceil(self.patch.0);
        (parts_x, parts_x * height.div_ceil(self.patch.1))
    }
}

/// A tensor that x consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// `[N, H, W, channels]`, dense.
    pub x: DevicePtr,
    /// Its channels.
    pub channels: usize,
    /// What its producer measured. The norm reads x for statistics unless every source has them.
    pub moments: Option<PartialMoments>,
}

/// The input of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Input {
    /// N.
    pub images: usize,
    /// Width and height of an image.
    pub size: (usize, usize),
    /// The channels of the first, then those of the second.
    pub first: Source,
    /// Of a concatenation that nobody wrote.
    pub second: Option<Source>,
}

impl Input {
    fn sources(&self) -> impl Iterator<Item = Source> {
        std::iter::once(self.first).chain(self.second)
    }

    fn channels(&self) -> usize {
        self.sources().map(|source| source.channels).sum()
    }

    fn pixels(&self) -> usize {
        self.size.0 * self.size.1
    }

    /// The most parts that any source has; `None` where a source has no moments.
    fn parts(&self) -> Option<usize> {
        let parts = |source: Source| Some(source.moments?.parts(self.size).1);
        self.sources().map(parts).try_fold(0, |most, parts| Some(most.max(parts?)))
    }
}

/// `struct Affine` of `kernels/norm/affine.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Affine {
    gamma: DevicePtr,
    beta: DevicePtr,
    scale_shift: DevicePtr,
}

/// `struct NormSource` of `kernels/norm/source.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormSource {
    x: DevicePtr,
    moments: DevicePtr,
    channels: u32,
    parts_x: u32,
    parts: u32,
    patch_w: u32,
    patch_h: u32,
    padding: u32,
}

impl NormSource {
    fn new(source: Source, size: (usize, usize)) -> Self {
        let mut args = Self { x: source.x, channels: source.channels as u32, ..Self::zeroed() };
        if let Some(moments) = source.moments {
            let (parts_x, parts) = moments.parts(size);
            args.moments = moments.at;
            (args.parts_x, args.parts) = (parts_x as u32, parts as u32);
            (args.patch_w, args.patch_h) = (moments.patch.0 as u32, moments.patch.1 as u32);
        }
        args
    }
}

/// `struct NormArgs` of `kernels/norm/group_norm.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormArgs {
    first: NormSource,
    second: NormSource,
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
    width: u32,
    inverse_scale: f32,
    padding: u32,
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

/// A way to the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A block sees all pixels of its slice and keeps them.
    Fused,
    /// Partial moments of blocks of rows, merged by a second launch.
    Split,
    /// Every block merges the moments that the producers left.
    Given,
    /// One launch merges them for all blocks.
    Combined,
}

impl Cut {
    /// The cut of one dense tensor. `tensors`: how many of the shape a fused block keeps.
    fn new(shape: Shape, groups: usize, element: usize, tensors: usize) -> Self {
        Self::of_pixels(shape.pixels(), &[shape.channels()], groups, element, tensors)
    }

    /// The cut of a norm's input, and the way to its statistics.
    fn of_input(input: &Input, groups: usize, element: usize) -> (Self, Way) {
        let channels: Vec<usize> = input.sources().map(|source| source.channels).collect();
        let cut = Self::of_pixels(input.pixels(), &channels, groups, element, 1);
        match input.parts() {
            Some(parts) if parts <= MERGED_BY_BLOCKS => (cut.given(input, parts), Way::Given),
            // Fused blocks are as good with moments as without.
            Some(_) if !cut.fused => (cut, Way::Combined),
            _ if cut.fused => (cut, Way::Fused),
            _ => (cut, Way::Split),
        }
    }

    fn of_pixels(pixels: usize, sources: &[usize], groups: usize, element: usize, tensors: usize) -> Self {
        let channels: usize = sources.iter().sum();
        let width = channels / groups;
        let widest = 16 / element;
        let vector = if sources.iter().all(|channels| channels.is_multiple_of(widest)) { widest } else { 1 };
        // Whole groups and whole vectors; it divides C, because both do.
        let unit = width * vector / gcd(width, vector);
        let pixel_bytes = |slice: usize| slice * element * tensors;
        let mut slice = narrowest(unit, element).min(channels);
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
        let (slices, chunks) = (channels.div_ceil(slice), pixels.div_ceil(chunk_rows));
        Self { vector, width, fused, slice, slices, chunk_rows, chunks, element }
    }

    /// Blocks that merge `parts` themselves: narrow slices, so that one image gives many of them, and rows enough for the
    /// moments to be a small part of what a block reads.
    fn given(self, input: &Input, parts: usize) -> Self {
        let (pixels, channels) = (input.pixels(), input.channels());
        let unit = self.width * self.vector / gcd(self.width, self.vector);
        let mut slice = narrowest(unit, self.element).min(channels);
        let least = (BYTES_PER_PART_BYTE * PART_BYTES * parts).div_ceil(self.element).min(pixels);
        let worthwhile = |slice: usize| least * slice * self.element >= WORTHWHILE;
        while !worthwhile(slice) && slice < channels && 2 * slice / self.vector <= BLOCK {
            slice = (2 * slice).min(channels);
        }
        let lanes = (BLOCK * self.vector / slice).max(1);
        let chunk_rows = least.max(ROWS_PER_LANE * lanes).min(pixels);
        let (slices, chunks) = (channels.div_ceil(slice), pixels.div_ceil(chunk_rows));
        Self { fused: false, slice, slices, chunk_rows, chunks, ..self }
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

/// Channels of the narrowest slice worth reading, in whole units.
fn narrowest(unit: usize, element: usize) -> usize {
    unit * SECTOR.div_ceil(unit * element)
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

/// Whether a norm of images of `pixels` pixels takes its statistics from moments of its sources, each its channels and the
/// parts of an image; else it is as fast without.
pub(super) fn reads_moments(pixels: usize, sources: &[(usize, Stored)], groups: usize, element: usize) -> bool {
    let sources: Vec<Source> = sources
        .iter()
        .map(|&(channels, stored)| source(DevicePtr::NULL, channels, Some((DevicePtr::NULL, stored))))
        .collect();
    let input = Input { images: 1, size: (1, pixels), first: sources[0], second: sources.get(1).copied() };
    matches!(Cut::of_input(&input, groups, element).1, Way::Given | Way::Combined)
}

/// Parts of a product's moments have as many pixels each, and it does not matter which: to the kernels an image is a column
/// of pixels.
fn source(x: DevicePtr, channels: usize, moments: Option<(DevicePtr, Stored)>) -> Source {
    let moments = moments.map(|(at, stored)| PartialMoments { at, patch: (1, stored.pixels) });
    Source { x, channels, moments }
}

fn forward(ctx: &mut Lowering, node: &Node, norm: &GroupNorm) {
    let shape = ctx.shape(node.inputs[0]);
    let moments = ctx.read_moments(node.outputs[0]);
    let sources: Vec<Source> = ctx
        .sources(node.inputs[0])
        .iter()
        .enumerate()
        .map(|(i, part)| source(part.at, part.channels, moments.as_ref().map(|m| m[i])))
        .collect();
    let second = sources.get(1).copied();
    let input = Input { images: shape.batch(), size: (1, shape.pixels()), first: sources[0], second };
    forward_of(ctx, node, norm, &input);
}

/// The forward pass of a node on an input that need not be its first operand.
pub(super) fn forward_of(ctx: &mut Lowering, node: &Node, norm: &GroupNorm, input: &Input) {
    let dtype = ctx.dtype();
    let e4m3 = ctx.e4m3_scale(node.outputs[0]);
    let stored = if e4m3.is_some() { "e4m3" } else { dtype };
    let (cut, way) = Cut::of_input(input, norm.groups, ctx.act_bytes());
    let images = input.images;
    let partials = match way {
        Way::Split => ctx.scratch(images * cut.chunks * norm.groups * 16),
        Way::Fused | Way::Given | Way::Combined => DevicePtr::NULL,
    };
    let low = match way {
        Way::Split | Way::Combined => ctx.scratch(images * norm.groups * 4),
        Way::Fused | Way::Given => DevicePtr::NULL,
    };
    let args = NormArgs {
        first: NormSource::new(input.first, input.size),
        second: input.second.map_or(NormSource::zeroed(), |second| NormSource::new(second, input.size)),
        affine: affine(ctx, node, 1, norm),
        y: ctx.ptr(node.outputs[0]),
        statistics: ctx.ptr(node.outputs[1]),
        partials,
        low,
        inverse_count: 1.0 / (input.pixels() * cut.width) as f64,
        pixels: input.pixels() as u32,
        channels: input.channels() as u32,
        groups: norm.groups as u32,
        slice: cut.slice as u32,
        slices: cut.slices as u32,
        chunk_rows: cut.chunk_rows as u32,
        chunks: cut.chunks as u32,
        run: cut.run() as u32,
        silu: u32::from(norm.silu),
        eps: norm.eps as f32,
        images: images as u32,
        width: input.size.0 as u32,
        inverse_scale: e4m3.map_or(1.0, |scale| 1.0 / scale),
        padding: 0,
    };
    let (grid, block) = (cut.grid(images), cut.block() as u32);
    let (whole, all_groups) = (BLOCK as u32, warps(images * norm.groups));
    let statistics_bytes = cut.slice / cut.width * 16;
    match way {
        Way::Fused => {
            let shared = statistics_bytes + cut.runs_bytes() + cut.slab(1);
            ctx.launch(&cut.kernel("norm_fused", stored), grid, block, shared as u32, &args);
        }
        Way::Given => ctx.launch(&cut.kernel("norm_given", stored), grid, block, statistics_bytes as u32, &args),
        Way::Split => {
            ctx.launch(&cut.kernel("norm_moments", dtype), grid, block, cut.runs_bytes() as u32, &args);
            ctx.launch("norm_finish_f32", all_groups, whole, 0, &args);
            ctx.launch(&cut.kernel("norm_apply", stored), grid, block, 0, &args);
        }
        Way::Combined => {
            ctx.launch("norm_combine_f32", all_groups, whole, 0, &args);
            ctx.launch(&cut.kernel("norm_apply", stored), grid, block, 0, &args);
        }
    }
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

    fn input(size: (usize, usize), channels: [usize; 2], patches: [Option<(usize, usize)>; 2]) -> Input {
        let at = DevicePtr(4096);
        let [first, second] = [0, 1].map(|i| {
            let moments = patches[i].map(|patch| PartialMoments { at, patch });
            Source { x: at, channels: channels[i], moments }
        });
        Input { images: 3, size, first, second: (second.channels > 0).then_some(second) }
    }

    #[test]
    fn moments_are_taken_only_where_every_source_has_them() {
        let patch = Some((8, 16));
        let way = |input: Input| Cut::of_input(&input, 32, 2).1;
        assert_eq!(way(input((32, 32), [128, 0], [None, None])), Way::Fused);
        assert_eq!(way(input((32, 32), [128, 0], [patch, None])), Way::Given);
        assert_eq!(way(input((32, 32), [128, 128], [patch, patch])), Way::Given);
        assert_eq!(way(input((32, 32), [128, 128], [patch, None])), Way::Fused);
        assert_eq!(way(input((256, 256), [128, 0], [None, None])), Way::Split);
        assert_eq!(way(input((256, 256), [128, 0], [patch, None])), Way::Combined);
        // Small patches of a small image: many parts, but the image stays on chip.
        assert_eq!(way(input((32, 32), [128, 0], [Some((4, 4)), None])), Way::Fused);
    }

    #[test]
    fn blocks_that_merge_read_far_more_activations_than_moments() {
        for (size, channels, groups, patch) in [
            ((32, 32), [128, 0], 32, (8, 16)),
            ((64, 64), [192, 0], 32, (8, 16)),
            ((4, 4), [512, 256], 32, (4, 4)),
            ((9, 7), [15, 9], 3, (8, 16)),
            ((16, 16), [256, 8], 24, (8, 8)),
        ] {
            for element in [2, 4] {
                let input = input(size, channels, [Some(patch), Some(patch)]);
                let (cut, way) = Cut::of_input(&input, groups, element);
                let (pixels, parts) = (input.pixels(), input.parts().unwrap());
                assert_eq!(way, Way::Given, "{cut:?}");
                assert!(cut.slice.is_multiple_of(cut.width) && cut.slice.is_multiple_of(cut.vector), "{cut:?}");
                assert!(channels.iter().all(|c| c.is_multiple_of(cut.vector)), "{cut:?}");
                assert!((cut.slices - 1) * cut.slice < input.channels() && cut.slices * cut.slice >= input.channels());
                assert!((cut.chunks - 1) * cut.chunk_rows < pixels && cut.chunks * cut.chunk_rows >= pixels, "{cut:?}");
                let share = cut.chunk_rows * element >= BYTES_PER_PART_BYTE * PART_BYTES * parts;
                assert!(share || cut.chunks == 1, "{cut:?}");
            }
        }
        // Twice the blocks of the fused way: four accesses a thread.
        let (cut, _) = Cut::of_input(&input((32, 32), [128, 0], [Some((8, 16)), None]), 32, 2);
        assert_eq!((cut.slice, cut.slices, cut.chunks), (16, 8, 2), "{cut:?}");
    }

    #[test]
    fn two_sources_are_cut_as_one_tensor_where_vectors_allow() {
        let whole = Cut::new([3, 63, 24].into(), 4, 2, 1);
        assert_eq!(Cut::of_input(&input((9, 7), [16, 8], [None, None]), 4, 2), (whole, Way::Fused));
        assert_eq!(Cut::of_input(&input((9, 7), [12, 12], [None, None]), 4, 2).0.vector, 1);
    }
}
