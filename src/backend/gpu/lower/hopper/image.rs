//! The launcher of `conv_hopper_{fprop,dgrad}`: from a convolution's geometry to the tables of
//! `kernels/conv/image_args.cuh`.

use bytemuck::{Pod, Zeroable};

use super::views::{Phase, Tap, View, Views, upsampled, views};
use crate::backend::gpu::choice::{
    Boxes, Cell, ImageChoice, ImageProblem, LINE_BYTES, Pass, SLAB, THREADS, choose_image, takes_image,
};
use crate::backend::gpu::driver::{DeviceLimits, DevicePtr, Swizzle, TensorMap, TensorMapSpec};
use crate::backend::gpu::lower::Lowering;
use crate::backend::gpu::lower::conv::{Fused, Images};
use crate::backend::gpu::lower::fast_divide::FastDivide;
use crate::backend::gpu::lower::linear::POINTWISE;
use crate::backend::{BackendError, Precision};
use crate::graph::{ConvGeometry, Graph, Node, Op, Shape, ValueId};

/// Bytes of a bf16.
const BF16: usize = 2;
/// Bytes of a slab of one pixel.
const LINE: usize = LINE_BYTES;
/// Lengths of the arrays in the arguments.
const VIEWS: usize = 4;
const TAPS: usize = 16;
const PHASES: usize = 4;

/// `struct ImageTap` of `kernels/conv/image_args.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct TapArgs {
    view: i16,
    filter: i16,
    x: i16,
    y: i16,
    shift: u32,
}

/// `struct ImagePhase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct PhaseArgs {
    first_tap: i32,
    taps: i32,
    steps: i32,
}

/// `struct ImageArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct ImageArgs {
    sources: [TensorMap; VIEWS],
    filter: TensorMap,
    out: [TensorMap; PHASES],
    residual: [TensorMap; PHASES],
    taps: [TapArgs; TAPS],
    phases: [PhaseArgs; PHASES],
    direct_out: DevicePtr,
    direct_residual: DevicePtr,
    bias: DevicePtr,
    per_image: DevicePtr,
    partial: DevicePtr,
    tickets: DevicePtr,
    statistics: DevicePtr,
    column_scale: DevicePtr,
    images: i32,
    out_h: i32,
    out_w: i32,
    columns: i32,
    source_slabs: i32,
    source_channels: i32,
    source_views: i32,
    patch: [i32; 3],
    patches: [i32; 3],
    column_tiles: i32,
    items: i32,
    split: i32,
    segment_steps: i32,
    box_each_tap: i32,
    source_box_bytes: u32,
    source_slot_bytes: u32,
    source_slots: u32,
    filter_slots: u32,
    group_bytes: u32,
    block_bytes: u32,
    has_residual: i32,
    scale: f32,
    cell_w: i32,
    cell_h: i32,
    phase_count: i32,
    padding: [u32; 7],
}

/// `struct SumTapsArgs` of `kernels/conv/sum_taps.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SumTapsArgs {
    filter: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    columns: FastDivide,
}

/// One tensor whose channels are part of the depth; several are read as their concatenation.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::gpu) struct Source {
    /// `[images, height, width, channels]`.
    pub at: DevicePtr,
    /// Its channels.
    pub channels: usize,
}

/// A convolution or linear layer, forward or the data gradient.
#[derive(Clone, Debug)]
pub(in super::super) struct ImageProduct {
    /// Which.
    pub pass: Pass,
    /// Its filter, of `[K, taps, C]`.
    pub geometry: ConvGeometry,
    /// What is read: x or dy.
    pub sources: Vec<Source>,
    /// Rows and columns of a source image.
    pub source_size: (usize, usize),
    /// N.
    pub images: usize,
    /// Rows and columns of an output image.
    pub out_size: (usize, usize),
    /// Output channels.
    pub columns: usize,
    /// Whether the convolution is one of the source doubled in size.
    pub upsampled: bool,
    /// Where moments of the result go; null if nobody asks for them.
    pub moments: DevicePtr,
    /// Whether sources and filter are e4m3.
    pub e4m3: bool,
}

impl ImageProduct {
    /// As the launchers see it. `source` is the operand before fusion.
    pub fn new(pass: Pass, geometry: &ConvGeometry, source: Images, sources: Vec<Source>, out: Images) -> Self {
        Self {
            pass,
            geometry: *geometry,
            sources,
            source_size: (source.height, source.width),
            images: out.count,
            out_size: (out.height, out.width),
            columns: out.channels,
            upsampled: false,
            e4m3: false,
            moments: DevicePtr::NULL,
        }
    }

