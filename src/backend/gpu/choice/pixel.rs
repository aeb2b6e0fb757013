//! Pixel products on Hopper: weight gradients, whose depth is the pixels of the whole batch.
//!
//! A tile's rows are [`ROWS`] output channels, its columns up to three taps of one filter row under one or two slabs of
//! source channels, a step of its depth is a [`Patch`] of at most 64 pixels.

use std::fmt;
use std::str::FromStr;

use super::cost::{self, MULTIPROCESSORS, Prediction};
use super::patch::Patch;
use super::tuning::Tuning;
use super::{BARRIER_BYTES, FEWEST_CHANNELS, Illegal, LINE_BYTES, Origin, RunnerUp, SLAB};
use crate::backend::Precision;
use crate::backend::gpu::driver::DeviceLimits;
use crate::graph::ConvGeometry;

/// Output channels of a tile: 64 for each of two consumer warpgroups.
pub const ROWS: usize = 128;
/// Pixels of a step.
pub const DEPTH: usize = 64;

/// One weight gradient.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PixelProblem {
    /// Type of the activations.
    pub precision: Precision,
    /// N.
    pub images: usize,
    /// Height of dy.
    pub out_h: usize,
    /// Width of dy.
    pub out_w: usize,
    /// Pixels of an image of x.
    pub source_pixels: usize,
    /// R and S.
    pub kernel: (usize, usize),
    /// Channels of dy, K.
    pub rows: usize,
    /// Channels of x, C.
    pub channels: usize,
}

impl PixelProblem {
    /// The weight gradient in bf16 of a convolution from x of `source` pixels and `channels` channels to dy of `out` pixels
    /// and `rows` channels.
    pub fn new(
        geometry: &ConvGeometry,
        images: usize,
        source: (usize, usize),
        out: (usize, usize),
        channels: usize,
        rows: usize,
    ) -> Self {
        let all = images * out.0 * out.1;
        let (images, source, out) = if is_line(geometry) { (1, (1, all), (1, all)) } else { (images, source, out) };
        Self {
            precision: Precision::Bf16,
            images,
            out_h: out.0,
            out_w: out.1,
            source_pixels: source.0 * source.1,
            kernel: geometry.kernel,
            rows,
            channels,
        }
    }

    /// The same product on activations of another type.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Floating-point operations, a multiply-add counted as two.
    pub fn flops(&self) -> f64 {
        let pixels = (self.images * self.out_h * self.out_w) as f64;
        2.0 * pixels * (self.kernel.0 * self.kernel.1 * self.rows * self.channels) as f64
    }

    /// Bytes of dw in f32.
    pub fn result_bytes(&self) -> f64 {
        4.0 * (self.kernel.0 * self.kernel.1 * self.rows * self.channels) as f64
    }

    /// Bytes of dy, x and dw, each once.
    pub fn bytes(&self) -> f64 {
        let dy = self.images * self.out_h * self.out_w * self.rows;
        let x = self.images * self.source_pixels * self.channels;
        2.0 * (dy + x) as f64 + self.result_bytes()
    }
}

/// Whether no pixel has neighbours: all pixels of the batch are then one line, whose patches are full.
pub fn is_line(geometry: &ConvGeometry) -> bool {
    geometry.kernel == (1, 1) && geometry.stride == 1 && geometry.padding == (0, 0, 0, 0)
}

/// One candidate, `128.8x8x1.s14.3`: columns a tap, patch, splits, stages. Columns and stages change no bit; patch and
/// splits are the order of sums, and belong to the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PixelConfig {
    /// Source channels under each tap: 128 or 64.
    pub columns: usize,
    /// Pixels of a step.
    pub patch: Patch,
    /// Parts of the depth that are asked for.
    pub splits: usize,
    /// Slots of the ring.
    pub stages: usize,
}

impl fmt::Display for PixelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.s{}.{}", self.columns, self.patch, self.splits, self.stages)
    }
}

impl FromStr for PixelConfig {
    type Err = Illegal;

    fn from_str(text: &str) -> Result<Self, Illegal> {
        let parse = || {
            let [columns, patch, splits, stages] = text.split('.').collect::<Vec<_>>()[..] else { return None };
            Some(Self {
                columns: columns.parse().ok()?,
                patch: patch.parse().ok()?,
                splits: splits.strip_prefix('s')?.parse().ok()?,
                stages: stages.parse().ok()?,
            })
        };
        parse().ok_or_else(|| {
            Illegal(format!("{text:?} is no candidate of a weight gradient, which reads 128.8x8x1.s14.3"))
        })
    }
}

/// How a problem is cut by a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelCut {
    pub(super) taps_a_tile: usize,
    pub(super) tiles: usize,
    pub(super) splits: usize,
    pub(super) patches_a_split: usize,
}

