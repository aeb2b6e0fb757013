//! Predicted time of a launch, in microseconds: what the busiest multiprocessor does, bound below by device memory.
//!
//! Constants are marked *measured* (a published or own measurement on such a card), *specified* (the vendor's figures) or
//! *assumed*; none comes from a run of these kernels. `docs/kernels/conv.md` lists the experiment that settles each.

use std::fmt;

use super::image::{Boxes, ImageConfig, ImageProblem, Segments};
use super::pixel::{PixelConfig, PixelCut, PixelProblem};
use super::{LINE_BYTES, SLAB};

/// Multiprocessors of the GPU that choices are made for: an H100 or H200 (*specified*). A constant, so that a choice is the
/// same everywhere.
pub const MULTIPROCESSORS: usize = 132;
/// Cycles a microsecond at the clock of light loads (*specified*: 1.755 GHz boost).
pub const CYCLES_A_US: f64 = 1755.0;
/// Floating-point operations a microsecond of large bf16 products (*measured*: 790 TFLOP/s, an 8192-cubed product on random
/// data; the power limit holds the clock below boost).
pub const FLOPS_A_US: f64 = 790e6;
/// Floating-point operations a cycle and multiprocessor (*specified*): m64nNk16 takes N/2 cycles.
pub const FLOPS_A_CYCLE: f64 = 4096.0;
/// By how much wgmma is slower than specified when all multiprocessors use it: the measured rate against the specified.
pub const TENSOR_SLOWDOWN: f64 = MULTIPROCESSORS as f64 * FLOPS_A_CYCLE * CYCLES_A_US / FLOPS_A_US;
/// Bytes a microsecond of device memory (*measured*: 4.3 TB/s, a copy, read plus written).
pub const HBM_BYTES_A_US: f64 = 4.3e6;
/// Bytes a microsecond from L2 to all multiprocessors (*assumed*: plain loads were measured at 5.5 to 7 TB/s, a published
/// product implies about 10).
pub const L2_BYTES_A_US: f64 = 6.5e6;
/// Bytes a cycle into one multiprocessor, however few others load (*specified* port width).
pub const PORT_BYTES: f64 = 64.0;
/// Bytes a cycle of shared memory, reads of wgmma and writes of TMA together (*specified*).
pub const SHARED_BYTES: f64 = 128.0;
/// Microseconds of a launch inside a recorded graph, with the wait for the one before (*assumed*).
pub const LAUNCH_US: f64 = 2.0;
/// Cycles from a block's start to its first product: barriers, descriptor fetch, first box from device memory (*assumed*).
pub const FILL_CYCLES: f64 = 1500.0;
/// Cycles of a step at least: barrier, four dependent wgmma (*assumed*).
pub const STEP_CYCLES: f64 = 160.0;
/// Cycles to end a segment: the products drain, its sum is added (*assumed*).
pub const SEGMENT_CYCLES: f64 = 250.0;
/// Cycles of an epilogue besides its bytes: drain, convert, stage, store (*assumed*).
pub const EPILOGUE_CYCLES: f64 = 1000.0;
/// Cycles of fence and ticket of a split item (*assumed*).
pub const TICKET_CYCLES: f64 = 1500.0;

/// What bounds a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The tensor cores.
    Tensor,
    /// Shared memory.
    Shared,
    /// The way from L2 to the multiprocessors.
    L2,
    /// Device memory.
    Hbm,
    /// Launch, filling of the rings, barriers, epilogue.
    Latency,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Tensor => "tensor cores",
            Limit::Shared => "shared memory",
            Limit::L2 => "L2",
            Limit::Hbm => "HBM",
            Limit::Latency => "latency",
        })
    }
}

/// Predicted cost of a launch. A prediction, never a measurement.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// Microseconds, launch included.
    pub us: f64,
    /// The least that this GPU could need: the larger of FLOPs at [`FLOPS_A_US`] and bytes at [`HBM_BYTES_A_US`].
    pub floor_us: f64,
    /// What bounds it.
    pub limit: Limit,
    /// Output tiles.
    pub tiles: usize,
    /// Rounds of work items of the busiest multiprocessor.
    pub waves: usize,
    /// Bytes of operands and results, each once.
    pub bytes: f64,
    /// Bytes that the multiprocessors fetch.
    pub fetched_bytes: f64,
}

impl Prediction {
    /// The floor as a share of the predicted time, in percent.
    pub fn percent_of_floor(&self) -> f64 {
        100.0 * self.floor_us / self.us
    }
}

/// The larger of computing and moving everything once.
pub fn floor_us(flops: f64, bytes: f64) -> f64 {
    (flops / FLOPS_A_US).max(bytes / HBM_BYTES_A_US)
}

/// Bytes a cycle for each of `blocks` multiprocessors that load at once.
fn l2_share(blocks: usize) -> f64 {
    (L2_BYTES_A_US / CYCLES_A_US / blocks.max(1) as f64).min(PORT_BYTES)
}

/// What a work item asks of a multiprocessor.
#[derive(Clone, Copy, Debug)]
struct Work {
    steps: f64,
    /// Cycles of wgmma as specified.
    tensor: f64,
    /// Bytes read and written in shared memory.
    shared: f64,
    /// Bytes over the way to L2.
    fetched: f64,
}

impl Work {
    /// Cycles, and what bounds them.
    fn cycles(self, share: f64) -> (f64, Limit) {
        let bounds = [
            (self.tensor * TENSOR_SLOWDOWN, Limit::Tensor),
            (self.shared / SHARED_BYTES, Limit::Shared),
            (self.fetched / share, Limit::L2),
            (self.steps * STEP_CYCLES, Limit::Latency),
        ];
        bounds.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, Limit::Latency))
    }
}