    /// The forward pass of a node, if it is one of a convolution or linear layer.
    pub fn forward(graph: &Graph, node: &Node, sources: Vec<Source>) -> Option<Self> {
        let (geometry, images): (_, fn(Shape) -> Images) = match &node.op {
            Op::Conv2d(geometry, _) => (geometry, Images::of),
            Op::Linear(_) => (&POINTWISE, Images::column),
            _ => return None,
        };
        let [x, y] = [node.inputs[0], node.outputs[0]].map(|v| images(graph.shape(v)));
        Some(Self::new(Pass::Fprop, geometry, x, sources, y))
    }

    /// The same product, its sources half as large as its operand if `upsampled`.
    pub fn upsampled(self, upsampled: bool) -> Self {
        let (h, w) = self.source_size;
        let source_size = if upsampled { (h / 2, w / 2) } else { (h, w) };
        Self { upsampled, source_size, ..self }
    }

    /// The same product, which stores moments of its result.
    pub fn with_moments(self, moments: DevicePtr) -> Self {
        Self { moments, ..self }
    }

    /// The same product of e4m3.
    pub fn quantised(self) -> Self {
        Self { e4m3: true, ..self }
    }

    /// Bytes of an element of sources and filter.
    fn operand_bytes(&self) -> usize {
        if self.e4m3 { 1 } else { BF16 }
    }

    /// Channels of a slab.
    fn slab(&self) -> usize {
        LINE / self.operand_bytes()
    }

    fn channels(&self) -> Vec<usize> {
        self.sources.iter().map(|s| s.channels).collect()
    }

    fn problem(&self, precision: Precision, residual: bool) -> ImageProblem {
        let (geometry, images, source, out) = (&self.geometry, self.images, self.source_size, self.out_size);
        let channels = self.channels();
        let problem = match self.pass {
            Pass::Fprop if self.upsampled => ImageProblem::upsample(images, source, channels[0], self.columns),
            Pass::Fprop => ImageProblem::fprop(geometry, images, source, out, &channels, self.columns),
            Pass::Dgrad => ImageProblem::dgrad(geometry, images, source, out, channels.iter().sum(), self.columns),
        };
        let problem = problem.with_residual(residual).with_precision(precision).with_e4m3(self.e4m3);
        if self.moments == DevicePtr::NULL { problem } else { problem.with_moments() }
    }

    /// Whether the kernels take this product on this device, or why not.
    ///
    /// # Errors
    /// The reason.
    pub fn taken(&self, precision: Precision, residual: bool, limits: &DeviceLimits) -> Result<(), &'static str> {
        self.views(&self.problem(precision, residual), limits).map(|_| ())
    }

    /// The cells whose moments it can store, and how many an image has; none if its images cannot be cut into cells.
    pub fn cells(&self, precision: Precision, residual: bool) -> Option<(Cell, usize)> {
        let problem = self.problem(precision, residual).with_moments();
        Some((problem.cell?, problem.pixels_an_image() / problem.cell?.pixels()))
    }

    /// The views, if the kernels take this product on this device.
    fn views(&self, problem: &ImageProblem, limits: &DeviceLimits) -> Result<Views, &'static str> {
        takes_image(problem, limits)?;
        if self.upsampled && (self.geometry != ConvGeometry::SAME_3X3 || self.sources.len() != 1) {
            return Err("only one source is upsampled, by a 3x3 convolution that keeps the size");
        }
        let views = match self.upsampled {
            true => upsampled(self.source_size),
            false => views(self.pass, &self.geometry, self.source_size, self.out_size)?,
        };
        let taps: usize = views.phases.iter().map(|phase| phase.taps.len()).sum();
        if views.sources.len() * self.sources.len() > VIEWS || taps > TAPS || views.phases.len() > PHASES {
            return Err("more views, taps or phases than a launch has tables for");
        }
        if self.sources.len() > 2 || (self.pass == Pass::Dgrad && self.sources.len() > 1) {
            return Err("two sources at most, and one of a data gradient");
        }
        Ok(views)
    }
}

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
    let choice = choose_image(problem, ctx.limits(), None);
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
