//! Image products on Hopper: forward passes and data gradients of convolutions and linear layers.
//!
//! The rows of a tile are a [`Patch`] of output pixels, its columns are output channels, its depth are *steps* of
//! [`SLAB`] channels of one source under one tap: `step = slab * taps + tap`, the slabs of source 0 first. All candidates
//! add in that order, so they agree in every bit.

mod config;
mod problem;

use std::fmt;

use super::cell::Cell;
use super::cost::{self, Prediction};
use super::patch::Patch;
use super::tuning::Tuning;
use super::{BARRIER_BYTES, FEWEST_CHANNELS, Illegal, LINE_BYTES, Origin, RunnerUp, SLAB, SLOT_ALIGN};
use crate::backend::Precision;
use crate::backend::gpu::driver::DeviceLimits;
pub use config::{Boxes, ImageConfig, ImageTile};
pub use problem::{ImageProblem, Pass, Segments, segments};

/// A launch of `conv_hopper_{fprop,dgrad}`, and why it was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageChoice {
    /// The tile.
    pub tile: ImageTile,
    /// How pixels come to shared memory.
    pub boxes: Boxes,
    /// The rows of a tile.
    pub patch: Patch,
    /// Whether source and filter are e4m3.
    pub e4m3: bool,
    /// Patches along x, y and the images, of each phase.
    pub patches: (usize, usize, usize),
    /// Tiles along the output channels.
    pub column_tiles: usize,
    /// How the depth is cut.
    pub segments: Segments,
    /// Whether each segment is a work item of its own.
    pub split: bool,
    /// Work items: phases x patches x column tiles, times the segments if split.
    pub items: usize,
    /// Thread blocks: `min(items, multiprocessors)`. They take items in turn.
    pub blocks: usize,
    /// Slots of the source ring.
    pub source_slots: usize,
    /// Bytes of each, a multiple of [`SLOT_ALIGN`].
    pub source_slot_bytes: usize,
    /// Slots of the filter ring, [`ImageTile::filter_slot_bytes`] each.
    pub filter_slots: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Predicted time.
    pub predicted: Prediction,
    /// Model or table.
    pub origin: Origin,
    /// The best of the other candidates, by prediction.
    pub runner_up: Option<RunnerUp>,
}

impl ImageChoice {
    /// Name of the kernel.
    pub fn kernel(&self, pass: Pass) -> String {
        let operands = if self.e4m3 { "e4m3" } else { "bf16" };
        format!("conv_hopper_{}_{}_{operands}", pass.name(), self.tile.name())
    }

    /// Output tiles of all phases.
    pub fn tiles(&self) -> usize {
        self.items / if self.split { self.segments.count } else { 1 }
    }

    /// Tickets of a split product, a u32 each that is zero before and after the launch; else 0.
    pub fn tickets(&self) -> usize {
        if self.split { self.tiles() } else { 0 }
    }

    /// Workspace of a split product: an f32 tile an item; else 0.
    pub fn partial_bytes(&self) -> usize {
        if self.split { 4 * self.items * self.tile.rows * self.tile.columns } else { 0 }
    }

    /// What was chosen, as a candidate.
    pub fn config(&self) -> ImageConfig {
        let Self { tile, boxes, patch, split, source_slots, filter_slots, .. } = *self;
        ImageConfig { tile, boxes, patch, split, source_slots, filter_slots }
    }
}

impl fmt::Display for ImageChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} items on {} blocks", self.config(), self.items, self.blocks)?;
        if self.segments.count > 1 {
            write!(f, ", {} segments of {} steps", self.segments.count, self.segments.steps)?;
        }
        write!(f, ", {} {:.1} us, limited by {}", self.origin, self.predicted.us, self.predicted.limit)?;
        if let Some(second) = &self.runner_up {
            let more = (second.us / self.predicted.us - 1.0) * 100.0;
            write!(f, "; next best {}, {more:+.0} %", second.name)?;
        }
        Ok(())
    }
}

/// Whether the kernels of Hopper compute this product, or why not. A function of the device's capability and one image's
/// shape.
///
/// # Errors
/// The rule that speaks against it.
pub fn takes_image(p: &ImageProblem, limits: &DeviceLimits) -> Result<(), &'static str> {
    if limits.compute_capability.0 != 9 {
        return Err("wgmma and its kernels need compute capability 9.0");
    }
    if p.precision != Precision::Bf16 {
        return Err("the tensor cores take bf16");
    }
    if p.channels.iter().any(|c| !c.is_multiple_of(8)) {
        return Err("TMA needs source channels in multiples of 8");
    }
    if p.channels.iter().any(|&c| c < FEWEST_CHANNELS) {
        return Err("a source with fewer than 32 channels would leave most of a step empty");
    }
    if p.e4m3 && (p.pass == Pass::Dgrad || p.channels.iter().any(|c| !c.is_multiple_of(16))) {
        return Err("e4m3 is for forward passes from channels in multiples of 16");
    }
    if p.pass == Pass::Dgrad && !p.columns.is_multiple_of(8) {
        return Err("TMA needs the filter's channels in multiples of 8");
    }
    if default_configs(p, limits).next().is_none() {
        return Err("no tile fits the shared memory of a block");
    }
    Ok(())
}