/// A launch of `conv_hopper_wgrad`, and why it was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelChoice {
    /// Source channels under each tap: 128 or 64.
    pub columns: usize,
    /// Taps of a tile, neighbours in a filter row; the last tile of a row may have fewer.
    pub taps_a_tile: usize,
    /// Tiles along K.
    pub row_tiles: usize,
    /// Tiles along a filter row.
    pub tap_tiles: usize,
    /// Tiles along C.
    pub channel_tiles: usize,
    /// Pixels of a step.
    pub patch: Patch,
    /// Patches along x, y and the images.
    pub patches: (usize, usize, usize),
    /// Parts of the depth; each has patches.
    pub splits: usize,
    /// Patches of a split; the last may have fewer.
    pub patches_a_split: usize,
    /// Work items: tiles times splits.
    pub items: usize,
    /// Slots of the ring.
    pub stages: usize,
    /// Bytes of a slot: dy, then x under each tap.
    pub stage_bytes: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Predicted time.
    pub predicted: Prediction,
    /// Model or table.
    pub origin: Origin,
    /// The best of the other candidates, by prediction.
    pub runner_up: Option<RunnerUp>,
}

impl PixelChoice {
    /// Name of the kernel.
    pub fn kernel(&self) -> String {
        format!("conv_hopper_wgrad_{}x{}_bf16", self.taps_a_tile, self.columns)
    }

    /// Tiles of dw.
    pub fn tiles(&self) -> usize {
        self.items / self.splits
    }

    /// What was chosen, as a candidate.
    pub fn config(&self) -> PixelConfig {
        PixelConfig { columns: self.columns, patch: self.patch, splits: self.splits, stages: self.stages }
    }
}

impl fmt::Display for PixelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} tiles of {} taps", self.config(), self.tiles(), self.taps_a_tile)?;
        if self.splits > 1 {
            write!(f, ", {} splits of {} patches", self.splits, self.patches_a_split)?;
        }
        write!(f, ", {} {:.1} us, limited by {}", self.origin, self.predicted.us, self.predicted.limit)?;
        if let Some(second) = &self.runner_up {
            let more = (second.us / self.predicted.us - 1.0) * 100.0;
            write!(f, "; next best {}, {more:+.0} %", second.name)?;
        }
        Ok(())
    }
}

/// Whether the kernels of Hopper compute this weight gradient, or why not.
///
/// # Errors
/// The rule that speaks against it.
pub fn takes_pixel(p: &PixelProblem, limits: &DeviceLimits) -> Result<(), &'static str> {
    if limits.compute_capability.0 != 9 {
        return Err("wgmma and its kernels need compute capability 9.0");
    }
    if p.precision != Precision::Bf16 {
        return Err("the tensor cores take bf16");
    }
    if !p.channels.is_multiple_of(8) || !p.rows.is_multiple_of(8) {
        return Err("TMA needs channels in multiples of 8");
    }
    if p.channels < FEWEST_CHANNELS || p.rows < FEWEST_CHANNELS {
        return Err("fewer than 32 channels would leave most of a tile empty");
    }
    if candidates(p, limits).is_empty() {
        return Err("no tile fits the shared memory of a block");
    }
    Ok(())
}

/// Chooses by the cost model; a measured table may change columns and stages.
pub fn choose_pixel(p: &PixelProblem, limits: &DeviceLimits, tuning: Option<&Tuning>) -> PixelChoice {
    let mut all = candidates(p, limits);
    if all.is_empty() {
        // Only where `takes_pixel` refuses: a choice all the same, for callers that want to know what it would be.
        return configured(p, &PixelConfig { columns: 64, patch: patch(p), splits: 1, stages: FEWEST_STAGES });
    }
    let runner_up = |i: usize| all.get(i).map(|c| RunnerUp { name: c.config().to_string(), us: c.predicted.us });
    if let Some((name, Ok(choice))) =
        tuning.and_then(|t| t.pixel(p)).map(|(name, c)| (name, override_with(p, limits, &c)))
    {
        return PixelChoice { origin: Origin::Table(name.to_string()), runner_up: runner_up(0), ..choice };
    }
    let runner_up = runner_up(1);
    PixelChoice { runner_up, ..all.swap_remove(0) }
}

/// The choice of a measured table: it must keep the model's order of sums.
///
/// # Errors
/// The rule that the candidate breaks.
pub fn override_with(p: &PixelProblem, limits: &DeviceLimits, c: &PixelConfig) -> Result<PixelChoice, Illegal> {
    let choice = check(p, limits, c)?;
    match candidates(p, limits).first() {
        Some(model) if (model.patch, model.splits) != (choice.patch, choice.splits) => {
            let (patch, splits) = (model.patch, model.splits);
            Err(Illegal(format!("{c}: patch and splits are the order of sums, here {patch} and s{splits}")))
        }
        _ => Ok(choice),
    }
}

