//! Operations that know where a pixel or a channel lies: values per image, resampling, filters, sums over pixels, channels side by
//! side, dropout.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use super::fast_divide::FastDivide;
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::{Border, Fir, Node, Op, Shape};

const BLOCK: usize = 256;
/// Blocks in the second direction of a grid, at most.
const MAX_GRID_Y: usize = 65_535;
/// Accesses of a thread that copies: enough to overlap their latencies.
const COPIES: usize = 4;
/// The narrowest slice of a row worth reading: a sector of the memory system, in bytes.
const SECTOR: usize = 32;
/// Rows that a thread adds, at least, before an image is cut into chunks, and chunks of an image, at most.
const ROWS_PER_LANE: usize = 16;
const MAX_CHUNKS: usize = 64;

/// `struct PerImageArgs` of `kernels/elementwise/per_image.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PerImageArgs {
    x: DevicePtr,
    v: DevicePtr,
    y: DevicePtr,
    images: u32,
    vectors: u32,
    columns: FastDivide,
    padding: u32,
}

/// `struct ResampleArgs` of `kernels/elementwise/resample.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ResampleArgs {
    x: DevicePtr,
    y: DevicePtr,
    images: u32,
    vectors: u32,
    columns: FastDivide,
    width: FastDivide,
    scale: f32,
    padding: u32,
}

/// `struct FirArgs` of `kernels/elementwise/fir.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FirArgs {
    x: DevicePtr,
    y: DevicePtr,
    images: u32,
    vectors: u32,
    columns: FastDivide,
    width: FastDivide,
    height: u32,
    weights: [f32; 4],
    padding: u32,
}

/// `struct FirMirroredArgs` of `kernels/elementwise/fir_mirrored.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FirMirroredArgs {
    x: DevicePtr,
    y: DevicePtr,
    elements: u64,
    height: u32,
    width: u32,
    channels: u32,
    up: u32,
    folds: u32,
    weights: [f32; 4],
    padding: u32,
}

/// `struct ChannelsArgs` of `kernels/elementwise/channels.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ChannelsArgs {
    a: DevicePtr,
    b: DevicePtr,
    y: DevicePtr,
    rows: u64,
    a_columns: u32,
    b_columns: u32,
    split: u32,
    tile_rows: u32,
    columns: FastDivide,
    padding: u32,
}

/// `struct SumPixelsArgs` of `kernels/elementwise/sum_pixels.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SumPixelsArgs {
    x: DevicePtr,
    y: DevicePtr,
    partials: DevicePtr,
    images: u32,
    pixels: u32,
    channels: u32,
    slice: u32,
    slices: u32,
    chunk_rows: u32,
    chunks: u32,
    padding: u32,
}

/// `struct DropoutArgs` of `kernels/elementwise/dropout.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DropoutArgs {
    x: DevicePtr,
    example: DevicePtr,
    key: DevicePtr,
    y: DevicePtr,
    images: u32,
    elements: u32,
    layer: u32,
    p: f32,
    scale: f32,
    padding: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match node.op {
        Op::AddPerImage => per_image(ctx, node, "add_per_image", ctx.shape(node.outputs[0]).channels()),
        Op::DivideByTime => per_image(ctx, node, "divide_by_time", sample(ctx.shape(node.outputs[0]))),
        Op::Upsample2x => resample(ctx, node, "spread_2x", ctx.shape(node.inputs[0]), 1.0),
        Op::AvgPool2xGrad => resample(ctx, node, "spread_2x", ctx.shape(node.inputs[0]), 0.25),
        Op::AvgPool2x => resample(ctx, node, "gather_2x", ctx.shape(node.outputs[0]), 0.25),
        Op::Upsample2xGrad => resample(ctx, node, "gather_2x", ctx.shape(node.outputs[0]), 1.0),
        Op::Fir(ref filter) if filter.border == Border::Zero => fir(ctx, node, filter),
        Op::Fir(ref filter) => fir_mirrored(ctx, node, filter),
        Op::Concat => {
            let [a, b] = [node.inputs[0], node.inputs[1]].map(|v| (ctx.ptr(v), ctx.shape(v).channels()));
            join_channels(ctx, node, a.0, a.1, a.1, b);
        }
        Op::Slice { start, len } => {
            let x = node.inputs[0];
            let from = ctx.ptr(x).offset(start * ctx.act_bytes());
            let channels = ctx.shape(x).channels();
            // Vectors need an aligned start, which holds where the channels on either side are whole vectors.
            join_channels(ctx, node, from, channels, len, (DevicePtr::NULL, start));
        }
        Op::SumPixels => sum_pixels(ctx, node),
        Op::Dropout { p, layer } => dropout(ctx, node, p, layer),
        ref op => return Err(super::missing(op)),
    }
    Ok(())
}

