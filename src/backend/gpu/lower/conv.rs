//! Convolutions as matrix products; linear layers are their 1x1 case ([`super::linear`]).

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use super::hopper::image::{self, QuantisedFilter};
use super::hopper::wgrad::{self, Sums, Wgrad};
use crate::backend::gpu::choice::Pass;
use crate::backend::gpu::choice::mma::{Choice, ImageProduct, PixelProduct, choose, choose_wgrad};
use crate::backend::gpu::driver::DevicePtr;
use crate::backend::{BackendError, Precision};
use crate::graph::{ConvGeometry, Epilogue, Node, Op, Shape};

/// `struct Epilogue` of `kernels/gemm/epilogue.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EpilogueArgs {
    out: DevicePtr,
    bias: DevicePtr,
    per_image: DevicePtr,
    residual: DevicePtr,
    columns: i32,
    pixels_per_image: i32,
    scale: f32,
    padding: i32,
}

/// `struct ConvArgs` of `kernels/conv/geometry.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ConvArgs {
    source: DevicePtr,
    filter: DevicePtr,
    partial: DevicePtr,
    epilogue: EpilogueArgs,
    images: i32,
    source_h: i32,
    source_w: i32,
    source_channels: i32,
    out_h: i32,
    out_w: i32,
    kernel_h: i32,
    kernel_w: i32,
    stride: i32,
    pad_top: i32,
    pad_left: i32,
    segment_steps: i32,
}

/// `struct FinishArgs` of `kernels/conv/finish.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FinishArgs {
    partial: DevicePtr,
    epilogue: EpilogueArgs,
    pixels: i64,
    splits: i32,
    padding: i32,
}

/// `struct WgradArgs` of `kernels/conv/wgrad.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WgradArgs {
    dy: DevicePtr,
    x: DevicePtr,
    dw: DevicePtr,
    db: DevicePtr,
    split_elements: i64,
    images: i32,
    x_h: i32,
    x_w: i32,
    x_channels: i32,
    dy_h: i32,
    dy_w: i32,
    dy_channels: i32,
    kernel_h: i32,
    kernel_w: i32,
    stride: i32,
    pad_top: i32,
    pad_left: i32,
    split_steps: i32,
    padding: i32,
}

/// `struct SumSplitsArgs` of `kernels/conv/finish.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SumSplitsArgs {
    partial: DevicePtr,
    dw: DevicePtr,
    db: DevicePtr,
    dw_elements: i64,
    db_elements: i64,
    split_elements: i64,
    splits: i64,
}

/// Threads of the kernels of `finish.cu`.
const FINISH_BLOCK: u32 = 256;

/// Images of one batch: `[images, height, width, channels]`. A linear layer's rows are images one pixel wide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images {
    pub(super) count: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
}

impl Images {
    /// A four-dimensional value as it is.
    pub(super) fn of(shape: Shape) -> Self {
        let (height, width) = shape.height_width();
        Self { count: shape.batch(), height, width, channels: shape.channels() }
    }

    /// Any value as a column of pixels per sample.
    pub(super) fn column(shape: Shape) -> Self {
        Self { count: shape.batch(), height: shape.pixels(), width: 1, channels: shape.channels() }
    }

    /// All pixels of the batch as one line.
    pub(super) fn as_line(&self) -> Self {
        Self { count: 1, height: 1, width: self.pixels(), channels: self.channels }
    }

    pub(super) fn pixels(&self) -> usize {
        self.count * self.height * self.width
    }
}

/// What is done to the product before it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fused {
    pub(super) bias: DevicePtr,
    pub(super) per_image: DevicePtr,
    pub(super) residual: DevicePtr,
    pub(super) scale: f32,
}

impl Fused {
    /// The epilogue of a forward pass; its operands follow x and w.
    pub(super) fn forward(ctx: &Lowering, epilogue: &Epilogue, node: &Node) -> Self {
        let mut operands = node.inputs.iter().skip(2);
        let mut next = |used: bool| if used { operands.next().copied() } else { None };
        let (bias, per_image, residual) = (next(epilogue.bias), next(epilogue.per_image), next(epilogue.residual));
        Self {
            bias: bias.map_or(DevicePtr::NULL, |v| ctx.param_f32(v)),
            per_image: per_image.map_or(DevicePtr::NULL, |v| ctx.ptr(v)),
            residual: residual.map_or(DevicePtr::NULL, |v| ctx.ptr(v)),
            scale: epilogue.scale as f32,
        }
    }

