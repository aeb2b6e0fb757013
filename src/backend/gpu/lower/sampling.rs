//! The sampling step, its timestep and its counter.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use super::diffusion::{BLOCK, Images};
use crate::backend::BackendError;
use crate::backend::gpu::driver::DevicePtr;
use crate::diffusion::{Clip, LearnedVariance, NormScope, StepTable};
use crate::graph::op::SamplerStep;
use crate::graph::{Node, NoiseSource, Op, ValueId};
use crate::levels::Levels;

/// Bytes of the two histograms of an image in threshold.cu: `2 * BINS` counts.
const HISTOGRAM_BYTES: usize = 2 * 2048 * 4;
/// Bytes of `struct Selection` of select.cuh.
const SELECTION_BYTES: usize = 16;
/// `SELECT_THREADS` of select.cuh.
const SELECT_BLOCK: u32 = 256;
/// `SUMS_THREADS` of image_sums.cu.
const SUMS_BLOCK: u32 = 512;
/// Passes of the selection.
const PASSES: u32 = 3;
/// An image of up to so many elements is thresholded by one block in shared memory (64 KiB of keys, so that two blocks
/// share a multiprocessor); beyond, one block would be slower than the eight short launches of the other way.
const SHARED_ELEMENTS: u32 = 1 << 14;
/// Quads that a thread of the counting kernel takes: each block also pays for 4096 histogram cells.
const COUNT_QUADS: u32 = 16;

/// `struct StepTimestepArgs` of `kernels/diffusion/sampler.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct StepTimestepArgs {
    step: DevicePtr,
    rows: DevicePtr,
    t: DevicePtr,
    steps: u32,
    batch: u32,
}

/// `struct AdvanceArgs` of `kernels/diffusion/sampler.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdvanceArgs {
    step: DevicePtr,
    next: DevicePtr,
}

/// `struct ModelOutput` of `kernels/diffusion/step_row.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ModelOutput {
    data: DevicePtr,
    factors: DevicePtr,
    guidance: f64,
    guided: u32,
    channels: u32,
}

/// `struct ImageLayout` of `kernels/diffusion/step_row.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ImageLayout {
    images: u32,
    elements: u32,
    channels: u32,
    whole: u32,
}

/// `struct SamplerStepArgs` of `kernels/diffusion/sampler.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SamplerStepArgs {
    x: DevicePtr,
    x0_prev: DevicePtr,
    step: DevicePtr,
    sample_index: DevicePtr,
    key: DevicePtr,
    z: DevicePtr,
    rows: DevicePtr,
    scales: DevicePtr,
    x_next: DevicePtr,
    x0: DevicePtr,
    picture: DevicePtr,
    gradient: DevicePtr,
    norms: DevicePtr,
    model: ModelOutput,
    range: f64,
    gradient_scale: f64,
    layout: ImageLayout,
    steps: u32,
    blocks_per_image: u32,
    clip: u32,
    variance: u32,
    levels: u32,
    batch_norms: u32,
}

/// `struct SamplerHistoryArgs` of `kernels/diffusion/sampler.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SamplerHistoryArgs {
    step: SamplerStepArgs,
    x0_prev2: DevicePtr,
    saved: DevicePtr,
    x0_prev2_next: DevicePtr,
    saved_next: DevicePtr,
}

/// `struct ImageSumsArgs` of `kernels/diffusion/image_sums.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ImageSumsArgs {
    step: DevicePtr,
    sample_index: DevicePtr,
    key: DevicePtr,
    z: DevicePtr,
    rows: DevicePtr,
    out: DevicePtr,
    model: ModelOutput,
    rescale: f64,
    layout: ImageLayout,
    steps: u32,
    unused: u32,
}

