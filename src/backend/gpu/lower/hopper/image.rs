//! The launcher of `conv_hopper_{fprop,dgrad}`: from a convolution's geometry to the tables of
//! `kernels/conv/image_args.cuh`.

mod args;
mod product;

use bytemuck::Zeroable;

use super::views::{Phase, Tap, View, Views};
use crate::backend::BackendError;
use crate::backend::gpu::choice::{Boxes, Cell, ImageChoice, ImageProblem, Pass, SLAB, THREADS, choose_image};
use crate::backend::gpu::driver::{DevicePtr, Swizzle, TensorMap, TensorMapSpec};
use crate::backend::gpu::lower::Lowering;
use crate::backend::gpu::lower::conv::Fused;
use crate::backend::gpu::lower::fast_divide::FastDivide;
use crate::graph::{Node, ValueId};
use args::{BF16, ImageArgs, LINE, PhaseArgs, SumTapsArgs, TAPS, TapArgs};
pub(in crate::backend::gpu) use product::{ImageProduct, Source};

/// What a launch reads and writes besides its sources.
#[derive(Clone, Copy, Debug)]
struct Operands {
    filter: DevicePtr,
    out: DevicePtr,
    fused: Fused,
    partial: DevicePtr,
    tickets: DevicePtr,
    statistics: DevicePtr,
    column_scale: DevicePtr,
}

/// Where a filter of e4m3 lies, and what 1 in both operands stands for, a number a column.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct QuantisedFilter {
    /// `[K, taps, C]`.
    pub at: DevicePtr,
    /// `[K]`, f32.
    pub scale: DevicePtr,
}

/// Launches the product of e4m3.
///
/// # Errors
/// [`BackendError::Device`] where [`takes_image`] refuses the product: its source would not have been quantised.
pub(in super::super) fn launch_e4m3(
    ctx: &mut Lowering,
    product: &ImageProduct,
    filter: QuantisedFilter,
    fused: Fused,
    node: &Node,
) -> Result<(), BackendError> {
    let problem = product.problem(ctx.precision(), fused.residual != DevicePtr::NULL);
    let views = product.views(&problem, ctx.limits()).map_err(|rule| BackendError::Device {
        device: "gpu".into(),
        reason: format!("{} in fp8: {rule}", node.scope),
    })?;
    enqueue(ctx, product, &problem, &views, (filter.at, filter.scale), fused, node)
}

/// Launches the product if the kernels of Hopper take it; the node's operand 1 is the filter, its result 0 the output.
pub(in super::super) fn launch(
    ctx: &mut Lowering,
    product: &ImageProduct,
    fused: Fused,
    node: &Node,
) -> Result<bool, BackendError> {
    let problem = product.problem(ctx.precision(), fused.residual != DevicePtr::NULL);
    let Ok(views) = product.views(&problem, ctx.limits()) else { return Ok(false) };
    let weight = node.inputs[1];
    let filter = if product.upsampled { summed_taps(ctx, product, weight) } else { ctx.weight(weight) };
    enqueue(ctx, product, &problem, &views, (filter, DevicePtr::NULL), fused, node)?;
    Ok(true)
}

fn enqueue(
    ctx: &mut Lowering,
    product: &ImageProduct,
    problem: &ImageProblem,
    views: &Views,
    (filter, column_scale): (DevicePtr, DevicePtr),
    fused: Fused,
    node: &Node,
) -> Result<(), BackendError> {
    let choice = choose_image(problem, ctx.limits(), Some(ctx.tuning()));
    let operands = Operands {
        filter,
        out: ctx.ptr(node.outputs[0]),
        fused,
        partial: if choice.split { ctx.scratch(choice.partial_bytes()) } else { DevicePtr::NULL },
        tickets: if choice.split { ctx.counters(choice.tickets()) } else { DevicePtr::NULL },
        statistics: product.moments,
        column_scale,
    };
    let encode = |spec: &TensorMapSpec| ctx.tensor_map(spec);
    let args = arguments(product, views, &choice, &operands, encode)?;
    let blocks = (args.items as u32).min(choice.blocks as u32);
    ctx.launch(&choice.kernel(product.pass), [blocks, 1, 1], THREADS, choice.shared_bytes as u32, &args);
    Ok(())
}