    /// A data gradient adds at most another branch's gradient, its third operand.
    pub(super) fn backward(ctx: &Lowering, node: &Node) -> Self {
        let residual = ctx.optional_ptr(&node.inputs, 2);
        Self { bias: DevicePtr::NULL, per_image: DevicePtr::NULL, residual, scale: 1.0 }
    }
}

/// Lowers the operations on images.
pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    let first = Images::of(ctx.shape(node.inputs[0]));
    match &node.op {
        Op::Conv2d(geometry, epilogue) => {
            let fused = Fused::forward(ctx, epilogue, node);
            let y = Images::of(ctx.shape(node.outputs[0]));
            match ctx.e4m3_scale(node.inputs[0]) {
                Some(scale) => fprop_e4m3(ctx, geometry, first, y, scale, fused, node),
                None => fprop(ctx, geometry, first, y, fused, node),
            }
        }
        Op::ConvDgrad { geometry, .. } => {
            let fused = Fused::backward(ctx, node);
            dgrad(ctx, geometry, first, Images::of(ctx.shape(node.outputs[0])), fused, node)
        }
        Op::ConvWgrad { geometry, .. } => wgrad(ctx, geometry, first, Images::of(ctx.shape(node.inputs[1])), node),
        op => Err(refuse(format!("{} is no convolution", op.name()))),
    }
}

/// `y = epilogue(x * w)`; the node's operands are x and w.
pub(super) fn fprop(
    ctx: &mut Lowering,
    geometry: &ConvGeometry,
    x: Images,
    y: Images,
    fused: Fused,
    node: &Node,
) -> Result<(), BackendError> {
    let product = ImageProduct {
        images: y.count,
        pixels: y.height * y.width,
        phases: 1,
        columns: y.channels,
        depth: geometry.kernel.0 * geometry.kernel.1 * x.channels,
        bf16: ctx.precision() == Precision::Bf16,
        vector: x.channels.is_multiple_of(chunk(ctx)),
        narrow: true,
    };
    launch(ctx, Pass::Fprop, geometry, x, y, fused, node, &product)
}

/// `struct QuantiseFilterArgs` of `kernels/conv/quantise_filter.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct QuantiseFilterArgs {
    w: DevicePtr,
    q: DevicePtr,
    column_scale: DevicePtr,
    depth: u32,
    source_scale: f32,
}

/// As [`fprop`], where x is e4m3 and stands for `scale` times as much; the filter is quantised once for new weights.
fn fprop_e4m3(
    ctx: &mut Lowering,
    geometry: &ConvGeometry,
    x: Images,
    y: Images,
    scale: f32,
    fused: Fused,
    node: &Node,
) -> Result<(), BackendError> {
    check_pixels(node, &[x, y])?;
    debug_assert!(ctx.is_fixed(node.inputs[1]), "the filter is quantised once for many runs");
    let depth = geometry.kernel.0 * geometry.kernel.1 * x.channels;
    let filter = QuantisedFilter { at: ctx.derived(y.channels * depth), scale: ctx.derived(4 * y.channels) };
    let args = QuantiseFilterArgs {
        w: ctx.param_f32(node.inputs[1]),
        q: filter.at,
        column_scale: filter.scale,
        depth: depth as u32,
        source_scale: scale,
    };
    ctx.prepare("conv_quantise_filter_e4m3", [blocks(y.channels)?, 1, 1], FINISH_BLOCK, 0, &args);
    let product = image::ImageProduct::new(Pass::Fprop, geometry, x, ctx.sources(node.inputs[0]), y).quantised();
    let product = product.with_moments(ctx.stored_moments(node.outputs[0]));
    image::launch_e4m3(ctx, &product, filter, fused, node)
}