/// Chooses by a measured table if it knows the problem, else by the cost model.
pub fn choose_image(p: &ImageProblem, limits: &DeviceLimits, tuning: Option<&Tuning>) -> ImageChoice {
    let mut all = candidates(p, limits);
    if let Some((name, Ok(choice))) = tuning.and_then(|t| t.image(p)).map(|(name, c)| (name, check(p, limits, &c))) {
        let others = all.iter().find(|other| other.config() != choice.config());
        let runner_up = others.map(|c| RunnerUp { name: c.config().to_string(), us: c.predicted.us });
        return ImageChoice { origin: Origin::Table(name.to_string()), runner_up, ..choice };
    }
    if all.is_empty() {
        // Only where `takes_image` refuses: a choice all the same, for callers that want to know what it would be.
        return configured(p, limits, &smallest(p));
    }
    let runner_up = all.get(1).map(|c| RunnerUp { name: c.config().to_string(), us: c.predicted.us });
    ImageChoice { runner_up, ..all.swap_remove(0) }
}

/// All legal candidates, the best prediction first, and of equals the one with fewer and larger tiles.
pub fn candidates(p: &ImageProblem, limits: &DeviceLimits) -> Vec<ImageChoice> {
    let mut all: Vec<ImageChoice> = default_configs(p, limits).filter_map(|c| check(p, limits, &c).ok()).collect();
    all.sort_by(|a, b| a.predicted.us.total_cmp(&b.predicted.us));
    all
}

/// The choice that a candidate makes, if the kernels can run it.
///
/// # Errors
/// The rule that it breaks.
pub fn check(p: &ImageProblem, limits: &DeviceLimits, c: &ImageConfig) -> Result<ImageChoice, Illegal> {
    let fail = |rule: String| Err(Illegal(format!("{c}: {rule}")));
    let choice = configured(p, limits, c);
    let (tile, patch, (kh, kw)) = (c.tile, c.patch, p.tap_extent);
    let few = p.columns <= ImageTile::NARROW.columns || !p.columns.is_multiple_of(8);
    if tile == ImageTile::NARROW && (p.pass == Pass::Dgrad || !few) {
        return fail("the 128x16 tile is for forward passes to an image's channels".into());
    }
    if tile == ImageTile::NARROW && p.phases > 1 {
        return fail("the 128x16 tile stores one phase".into());
    }
    if tile == ImageTile::NARROW && p.e4m3 {
        return fail("the 128x16 tile is for bf16".into());
    }
    if tile != ImageTile::NARROW && !p.columns.is_multiple_of(8) {
        return fail(format!("{} output channels are no multiple of 8: only 128x16 stores those", p.columns));
    }
    if let Some(cell) = p.cell {
        if !tile.columns.is_multiple_of(SLAB) {
            return fail("moments come from a staging tile, which 128x16 has not".into());
        }
        if !patch.w.is_multiple_of(cell.w) || !patch.h.is_multiple_of(cell.h) {
            return fail(format!("the patch cuts cells of {}x{} pixels", cell.w, cell.h));
        }
    }
    if patch.pixels() > tile.rows {
        return fail(format!("the patch has {} pixels, the tile {} rows", patch.pixels(), tile.rows));
    }
    if patch.w + kw - 1 > MOST_BOX || patch.h + kh - 1 > MOST_BOX || patch.n > MOST_BOX {
        return fail(format!("a box has at most {MOST_BOX} pixels along a side"));
    }
    if c.boxes == Boxes::Halo {
        if !limits.shifted_operands {
            return fail("halo boxes need shifted operands, which this device has not shown to have".into());
        }
        if !p.one_view || p.taps == 1 {
            return fail("halo boxes need several taps on one view at stride 1".into());
        }
        if patch.w != 8 || patch.h % 8 != 0 || patch.pixels() != tile.rows {
            return fail("the patch of a halo box is 8 wide, 8 or 16 high, and fills the tile".into());
        }
    }
    if !c.split && choice.segments.count > 1 && !tile.totals {
        return fail(format!("no totals for {} segments: they must be split", choice.segments.count));
    }
    if c.split && choice.segments.count == 1 {
        return fail("there is one segment, and nothing to split".into());
    }
    let fewest = fewest_source_slots(c.boxes);
    if c.source_slots < fewest || c.filter_slots < FEWEST_FILTER_SLOTS {
        return fail(format!("at least {fewest} source and {FEWEST_FILTER_SLOTS} filter slots"));
    }
    if choice.shared_bytes > limits.shared_bytes as usize {
        let (needs, has) = (choice.shared_bytes, limits.shared_bytes);
        return fail(format!("{needs} bytes of shared memory, a block has {has}"));
    }
    Ok(choice)
}