/// The filter of an upsampling convolution on the small image, made once from the weights.
fn summed_taps(ctx: &mut Lowering, product: &ImageProduct, weight: ValueId) -> DevicePtr {
    const BLOCK: usize = 256;
    const VECTOR: usize = 8;
    debug_assert!(ctx.is_fixed(weight), "the sums would be those of weights before training");
    let channels: usize = product.sources.iter().map(|s| s.channels).sum();
    let elements = product.columns * TAPS * channels;
    let out = ctx.derived(elements * BF16);
    let vectors = elements / VECTOR;
    let columns = FastDivide::new(channels / VECTOR);
    let args = SumTapsArgs { filter: ctx.param_f32(weight), out, vectors: vectors as u32, columns };
    ctx.prepare("conv_sum_taps_bf16", [vectors.div_ceil(BLOCK) as u32, 1, 1], BLOCK as u32, 0, &args);
    out
}

/// The first pixel of the box that serves all taps of a phase.
fn halo_corner(phase: &Phase) -> (isize, isize) {
    let least = |of: fn(&Tap) -> isize| phase.taps.iter().map(of).min().unwrap_or(0);
    (least(|t| t.y), least(|t| t.x))
}

fn arguments(
    product: &ImageProduct,
    views: &Views,
    choice: &ImageChoice,
    operands: &Operands,
    encode: impl Fn(&TensorMapSpec) -> Result<TensorMap, BackendError>,
) -> Result<ImageArgs, BackendError> {
    let (tile, patch, fused) = (choice.tile, choice.patch, operands.fused);
    let extent = |of: fn(&Tap) -> isize| {
        let span = |phase: &Phase| {
            let (least, most) = (phase.taps.iter().map(of).min(), phase.taps.iter().map(of).max());
            (most.unwrap_or(0) - least.unwrap_or(0) + 1) as usize
        };
        views.phases.iter().map(span).max().unwrap_or(1)
    };
    let halo = choice.boxes == Boxes::Halo;
    let (reach_h, reach_w) = if halo { (extent(|t| t.y) - 1, extent(|t| t.x) - 1) } else { (0, 0) };
    let (box_w, box_h) = (patch.w + reach_w, patch.h + reach_h);
    let pitch = box_w * LINE;

    let mut args = ImageArgs::zeroed();
    let source_line = Line { channels: product.slab(), bytes: product.operand_bytes() };
    let pixels = |at, line, channels, size, view: &View, corner| {
        image_view(at, line, channels, product.images, size, view, corner)
    };
    for (s, source) in product.sources.iter().enumerate() {
        for (v, view) in views.sources.iter().enumerate() {
            let spec =
                pixels(source.at, source_line, source.channels, product.source_size, view, [box_w, box_h, patch.n]);
            args.sources[s * views.sources.len() + v] = encode(&spec)?;
        }
    }
    let depth: usize = product.sources.iter().map(|s| s.channels).sum();
    args.filter = encode(&filter(product, operands.filter, depth, tile.columns))?;
    let staged = tile.columns.is_multiple_of(SLAB);
    let mut taps = args.taps.iter_mut();
    let mut first_tap = 0;
    for (p, phase) in views.phases.iter().enumerate() {
        if staged {
            let map = |at| {
                encode(&pixels(
                    at,
                    Line::BF16,
                    product.columns,
                    product.out_size,
                    &phase.out,
                    [patch.w, patch.h, patch.n],
                ))
            };
            args.out[p] = map(operands.out)?;
            if fused.residual != DevicePtr::NULL {
                args.residual[p] = map(fused.residual)?;
            }
        }
        let corner = halo_corner(phase);
        for (tap, to) in phase.taps.iter().zip(&mut taps) {
            let (y, x) = if halo { corner } else { (tap.y, tap.x) };
            let shift = (tap.y - y) as usize * pitch + (tap.x - x) as usize * LINE;
            let (view, filter) = (tap.view as i16, tap.filter as i16);
            *to = TapArgs { view, filter, x: x as i16, y: y as i16, shift: shift as u32 };
        }
        let slabs: usize = product.sources.iter().map(|s| s.channels.div_ceil(product.slab())).sum();
        let count = phase.taps.len();
        args.phases[p] = PhaseArgs { first_tap: first_tap as i32, taps: count as i32, steps: int(slabs * count)? };
        first_tap += count;
    }

    let first = product.sources[0].channels;
    // Of all phases: the longest is the first along both sides.
    let (out_h, out_w) = views.phases.iter().fold((0, 0), |(h, w), p| (h.max(p.out.size.0), w.max(p.out.size.1)));
    let patches = patch.counts(product.images, (out_h, out_w));
    let tiles = patches.0 * patches.1 * patches.2 * views.phases.len() * choice.column_tiles;
    let split = if choice.split { choice.segments.count } else { 1 };
    let cell = Cell::of((out_h, out_w)).unwrap_or(Cell { w: 1, h: 1 });
    Ok(ImageArgs {
        direct_out: operands.out,
        direct_residual: fused.residual,
        bias: fused.bias,
        per_image: fused.per_image,
        partial: operands.partial,
        tickets: operands.tickets,
        statistics: operands.statistics,
        column_scale: operands.column_scale,
        images: int(product.images)?,
        out_h: int(out_h)?,
        out_w: int(out_w)?,
        columns: int(product.columns)?,
        source_slabs: int(first.div_ceil(product.slab()))?,
        source_channels: int(first)?,
        source_views: views.sources.len() as i32,
        patch: [patch.w, patch.h, patch.n].map(|n| n as i32),
        patches: [int(patches.0)?, int(patches.1)?, int(patches.2)?],
        column_tiles: choice.column_tiles as i32,
        items: int(tiles * split)?,
        split: split as i32,
        segment_steps: choice.segments.steps as i32,
        box_each_tap: i32::from(!halo),
        source_box_bytes: (box_w * box_h * patch.n * LINE) as u32,
        source_slot_bytes: choice.source_slot_bytes as u32,
        source_slots: choice.source_slots as u32,
        filter_slots: choice.filter_slots as u32,
        group_bytes: if halo { pitch } else { 8 * LINE } as u32,
        // The second 64 rows: further down the image, or the next image.
        block_bytes: match (halo, patch.h) {
            (false, _) => 64 * LINE,
            (true, 8) => box_h * pitch,
            (true, _) => 8 * pitch,
        } as u32,
        has_residual: i32::from(fused.residual != DevicePtr::NULL),
        scale: fused.scale,
        cell_w: cell.w as i32,
        cell_h: cell.h as i32,
        phase_count: views.phases.len() as i32,
        ..args
    })
}