/// `struct ThresholdArgs` of `kernels/diffusion/threshold.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ThresholdArgs {
    x: DevicePtr,
    step: DevicePtr,
    rows: DevicePtr,
    scales: DevicePtr,
    histograms: DevicePtr,
    selections: DevicePtr,
    model: ModelOutput,
    fraction: f64,
    max_value: f64,
    layout: ImageLayout,
    lower: u32,
    upper: u32,
    steps: u32,
    blocks_per_image: u32,
    pass: u32,
    unused: u32,
}

pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::SamplerStep(s) => return sampler_step(ctx, node, s),
        Op::StepTimestep { table, batch } => {
            let batch = *batch as u32;
            let args = StepTimestepArgs {
                step: ctx.ptr(node.inputs[0]),
                rows: rows(ctx, table),
                t: ctx.ptr(node.outputs[0]),
                steps: table.rows.len() as u32,
                batch,
            };
            ctx.launch("step_timestep", [batch.div_ceil(BLOCK), 1, 1], BLOCK, 0, &args);
        }
        _ => {
            let args = AdvanceArgs { step: ctx.ptr(node.inputs[0]), next: ctx.ptr(node.outputs[0]) };
            ctx.launch("advance", [1, 1, 1], 32, 0, &args);
        }
    }
    Ok(())
}

/// `struct StepRow` of `kernels/diffusion/step_row.cuh`, one a step.
fn rows(ctx: &mut Lowering, table: &StepTable) -> DevicePtr {
    ctx.constant(&table.packed())
}

fn sampler_step(ctx: &mut Lowering, node: &Node, s: &SamplerStep) -> Result<(), BackendError> {
    let images = Images::new(ctx.shape(node.inputs[0]))?;
    let mut model = ModelOutput {
        data: ctx.ptr(node.inputs[1]),
        factors: DevicePtr::NULL,
        guidance: s.guidance.map_or(1.0, |g| g.scale),
        guided: u32::from(s.guidance.is_some()),
        channels: ctx.shape(node.inputs[1]).channels() as u32,
    };
    let layout =
        ImageLayout { images: images.count, elements: images.elements, channels: images.channels, whole: images.whole };
    let rows = rows(ctx, &s.table);
    let (clip, range) = match s.table.clip {
        Clip::None => (0, 0.0),
        Clip::Range(range) => (1, range),
        Clip::Dynamic { .. } => (2, 0.0),
    };
    let z = if s.noise == NoiseSource::Given { ctx.ptr(node.inputs[6]) } else { DevicePtr::NULL };
    let sums = ImageSumsArgs {
        step: ctx.ptr(node.inputs[3]),
        sample_index: ctx.ptr(node.inputs[4]),
        key: ctx.ptr(node.inputs[5]),
        z,
        rows,
        out: DevicePtr::NULL,
        model,
        rescale: s.guidance.map_or(0.0, |g| g.rescale),
        layout,
        steps: s.table.rows.len() as u32,
        unused: 0,
    };
    if sums.rescale != 0.0 {
        model.factors = ctx.scratch(8 * images.count as usize);
        launch_sums(ctx, "guidance_factors", ImageSumsArgs { out: model.factors, ..sums });
    }
    let mut norms = DevicePtr::NULL;
    if s.table.has_correctors() {
        norms = ctx.scratch(16 * images.count as usize);
        launch_sums(ctx, "corrector_norms", ImageSumsArgs { out: norms, model, ..sums });
    }
    let args = SamplerStepArgs {
        x: ctx.ptr(node.inputs[0]),
        x0_prev: ctx.ptr(node.inputs[2]),
        step: ctx.ptr(node.inputs[3]),
        sample_index: ctx.ptr(node.inputs[4]),
        key: ctx.ptr(node.inputs[5]),
        z,
        rows,
        scales: ctx.scratch(8 * images.count as usize),
        x_next: ctx.ptr(node.outputs[0]),
        x0: ctx.ptr(node.outputs[1]),
        picture: if s.picture.is_some() { ctx.ptr(node.outputs[2]) } else { DevicePtr::NULL },
        gradient: s.gradient_operand().map_or(DevicePtr::NULL, |at| ctx.ptr(node.inputs[at])),
        norms,
        model,
        range,
        gradient_scale: s.classifier_scale.unwrap_or_default(),
        layout,
        steps: s.table.rows.len() as u32,
        blocks_per_image: images.blocks(),
        clip,
        variance: match s.table.learned_variance {
            None => 0,
            Some(LearnedVariance::Direct) => 1,
            Some(LearnedVariance::LogRange) => 2,
        },
        levels: match s.picture.unwrap_or_default() {
            Levels::Rounded => 0,
            Levels::Truncated => 1,
            Levels::Unit => 2,
        },
        batch_norms: u32::from(s.table.norms == NormScope::Batch),
    };
    if let Clip::Dynamic { ratio, max_value } = s.table.clip {
        let position = ratio * (images.elements - 1) as f64;
        let lower = position.floor();
        let threshold = ThresholdArgs {
            x: args.x,
            step: args.step,
            rows,
            scales: args.scales,
            histograms: DevicePtr::NULL,
            selections: DevicePtr::NULL,
            model,
            fraction: position - lower,
            max_value,
            layout,
            lower: lower as u32,
            upper: (lower as u32 + 1).min(images.elements - 1),
            steps: args.steps,
            blocks_per_image: images.quads.div_ceil(SELECT_BLOCK * COUNT_QUADS),
            pass: 0,
            unused: 0,
        };
        launch_threshold(ctx, threshold);
    }
    let grid = [images.count * images.blocks(), 1, 1];
    if s.table.history().any() {
        let place = |values: &[ValueId], at: Option<usize>| at.map_or(DevicePtr::NULL, |at| ctx.ptr(values[at]));
        let [x0_prev2, saved] = s.history_operands().map(|at| place(&node.inputs, at));
        let [x0_prev2_next, saved_next] = s.history_results().map(|at| place(&node.outputs, at));
        let args = SamplerHistoryArgs { step: args, x0_prev2, saved, x0_prev2_next, saved_next };
        ctx.launch(&format!("sampler_history_{}", ctx.dtype()), grid, BLOCK, 0, &args);
    } else {
        ctx.launch(&format!("sampler_step_{}", ctx.dtype()), grid, BLOCK, 0, &args);
    }
    Ok(())
}