/// Elements of one sample.
fn sample(shape: Shape) -> usize {
    shape.numel() / shape.batch().max(1)
}

/// Elements of one access: 16 bytes where all of `extents` are multiples of it, else one.
fn vector(ctx: &Lowering, extents: &[usize]) -> usize {
    let widest = 16 / ctx.act_bytes();
    if extents.iter().all(|e| e.is_multiple_of(widest)) { widest } else { 1 }
}

fn kernel(ctx: &Lowering, name: &str, vector: usize) -> String {
    format!("{name}_{}{}", if vector > 1 { "" } else { "scalar_" }, ctx.dtype())
}

/// A grid of strides over `n` pieces of every image, no larger than keeps the device busy.
fn per_image_grid(ctx: &Lowering, n: usize, images: usize) -> [u32; 3] {
    let busy = (16 * ctx.limits().multiprocessors as usize).div_ceil(images);
    [n.div_ceil(BLOCK).clamp(1, busy) as u32, images.min(MAX_GRID_Y) as u32, 1]
}

/// `row`: elements of an image after which the second operand repeats.
fn per_image(ctx: &mut Lowering, node: &Node, name: &str, row: usize) {
    let shape = ctx.shape(node.outputs[0]);
    let (images, vector) = (shape.batch(), vector(ctx, &[row]));
    let vectors = sample(shape) / vector;
    let args = PerImageArgs {
        x: ctx.ptr(node.inputs[0]),
        v: ctx.ptr(node.inputs[1]),
        y: ctx.ptr(node.outputs[0]),
        images: images as u32,
        vectors: vectors as u32,
        columns: FastDivide::new(row / vector),
        padding: 0,
    };
    ctx.launch(&kernel(ctx, name, vector), per_image_grid(ctx, vectors, images), BLOCK as u32, 0, &args);
}

/// `small`: the shape with half the height and width.
fn resample(ctx: &mut Lowering, node: &Node, name: &str, small: Shape, scale: f32) {
    let (images, vector) = (small.batch(), vector(ctx, &[small.channels()]));
    let vectors = sample(small) / vector;
    let args = ResampleArgs {
        x: ctx.ptr(node.inputs[0]),
        y: ctx.ptr(node.outputs[0]),
        images: images as u32,
        vectors: vectors as u32,
        columns: FastDivide::new(small.channels() / vector),
        width: FastDivide::new(small.height_width().1),
        scale,
        padding: 0,
    };
    ctx.launch(&kernel(ctx, name, vector), per_image_grid(ctx, vectors, images), BLOCK as u32, 0, &args);
}

fn fir(ctx: &mut Lowering, node: &Node, filter: &Fir) {
    let small = ctx.shape(if filter.up { node.inputs[0] } else { node.outputs[0] });
    let (images, vector) = (small.batch(), vector(ctx, &[small.channels()]));
    let vectors = sample(small) / vector;
    let (height, width) = small.height_width();
    let args = FirArgs {
        x: ctx.ptr(node.inputs[0]),
        y: ctx.ptr(node.outputs[0]),
        images: images as u32,
        vectors: vectors as u32,
        columns: FastDivide::new(small.channels() / vector),
        width: FastDivide::new(width),
        height: height as u32,
        weights: filter.weights().map(|w| w as f32),
        padding: 0,
    };
    let name = if filter.up { "fir_up" } else { "fir_down" };
    ctx.launch(&kernel(ctx, name, vector), per_image_grid(ctx, vectors, images), BLOCK as u32, 0, &args);
}

fn fir_mirrored(ctx: &mut Lowering, node: &Node, filter: &Fir) {
    let y = ctx.shape(node.outputs[0]);
    let (height, width) = y.height_width();
    let args = FirMirroredArgs {
        x: ctx.ptr(node.inputs[0]),
        y: ctx.ptr(node.outputs[0]),
        elements: y.numel() as u64,
        height: height as u32,
        width: width as u32,
        channels: y.channels() as u32,
        up: u32::from(filter.up),
        folds: u32::from(filter.border == Border::Fold),
        weights: filter.weights().map(|w| w as f32),
        padding: 0,
    };
    let blocks = y.numel().div_ceil(BLOCK).min(16 * ctx.limits().multiprocessors as usize);
    ctx.launch(&format!("fir_mirrored_{}", ctx.dtype()), [blocks as u32, 1, 1], BLOCK as u32, 0, &args);
}