/// What lies in 128 bytes of a box: channels of one pixel.
#[derive(Clone, Copy)]
pub(super) struct Line {
    channels: usize,
    /// Of one of them.
    bytes: usize,
}

impl Line {
    pub(super) const BF16: Self = Self { channels: SLAB, bytes: BF16 };
}

/// The map of a view of `[images, height, width, channels]` with boxes of a slab of `[w, h, n]` pixels.
pub(super) fn image_view(
    at: DevicePtr,
    line: Line,
    channels: usize,
    images: usize,
    (height, width): (usize, usize),
    view: &View,
    [w, h, n]: [usize; 3],
) -> TensorMapSpec {
    let pixel = channels * line.bytes;
    TensorMapSpec {
        base: at.offset((view.first.0 * width + view.first.1) * pixel),
        element_bytes: line.bytes as u32,
        dims: [channels, view.size.1, view.size.0, images].map(|d| d as u64).to_vec(),
        strides: [view.step * pixel, view.step * width * pixel, height * width * pixel].map(|s| s as u64).to_vec(),
        box_dims: [line.channels, w, h, n].map(|d| d as u32).to_vec(),
        swizzle: Swizzle::Bytes128,
    }
}

/// The map of the filter `[K, taps, C]`: lines of 64 channels (e4m3: 128), one an output channel forward and one a k backward.
fn filter(product: &ImageProduct, at: DevicePtr, depth: usize, tile_columns: usize) -> TensorMapSpec {
    let (c, k, lines) = match product.pass {
        Pass::Fprop => (depth, product.columns, tile_columns),
        Pass::Dgrad => (product.columns, depth, SLAB),
    };
    let taps = if product.upsampled { TAPS } else { product.geometry.kernel.0 * product.geometry.kernel.1 };
    let bytes = product.operand_bytes();
    TensorMapSpec {
        base: at,
        element_bytes: bytes as u32,
        dims: [c, taps, k].map(|d| d as u64).to_vec(),
        strides: [c * bytes, taps * c * bytes].map(|s| s as u64).to_vec(),
        box_dims: vec![product.slab() as u32, 1, lines as u32],
        swizzle: Swizzle::Bytes128,
    }
}

fn int(value: usize) -> Result<i32, BackendError> {
    i32::try_from(value).map_err(|_| BackendError::Device {
        device: "gpu".into(),
        reason: format!(
            "a convolution's dimension or number of tiles is {value}, at most {}; take a smaller batch",
            i32::MAX
        ),
    })
}

#[cfg(all(test, feature = "sim"))]
mod tests;