/// Pixels along a side of a TMA box.
const MOST_BOX: usize = 256;
/// With fewer the next step's filter could not come while two are read.
const FEWEST_FILTER_SLOTS: usize = 3;
/// More slots than this hide no more latency.
const MOST_SLOTS: usize = 8;

fn fewest_source_slots(boxes: Boxes) -> usize {
    match boxes {
        Boxes::Taps => 3,
        Boxes::Halo => 2,
    }
}

/// Bytes of a source slot.
fn source_slot_bytes(tile: ImageTile, boxes: Boxes, patch: Patch, extent: (usize, usize)) -> usize {
    match boxes {
        Boxes::Taps => tile.rows * LINE_BYTES,
        Boxes::Halo => (patch.halo_pixels(extent) * LINE_BYTES).next_multiple_of(SLOT_ALIGN),
    }
}

/// Every sensible candidate, with as many slots as fit.
fn default_configs<'a>(p: &'a ImageProblem, limits: &'a DeviceLimits) -> impl Iterator<Item = ImageConfig> + 'a {
    let split: &[bool] = if segments(p).count > 1 { &[false, true] } else { &[false] };
    ImageTile::ALL
        .into_iter()
        .flat_map(move |tile| {
            let taps = best_patch(p, tile);
            let halos = [1, 2].map(|n| Patch { w: 8, h: tile.rows / 8 / n, n });
            let boxes = [(Boxes::Taps, taps), (Boxes::Halo, halos[0]), (Boxes::Halo, halos[1])];
            boxes.into_iter().flat_map(move |(boxes, patch)| {
                let slots = slots(p, limits, tile, boxes, patch);
                let config = slots.map(|(source_slots, filter_slots)| ImageConfig {
                    tile,
                    boxes,
                    patch,
                    split: false,
                    source_slots,
                    filter_slots,
                });
                config.into_iter().flat_map(move |c| split.iter().map(move |&split| ImageConfig { split, ..c }))
            })
        })
        .filter(move |c| check(p, limits, c).is_ok())
}

fn best_patch(p: &ImageProblem, tile: ImageTile) -> Patch {
    let cell = p.cell.unwrap_or(Cell { w: 1, h: 1 });
    Patch::best_of_cells(tile.rows, p.images, (p.out_h, p.out_w), p.tap_extent, cell)
}

/// Source and filter slots: under halo boxes two source slots and all the rest for the filter, under tap boxes as many of
/// one as of the other.
fn slots(
    p: &ImageProblem,
    limits: &DeviceLimits,
    tile: ImageTile,
    boxes: Boxes,
    patch: Patch,
) -> Option<(usize, usize)> {
    let taken = 2 * tile.staging_bytes() + BARRIER_BYTES;
    let space = (limits.shared_bytes as usize).checked_sub(taken)?;
    let (source, filter) = (source_slot_bytes(tile, boxes, patch, p.tap_extent), tile.filter_slot_bytes());
    match boxes {
        Boxes::Taps => {
            let slots = (space / (source + filter)).min(MOST_SLOTS);
            Some((slots, slots))
        }
        Boxes::Halo => {
            let left = space.checked_sub(2 * source)?;
            Some((2, (left / filter).min(MOST_SLOTS)))
        }
    }
}

/// A candidate that needs the least.
fn smallest(p: &ImageProblem) -> ImageConfig {
    let tile = if p.columns.is_multiple_of(8) { ImageTile::SMALL } else { ImageTile::NARROW };
    let patch = best_patch(p, tile);
    let split = segments(p).count > 1 && !tile.totals;
    ImageConfig { tile, boxes: Boxes::Taps, patch, split, source_slots: 3, filter_slots: FEWEST_FILTER_SLOTS }
}

/// What a candidate amounts to, legal or not.
fn configured(p: &ImageProblem, limits: &DeviceLimits, c: &ImageConfig) -> ImageChoice {
    let segments = segments(p);
    let patches = c.patch.counts(p.images, (p.out_h, p.out_w));
    let column_tiles = p.columns.div_ceil(c.tile.columns);
    let tiles = patches.0 * patches.1 * patches.2 * column_tiles * p.phases;
    let items = tiles * if c.split { segments.count } else { 1 };
    let source_slot_bytes = source_slot_bytes(c.tile, c.boxes, c.patch, p.tap_extent);
    let shared_bytes = c.source_slots * source_slot_bytes
        + c.filter_slots * c.tile.filter_slot_bytes()
        + 2 * c.tile.staging_bytes()
        + BARRIER_BYTES;
    ImageChoice {
        tile: c.tile,
        boxes: c.boxes,
        patch: c.patch,
        e4m3: p.e4m3,
        patches,
        column_tiles,
        segments,
        split: c.split,
        items,
        blocks: items.min(limits.multiprocessors.max(1) as usize),
        source_slots: c.source_slots,
        source_slot_bytes,
        filter_slots: c.filter_slots,
        shared_bytes,
        predicted: cost::image(p, c, segments, tiles),
        origin: Origin::Model,
        runner_up: None,
    }
}

#[cfg(test)]
mod tests;