/// Sums over whole images, a block an image.
fn launch_sums(ctx: &mut Lowering, name: &str, args: ImageSumsArgs) {
    ctx.launch(&format!("{name}_{}", ctx.dtype()), [args.layout.images, 1, 1], SUMS_BLOCK, 0, &args);
}

/// The divisors of dynamic thresholding, one an image.
fn launch_threshold(ctx: &mut Lowering, args: ThresholdArgs) {
    let ThresholdArgs { layout: ImageLayout { images, elements, .. }, .. } = args;
    let dtype = ctx.dtype();
    if elements <= SHARED_ELEMENTS {
        let shared = HISTOGRAM_BYTES as u32 + 4 * elements;
        return ctx.launch(&format!("threshold_image_{dtype}"), [images, 1, 1], SELECT_BLOCK, shared, &args);
    }
    let histograms = ctx.scratch(HISTOGRAM_BYTES * images as usize);
    let selections = ctx.scratch(SELECTION_BYTES * images as usize);
    let args = ThresholdArgs { histograms, selections, ..args };
    ctx.launch("threshold_begin", [images, 1, 1], SELECT_BLOCK, 0, &args);
    for pass in 0..PASSES {
        let args = ThresholdArgs { pass, ..args };
        let grid = [images * args.blocks_per_image, 1, 1];
        ctx.launch(&format!("threshold_count_{dtype}"), grid, SELECT_BLOCK, HISTOGRAM_BYTES as u32, &args);
        ctx.launch("threshold_select", [images, 1, 1], SELECT_BLOCK, 0, &args);
    }
}