/// The first `split` channels come from `a`, whose rows have `a_channels`, the others from `b`: address and channels.
fn join_channels(
    ctx: &mut Lowering,
    node: &Node,
    a: DevicePtr,
    a_channels: usize,
    split: usize,
    (b, b_channels): (DevicePtr, usize),
) {
    let y = ctx.shape(node.outputs[0]);
    let (rows, channels) = (y.rows(), y.channels());
    let vector = vector(ctx, &[a_channels, split, b_channels]);
    let tile_rows = (BLOCK * COPIES * vector / channels).max(1);
    let args = ChannelsArgs {
        a,
        b,
        y: ctx.ptr(node.outputs[0]),
        rows: rows as u64,
        a_columns: (a_channels / vector) as u32,
        b_columns: (b_channels / vector) as u32,
        split: (split / vector) as u32,
        tile_rows: tile_rows as u32,
        columns: FastDivide::new(channels / vector),
        padding: 0,
    };
    let grid = [rows.div_ceil(tile_rows) as u32, 1, 1];
    ctx.launch(&kernel(ctx, "join_channels", vector), grid, BLOCK as u32, 0, &args);
}

/// Narrow slices of channels, so that even one image has several blocks; chunks of pixels only for large images. Both
/// depend on one image alone, so that its sums do not depend on the batch.
fn sum_pixels(ctx: &mut Lowering, node: &Node) {
    let x = ctx.shape(node.inputs[0]);
    let (images, pixels, channels) = (x.batch(), x.pixels(), x.channels());
    let vector = vector(ctx, &[channels]);
    let slice = (SECTOR / ctx.act_bytes()).min(channels);
    let columns = slice / vector;
    let lanes = BLOCK / columns;
    let chunk_rows = (ROWS_PER_LANE * lanes).max(pixels.div_ceil(MAX_CHUNKS));
    let chunks = pixels.div_ceil(chunk_rows);
    let partials = if chunks > 1 { ctx.scratch(images * chunks * channels * 4) } else { DevicePtr::NULL };
    let slices = channels.div_ceil(slice);
    let args = SumPixelsArgs {
        x: ctx.ptr(node.inputs[0]),
        y: ctx.ptr(node.outputs[0]),
        partials,
        images: images as u32,
        pixels: pixels as u32,
        channels: channels as u32,
        slice: slice as u32,
        slices: slices as u32,
        chunk_rows: chunk_rows as u32,
        chunks: chunks as u32,
        padding: 0,
    };
    // `LaneSums` of kernels/device/columns.cuh: a float per channel and lane, lanes rounded up to an odd number.
    let shared = 4 * vector * (BLOCK + columns);
    let grid = [(images * slices) as u32, chunks as u32, 1];
    ctx.launch(&kernel(ctx, "sum_pixels", vector), grid, BLOCK as u32, shared as u32, &args);
    if chunks > 1 {
        let name = format!("sum_chunks_{}", ctx.dtype());
        ctx.launch(&name, [(images * channels).div_ceil(BLOCK) as u32, 1, 1], BLOCK as u32, 0, &args);
    }
}

fn dropout(ctx: &mut Lowering, node: &Node, p: f64, layer: u32) {
    let shape = ctx.shape(node.inputs[0]);
    let (images, elements) = (shape.batch(), sample(shape));
    // The generator's unit is four elements, whatever their type.
    let vector = if elements.is_multiple_of(4) { 4 } else { 1 };
    let args = DropoutArgs {
        x: ctx.ptr(node.inputs[0]),
        example: ctx.ptr(node.inputs[1]),
        key: ctx.ptr(node.inputs[2]),
        y: ctx.ptr(node.outputs[0]),
        images: images as u32,
        elements: elements as u32,
        layer,
        p: p as f32,
        scale: (1.0 / (1.0 - p)) as f32,
        padding: 0,
    };
    let grid = per_image_grid(ctx, elements.div_ceil(4), images);
    ctx.launch(&kernel(ctx, "dropout", vector), grid, BLOCK as u32, 0, &args);
}