/// Launch, steps and the rest; device memory may be slower.
fn total(steady: f64, limit: Limit, overhead: f64, bytes: f64) -> (f64, Limit) {
    let (steady, overhead) = (steady / CYCLES_A_US, LAUNCH_US + overhead / CYCLES_A_US);
    let hbm = bytes / HBM_BYTES_A_US;
    let (slowest, limit) = if hbm > steady { (hbm, Limit::Hbm) } else { (steady, limit) };
    (slowest + overhead, if overhead > slowest { Limit::Latency } else { limit })
}

/// A persistent launch of `tiles` output tiles: two consumers a block, one computes while the other stores.
pub(super) fn image(p: &ImageProblem, c: &ImageConfig, segments: Segments, tiles: usize) -> Prediction {
    let (rows, columns) = (c.tile.rows as f64, c.tile.columns as f64);
    let items = tiles * if c.split { segments.count } else { 1 };
    let blocks = items.min(MULTIPROCESSORS);
    let waves = items.div_ceil(blocks.max(1));
    let share = l2_share(blocks);

    let line = LINE_BYTES as f64;
    let pixels = match c.boxes {
        Boxes::Taps => c.patch.pixels() as f64,
        Boxes::Halo => c.patch.halo_pixels(p.tap_extent) as f64 / p.taps as f64,
    };
    let fetched = (pixels + columns) * line;
    // Each wgmma reads its 64 rows of A and all columns of B, 32 bytes deep whatever the type.
    let read = (rows + rows / 64.0 * columns) * line;
    let tensor = rows / 64.0 * columns / 2.0 * (LINE_BYTES / 32) as f64;

    // Phases have different numbers of taps: many waves meet their mean, one wave waits for the longest.
    let whole = if waves > 1 { (p.slabs() * p.all_taps) as f64 / p.phases as f64 } else { p.steps() as f64 };
    let (steps, ends) = if c.split { (segments.steps as f64, 1) } else { (whole, segments.count) };
    let partial = rows * columns * 4.0;
    let residual = if p.residual { rows * columns * 2.0 } else { 0.0 };
    let finish = EPILOGUE_CYCLES + (rows * columns * 2.0 + residual) / share;
    // A split item writes one partial tile; the last of a tile reads them all.
    let (beside, epilogue, tail) = if c.split {
        let reads = segments.count as f64 * partial;
        let tail = TICKET_CYCLES + (partial + reads) / share + finish;
        (2.0 * partial, TICKET_CYCLES + 2.0 * partial / share + finish / segments.count as f64, tail)
    } else {
        (residual, finish, finish)
    };
    // What the epilogues of other items move competes with the loads.
    let beside = if waves > 1 { beside } else { 0.0 };
    let work =
        Work { steps, tensor: steps * tensor, shared: steps * (read + fetched), fetched: steps * fetched + beside };
    let (cycles, limit) = work.cycles(share);
    let main = cycles + ends as f64 * SEGMENT_CYCLES;
    let steady = waves as f64 * if waves > 1 { main.max((main + epilogue) / 2.0) } else { main };
    let (us, limit) = total(steady, limit, FILL_CYCLES + tail, p.bytes());
    let all_steps = (p.slabs() * p.all_taps) as f64 / p.phases as f64 * tiles as f64;
    let partials = if c.split { items as f64 * partial } else { 0.0 };
    Prediction {
        us,
        // e4m3 is multiplied twice as fast (*specified*).
        floor_us: floor_us(p.flops() / if p.e4m3 { 2.0 } else { 1.0 }, p.bytes()),
        limit,
        tiles,
        waves,
        bytes: p.bytes(),
        fetched_bytes: all_steps * fetched + partials,
    }
}

/// A launch of the weight gradient, and the one that adds the splits.
pub(super) fn pixel(p: &PixelProblem, c: &PixelConfig, cut: &PixelCut) -> Prediction {
    let (taps, columns) = (cut.taps_a_tile as f64, c.columns as f64);
    let items = cut.tiles * cut.splits;
    let blocks = items.min(MULTIPROCESSORS);
    let waves = items.div_ceil(blocks.max(1));
    let share = l2_share(blocks);
    let line = LINE_BYTES as f64;
    let rows = super::pixel::ROWS as f64;
    let halves = rows / 64.0;
    let fetched = c.patch.pixels() as f64 * line * (halves + taps * columns / SLAB as f64);
    // Each tap's wgmma reads 64 rows of dy again, and its own columns of x.
    let read = halves * taps * (SLAB as f64 + columns) * line;
    let tensor = halves * taps * columns / 2.0 * (SLAB / 16) as f64;
    let steps = cut.patches_a_split as f64;
    let work = Work { steps, tensor: steps * tensor, shared: steps * (read + fetched), fetched: steps * fetched };
    let (cycles, limit) = work.cycles(share);
    let main = cycles + SEGMENT_CYCLES;
    let result = rows * taps * columns * 4.0;
    let overhead = FILL_CYCLES + EPILOGUE_CYCLES + result / share;
    let steady = waves as f64 * main + (waves - 1) as f64 * overhead;
    let (us, limit) = total(steady, limit, overhead, p.bytes());
    let sum = if cut.splits > 1 { LAUNCH_US + (cut.splits + 1) as f64 * p.result_bytes() / L2_BYTES_A_US } else { 0.0 };
    Prediction {
        us: us + sum,
        floor_us: floor_us(p.flops(), p.bytes()),
        limit,
        tiles: cut.tiles,
        waves,
        bytes: p.bytes(),
        fetched_bytes: (items * cut.patches_a_split) as f64 * fetched,
    }
}