/// `dx = dy * transpose(w) + residual`; the node's operands are dy and w.
///
/// One phase for every remainder of (h, w) by the stride: each has its own taps, so that no product with zero is
/// computed.
pub(super) fn dgrad(
    ctx: &mut Lowering,
    geometry: &ConvGeometry,
    dy: Images,
    dx: Images,
    fused: Fused,
    node: &Node,
) -> Result<(), BackendError> {
    let stride = geometry.stride;
    let chunk = chunk(ctx);
    let product = ImageProduct {
        images: dx.count,
        pixels: dx.height.div_ceil(stride) * dx.width.div_ceil(stride),
        phases: stride * stride,
        columns: dx.channels,
        depth: geometry.kernel.0.div_ceil(stride) * geometry.kernel.1.div_ceil(stride) * dy.channels,
        bf16: ctx.precision() == Precision::Bf16,
        vector: dy.channels.is_multiple_of(chunk) && dx.channels.is_multiple_of(chunk),
        narrow: false,
    };
    launch(ctx, Pass::Dgrad, geometry, dy, dx, fused, node, &product)
}

/// Launches forward pass or data gradient: a kernel of Hopper where one takes it, else one of mma.sync and, where the
/// depth is split, the launch that adds the parts.
#[expect(clippy::too_many_arguments, reason = "the two callers pass their whole problem")]
fn launch(
    ctx: &mut Lowering,
    pass: Pass,
    geometry: &ConvGeometry,
    source: Images,
    out: Images,
    fused: Fused,
    node: &Node,
    product: &ImageProduct,
) -> Result<(), BackendError> {
    check_pixels(node, &[source, out])?;
    let (x, y) = (node.inputs[0], node.outputs[0]);
    let on_hopper =
        image::ImageProduct::new(pass, geometry, source, ctx.sources(x), out).upsampled(ctx.is_upsampled(x));
    if image::launch(ctx, &on_hopper.with_moments(ctx.stored_moments(y)), fused, node)? {
        return Ok(());
    }
    if ctx.plan().replaced().contains(x) {
        return Err(refuse(format!("{} at {} has lost its operand to a fusion", node.op.name(), node.scope)));
    }
    let choice = choose(product);
    let epilogue = EpilogueArgs {
        out: ctx.ptr(node.outputs[0]),
        bias: fused.bias,
        per_image: fused.per_image,
        residual: fused.residual,
        columns: int(out.channels)?,
        pixels_per_image: int(out.height * out.width)?,
        scale: fused.scale,
        padding: 0,
    };
    let filter = ctx.weight(node.inputs[1]);
    let split = choice.splits > 1;
    let partial = if split { ctx.scratch(4 * choice.splits * out.pixels() * out.channels) } else { DevicePtr::NULL };
    let args = ConvArgs {
        source: ctx.ptr(node.inputs[0]),
        filter,
        partial,
        epilogue,
        images: int(out.count)?,
        source_h: int(source.height)?,
        source_w: int(source.width)?,
        source_channels: int(source.channels)?,
        out_h: int(out.height)?,
        out_w: int(out.width)?,
        kernel_h: int(geometry.kernel.0)?,
        kernel_w: int(geometry.kernel.1)?,
        stride: int(geometry.stride)?,
        pad_top: int(geometry.padding.0)?,
        pad_left: int(geometry.padding.1)?,
        segment_steps: int(choice.steps)?,
    };
    let grid = [blocks(choice.tiles)?, 1, blocks(product.phases * choice.splits)?];
    launch_tile(ctx, pass.name(), &choice, grid, &args);
    if split {
        let finish =
            FinishArgs { partial, epilogue, pixels: out.pixels() as i64, splits: int(choice.splits)?, padding: 0 };
        let pieces = out.pixels() * out.channels.div_ceil(chunk(ctx));
        let kernel = format!("conv_finish_{}", ctx.dtype());
        ctx.launch(&kernel, [blocks(pieces.div_ceil(FINISH_BLOCK as usize))?, 1, 1], FINISH_BLOCK, 0, &finish);
    }
    Ok(())
}