/// The candidates that keep the model's order of sums: its choice first, then columns and slots of the ring changed.
pub fn alternatives(p: &PixelProblem, limits: &DeviceLimits) -> Vec<PixelChoice> {
    let Some(model) = candidates(p, limits).into_iter().next() else { return Vec::new() };
    let others =
        [128, 64].into_iter().flat_map(|columns| (FEWEST_STAGES..=MOST_STAGES).map(move |stages| (columns, stages)));
    let others = others.filter_map(|(columns, stages)| {
        let config = PixelConfig { columns, stages, ..model.config() };
        check(p, limits, &config).ok().filter(|c| (c.patch, c.splits) == (model.patch, model.splits))
    });
    std::iter::once(model.clone()).chain(others.filter(|c| c.config() != model.config())).collect()
}

/// Fewest slots of the ring.
const FEWEST_STAGES: usize = 2;
/// More slots than this hide no more latency.
const MOST_STAGES: usize = 6;
/// Workspace for partial results at most.
const MOST_PARTIAL_BYTES: usize = 512 << 20;
/// Rounds of work items to consider.
const MOST_WAVES: usize = 4;
/// The tile of ones whose product with dy is db.
const ONES_BYTES: usize = 1024;

/// All legal candidates, the best prediction first.
pub fn candidates(p: &PixelProblem, limits: &DeviceLimits) -> Vec<PixelChoice> {
    let mut all: Vec<PixelChoice> = [128, 64]
        .into_iter()
        .flat_map(|columns| {
            let one = configured(p, &PixelConfig { columns, patch: patch(p), splits: 1, stages: 0 });
            let space = (limits.shared_bytes as usize).saturating_sub(one.shared_bytes);
            let stages = (space / one.stage_bytes).min(MOST_STAGES);
            let waves = (1..=MOST_WAVES).map(move |w| (w * MULTIPROCESSORS / one.items).max(1));
            waves.map(move |splits| PixelConfig { columns, patch: one.patch, splits, stages })
        })
        .filter_map(|c| check(p, limits, &c).ok())
        .collect();
    all.sort_by(|a, b| a.predicted.us.total_cmp(&b.predicted.us));
    all.dedup();
    all
}

/// The choice that a candidate makes, if the kernels can run it.
///
/// # Errors
/// The rule that it breaks.
pub fn check(p: &PixelProblem, limits: &DeviceLimits, c: &PixelConfig) -> Result<PixelChoice, Illegal> {
    let fail = |rule: String| Err(Illegal(format!("{c}: {rule}")));
    if c.columns != 128 && c.columns != 64 {
        return fail("a tile has 128 or 64 columns a tap".into());
    }
    if c.patch.pixels() > DEPTH {
        return fail(format!("the patch has {} pixels, a step {DEPTH}", c.patch.pixels()));
    }
    if c.stages < FEWEST_STAGES || c.splits == 0 {
        return fail(format!("at least {FEWEST_STAGES} stages and one split"));
    }
    let choice = configured(p, c);
    if choice.splits > 1 && choice.splits as f64 * p.result_bytes() > MOST_PARTIAL_BYTES as f64 {
        return fail(format!("partial results of more than {} MiB", MOST_PARTIAL_BYTES >> 20));
    }
    if choice.shared_bytes > limits.shared_bytes as usize {
        let (needs, has) = (choice.shared_bytes, limits.shared_bytes);
        return fail(format!("{needs} bytes of shared memory, a block has {has}"));
    }
    Ok(choice)
}

fn patch(p: &PixelProblem) -> Patch {
    Patch::best(DEPTH, p.images, (p.out_h, p.out_w), p.kernel)
}

/// What a candidate amounts to, legal or not.
fn configured(p: &PixelProblem, c: &PixelConfig) -> PixelChoice {
    let (kh, kw) = p.kernel;
    // A row of up to three taps is one tile; longer rows are cut evenly.
    let taps_a_tile = kw.div_ceil(kw.div_ceil(3));
    let tap_tiles = kw.div_ceil(taps_a_tile);
    let (row_tiles, channel_tiles) = (p.rows.div_ceil(ROWS), p.channels.div_ceil(c.columns));
    let tiles = row_tiles * kh * tap_tiles * channel_tiles;
    let patches = c.patch.counts(p.images, (p.out_h, p.out_w));
    let steps = (patches.0 * patches.1 * patches.2).max(1);
    let patches_a_split = steps.div_ceil(c.splits.clamp(1, steps));
    let splits = steps.div_ceil(patches_a_split);
    let stage_bytes = DEPTH * LINE_BYTES * (ROWS / SLAB + taps_a_tile * c.columns / SLAB);
    let cut = PixelCut { taps_a_tile, tiles, splits, patches_a_split };
    PixelChoice {
        columns: c.columns,
        taps_a_tile,
        row_tiles,
        tap_tiles,
        channel_tiles,
        patch: c.patch,
        patches,
        splits,
        patches_a_split,
        items: tiles * splits,
        stages: c.stages,
        stage_bytes,
        shared_bytes: c.stages * stage_bytes + ONES_BYTES + BARRIER_BYTES,
        predicted: cost::pixel(p, c, &cut),
        origin: Origin::Model,
        runner_up: None,
    }
}

#[cfg(test)]
mod tests;