/// `dw = transpose(dy) * x` and `db = sums of dy`; the node's operands are dy and x, its results dw and db.
pub(super) fn wgrad(
    ctx: &mut Lowering,
    geometry: &ConvGeometry,
    dy: Images,
    x: Images,
    node: &Node,
) -> Result<(), BackendError> {
    check_pixels(node, &[x, dy])?;
    let chunk = chunk(ctx);
    let product = PixelProduct {
        rows: dy.channels,
        columns: geometry.kernel.0 * geometry.kernel.1 * x.channels,
        pixels: dy.pixels(),
        bf16: ctx.precision() == Precision::Bf16,
        vector_dy: dy.channels.is_multiple_of(chunk),
        vector_x: x.channels.is_multiple_of(chunk),
    };
    let choice = choose_wgrad(&product);
    let on_hopper = Wgrad::new(ctx, geometry, dy, x);
    let splits = on_hopper.as_ref().map_or(choice.splits, Wgrad::splits);
    let (dw, db) = (ctx.ptr(node.outputs[0]), ctx.optional_ptr(&node.outputs, 1));
    let dw_elements = product.rows * product.columns;
    let db_elements = if db == DevicePtr::NULL { 0 } else { product.rows };
    // Every split's dw begins on 16 bytes, as the vector stores need it.
    let split_elements = (dw_elements + db_elements).next_multiple_of(4);
    let split = splits > 1;
    let (first_dw, first_db) = if split {
        let partial = ctx.scratch(4 * splits * split_elements);
        (partial, if db_elements > 0 { partial.offset(4 * dw_elements) } else { DevicePtr::NULL })
    } else {
        (dw, db)
    };
    let operands = (ctx.ptr(node.inputs[0]), ctx.ptr(node.inputs[1]));
    if let Some(on_hopper) = on_hopper {
        wgrad::launch(ctx, &on_hopper, operands, Sums { dw: first_dw, db: first_db, split_elements })?;
    } else {
        let args = WgradArgs {
            dy: operands.0,
            x: operands.1,
            dw: first_dw,
            db: first_db,
            split_elements: split_elements as i64,
            images: int(x.count)?,
            x_h: int(x.height)?,
            x_w: int(x.width)?,
            x_channels: int(x.channels)?,
            dy_h: int(dy.height)?,
            dy_w: int(dy.width)?,
            dy_channels: int(dy.channels)?,
            kernel_h: int(geometry.kernel.0)?,
            kernel_w: int(geometry.kernel.1)?,
            stride: int(geometry.stride)?,
            pad_top: int(geometry.padding.0)?,
            pad_left: int(geometry.padding.1)?,
            split_steps: int(choice.steps)?,
            padding: 0,
        };
        launch_tile(ctx, "wgrad", &choice, [blocks(choice.tiles)?, blocks(choice.splits)?, 1], &args);
    }
    if split {
        let sum = SumSplitsArgs {
            partial: first_dw,
            dw,
            db,
            dw_elements: dw_elements as i64,
            db_elements: db_elements as i64,
            split_elements: split_elements as i64,
            splits: splits as i64,
        };
        let grid = [blocks((dw_elements + db_elements).div_ceil(FINISH_BLOCK as usize))?, 1, 1];
        ctx.launch("conv_wgrad_sum_splits_f32", grid, FINISH_BLOCK, 0, &sum);
    }
    Ok(())
}

fn launch_tile<A: Pod>(ctx: &mut Lowering, pass: &str, choice: &Choice, grid: [u32; 3], args: &A) {
    let kernel = format!("conv_{pass}_{}_{}", choice.variant, ctx.dtype());
    ctx.launch(&kernel, grid, choice.tile.threads(), choice.tile.shared_bytes(), args);
}

/// Activations in 16 bytes.
fn chunk(ctx: &Lowering) -> usize {
    match ctx.precision() {
        Precision::F32 => 4,
        Precision::Bf16 => 8,
    }
}

/// The kernels count pixels in 32 bits, and look at up to one tile beyond the last.
fn check_pixels(node: &Node, images: &[Images]) -> Result<(), BackendError> {
    const MOST: usize = i32::MAX as usize - 256;
    match images.iter().map(Images::pixels).find(|&pixels| pixels > MOST) {
        Some(pixels) => Err(refuse(format!(
            "{} at {}: {pixels} pixels, at most {MOST}; take a smaller batch",
            node.op.name(),
            node.scope
        ))),
        None => Ok(()),
    }
}

pub(super) fn int(value: usize) -> Result<i32, BackendError> {
    i32::try_from(value).map_err(|_| refuse(format!("a convolution's dimension is {value}, at most {}", i32::MAX)))
}

pub(super) fn blocks(count: usize) -> Result<u32, BackendError> {
    u32::try_from(count).map_err(|_| refuse(format!("a convolution needs {count} blocks; take a smaller batch")))
}

fn refuse(reason: String) -> BackendError {
    BackendError::Device { device: "gpu".into(), reason }
}
