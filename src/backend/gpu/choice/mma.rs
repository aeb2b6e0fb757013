//! How the matrix products of convolutions and linear layers are cut into blocks: problem, candidates, legality, cost,
//! choice. Pure functions of the problem, so that a choice can be tested and printed without a device.
//!
//! Two rules protect reproducibility. The number of depth segments of a forward pass or a data gradient is a function of one
//! image's shape, never of the batch ([`segments`]); whether one block adds the segments or a second launch does
//! (see `kernels/gemm/mainloop.cuh`) changes no bit, so it may follow the batch. And no choice depends on the device.

use std::fmt;

use super::cost::{self, Limit, Prediction};
use crate::backend::Precision;

/// The block tiles of `kernels/conv/shapes.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128x128, 256 threads, bf16.
    Large,
    /// 128x64, 256 threads, bf16.
    Medium,
    /// 64x64, 128 threads, bf16.
    Small,
    /// 128x32, 128 threads, bf16.
    Narrow,
    /// 64x64, 128 threads, f32.
    Float,
}

impl Tile {
    /// The tile of the smallest products.
    pub fn smallest(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Tile::Float,
            Precision::Bf16 => Tile::Small,
        }
    }

    /// Rows and columns of the result that a block computes.
    pub fn size(self) -> (usize, usize) {
        match self {
            Tile::Large => (128, 128),
            Tile::Medium => (128, 64),
            Tile::Small | Tile::Float => (64, 64),
            Tile::Narrow => (128, 32),
        }
    }

    /// Depth of one pipeline step.
    pub fn depth(self) -> usize {
        if self == Tile::Float { 16 } else { 32 }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Tile::Large | Tile::Medium => 256,
            Tile::Small | Tile::Narrow | Tile::Float => 128,
        }
    }

    /// Dynamic shared memory: four stages of both operands, or the staged f32 result with its padding, whichever is larger.
    pub fn shared_bytes(self) -> u32 {
        let (rows, columns) = self.size();
        let element = if self == Tile::Float { 4 } else { 2 };
        let pipeline = 4 * (rows + columns) * self.depth() * element;
        let staged = rows * (columns + 8) * 4;
        pipeline.max(staged) as u32
    }

    /// Whether a block can add several segments itself.
    fn totals(self) -> bool {
        self != Tile::Large
    }

    /// Blocks that fit a multiprocessor at once, by registers.
    fn resident(self) -> usize {
        match self {
            Tile::Large | Tile::Medium => 2,
            Tile::Small | Tile::Narrow | Tile::Float => 3,
        }
    }

    /// Multiply-adds a cycle and multiprocessor when many blocks run. Assumed, not measured: mma.sync at about 60 % of the
    /// 2048 of a Hopper multiprocessor for the large tile, less where the ratio of products to shared-memory reads is lower.
    fn rate(self) -> f64 {
        match self {
            Tile::Large => 1250.0,
            Tile::Medium => 1050.0,
            Tile::Small => 850.0,
            Tile::Narrow => 650.0,
            Tile::Float => 90.0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Tile::Large => "large",
            Tile::Medium => "medium",
            Tile::Small | Tile::Float => "small",
            Tile::Narrow => "narrow",
        }
    }
}

/// Multiprocessors of the GPU that choices are made for: an H100 or H200. A constant, so that a choice is the same everywhere.
const MULTIPROCESSORS: usize = 132;
/// Cycles that one pipeline step takes at least, however little it computes: barrier, shared-memory and load latency.
const STEP_LATENCY: f64 = 250.0;
/// Cycles of one more launch.
const LAUNCH: f64 = 4000.0;
/// Bytes a cycle between L2 and all multiprocessors, for partial results.
const L2_BYTES: f64 = 2500.0;
/// Blocks that one image should give, if its depth is long enough.
const BLOCKS_AN_IMAGE: usize = 128;
/// An image with this many tiles is not cut along its depth.
const ENOUGH_TILES: usize = 32;
/// Steps that a segment has at least: its pipeline must fill and its sum must be added.
const SHORTEST_SEGMENT: usize = 8;
/// Partial results take memory and time in proportion.
const MOST_SEGMENTS: usize = 16;

/// The rows of `images` images, each computed alone, against one filter: forward pass or data gradient.
#[derive(Clone, Copy, Debug)]
pub struct ImageProduct {
    /// N.
    pub images: usize,
    /// Output pixels of an image in one phase (its longest).
    pub pixels: usize,
    /// Phases of a strided data gradient, else 1.
    pub phases: usize,
    /// Output channels.
    pub columns: usize,
    /// Taps times source channels, of the longest phase.
    pub depth: usize,
    /// bf16 rather than f32.
    pub bf16: bool,
    /// All channels are multiples of 16 bytes.
    pub vector: bool,
    /// A variant with few columns exists.
    pub narrow: bool,
}

/// How the depth is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Number of segments.
    pub count: usize,
    /// Pipeline steps of each; the last may have fewer.
    pub steps: usize,
}

/// Cuts the depth of one image's product so that a single image keeps the GPU busy. Independent of the batch.
pub fn segments(p: &ImageProduct) -> Segments {
    let step = if p.bf16 { Tile::Small.depth() } else { Tile::Float.depth() };
    let steps = p.depth.div_ceil(step).max(1);
    let tiles = p.pixels.div_ceil(64) * p.columns.div_ceil(64) * p.phases;
    let wanted = if tiles >= ENOUGH_TILES { 1 } else { BLOCKS_AN_IMAGE.div_ceil(tiles) };
    let count = wanted.min(steps / SHORTEST_SEGMENT).clamp(1, MOST_SEGMENTS);
    let steps_each = steps.div_ceil(count);
    Segments { count: steps.div_ceil(steps_each), steps: steps_each }
}

/// A launch of one of the kernels, and why it was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The block tile.
    pub tile: Tile,
    /// The variant in the kernel's name.
    pub variant: &'static str,
    /// Tiles of the result, rows times columns.
    pub tiles: usize,
    /// Parts of the depth that go to blocks of their own; 1: no second launch.
    pub splits: usize,
    /// Pipeline steps of a segment (forward, data gradient) or a split (weight gradient).
    pub steps: usize,
    /// Predicted cycles, for comparison only.
    cost: f64,
    /// The candidate that came second.
    runner_up: Option<(Tile, usize, f64)>,
}

impl Choice {
    /// The prediction in the terms of [`cost`], for a product of so many operations and bytes.
    pub fn predicted(&self, flops: f64, bytes: f64) -> Prediction {
        let (us, hbm) = (cost::LAUNCH_US + self.cost / cost::CYCLES_A_US, bytes / cost::HBM_BYTES_A_US);
        let products = flops / 2.0 / (MULTIPROCESSORS as f64 * self.tile.rate()) / cost::CYCLES_A_US;
        let limit = match () {
            () if hbm > us => Limit::Hbm,
            () if products > us / 2.0 => Limit::Tensor,
            () => Limit::Latency,
        };
        let waves = (self.tiles * self.splits).div_ceil(MULTIPROCESSORS * self.tile.resident());
        Prediction {
            us: us.max(cost::LAUNCH_US + hbm),
            floor_us: cost::floor_us(flops, bytes),
            limit,
            tiles: self.tiles,
            waves,
            bytes,
            fetched_bytes: bytes,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, columns) = self.tile.size();
        write!(f, "{} {rows}x{columns}x{}: {} tiles", self.variant, self.tile.depth(), self.tiles)?;
        if self.splits > 1 {
            write!(f, ", depth in {} splits of {} steps", self.splits, self.steps)?;
        }
        write!(f, ", predicted {:.0} cycles", self.cost)?;
        if let Some((tile, splits, cost)) = self.runner_up {
            write!(f, "; next best {} with {splits} splits, {:+.0} %", tile.name(), (cost / self.cost - 1.0) * 100.0)?;
        }
        Ok(())
    }
}

/// Chooses tile and way of launching for a forward pass or a data gradient.
pub fn choose(p: &ImageProduct) -> Choice {
    let segments = segments(p);
    let tiles: &[Tile] = match (p.bf16, p.vector) {
        (false, _) => &[Tile::Float],
        (true, false) => &[Tile::Small],
        // Of equal costs the first wins: where latency decides, more and lighter blocks.
        (true, true) if p.narrow => &[Tile::Small, Tile::Narrow, Tile::Medium, Tile::Large],
        (true, true) => &[Tile::Small, Tile::Medium, Tile::Large],
    };
    let candidates = tiles.iter().flat_map(|&tile| {
        let (rows, columns) = tile.size();
        let tiles = (p.images * p.pixels).div_ceil(rows) * p.columns.div_ceil(columns);
        let steps = p.depth.div_ceil(tile.depth()).max(1);
        let whole = (tile.totals() || segments.count == 1).then(|| (1, block_cost(tile, tiles * p.phases, steps)));
        let split = (segments.count > 1).then(|| {
            let blocks = tiles * p.phases * segments.count;
            let outputs = p.images * p.pixels * p.phases * p.columns;
            (segments.count, block_cost(tile, blocks, segments.steps) + split_cost(segments.count, outputs))
        });
        let variant = if p.vector { tile.name() } else { "gather" };
        [whole, split].into_iter().flatten().map(move |(splits, cost)| Choice {
            tile,
            variant,
            tiles,
            splits,
            steps: segments.steps,
            cost,
            runner_up: None,
        })
    });
    best(candidates)
}

/// The pixels of a whole batch as depth: weight gradient.
#[derive(Clone, Copy, Debug)]
pub struct PixelProduct {
    /// Output channels, K.
    pub rows: usize,
    /// R * S * C.
    pub columns: usize,
    /// N * H' * W'.
    pub pixels: usize,
    /// bf16 rather than f32.
    pub bf16: bool,
    /// K is a multiple of 16 bytes.
    pub vector_dy: bool,
    /// C is.
    pub vector_x: bool,
}

/// Chooses tile and splits for a weight gradient. Here the splits may follow the batch: a gradient is a sum over it.
pub fn choose_wgrad(p: &PixelProduct) -> Choice {
    let (tiles, gather): (&[Tile], _) = match (p.bf16, p.vector_dy, p.vector_x) {
        (true, true, true) => (&[Tile::Small, Tile::Large], None),
        (true, false, true) => (&[Tile::Small], Some("gather_dy")),
        (true, _, false) => (&[Tile::Small], Some("gather")),
        (false, true, true) => (&[Tile::Float], None),
        (false, ..) => (&[Tile::Float], Some("gather")),
    };
    let candidates = tiles.iter().map(|&tile| {
        let (rows, columns) = tile.size();
        let tiles = p.rows.div_ceil(rows) * p.columns.div_ceil(columns);
        let steps = p.pixels.div_ceil(tile.depth()).max(1);
        // One full wave of blocks: with fewer, multiprocessors idle; with more, only the partial results grow.
        let wanted = (MULTIPROCESSORS * tile.resident() / tiles).max(1);
        let splits = wanted.min(steps / SHORTEST_SEGMENT).max(1);
        let steps_each = steps.div_ceil(splits);
        let splits = steps.div_ceil(steps_each);
        let sum = if splits > 1 { split_cost(splits, p.rows * p.columns) } else { 0.0 };
        Choice {
            tile,
            variant: gather.unwrap_or(tile.name()),
            tiles,
            splits,
            steps: steps_each,
            cost: block_cost(tile, tiles * splits, steps_each) + sum,
            runner_up: None,
        }
    });
    best(candidates)
}

/// The cheapest candidate; the earlier one of equals.
fn best(candidates: impl Iterator<Item = Choice>) -> Choice {
    let mut sorted: Vec<Choice> = candidates.collect();
    sorted.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    let runner_up = sorted.get(1).map(|c| (c.tile, c.splits, c.cost));
    Choice { runner_up, ..sorted.swap_remove(0) }
}

/// Cycles of `blocks` blocks of `steps` steps: bound by the rate of the busiest multiprocessor, or by the latency of its
/// rounds of resident blocks.
fn block_cost(tile: Tile, blocks: usize, steps: usize) -> f64 {
    let (rows, columns) = tile.size();
    let busiest = blocks.div_ceil(MULTIPROCESSORS);
    let products = (busiest * steps * rows * columns * tile.depth()) as f64 / tile.rate();
    let latency = (busiest.div_ceil(tile.resident()) * (steps + 4)) as f64 * STEP_LATENCY;
    products.max(latency)
}

/// Cycles of the second launch: partial results are written and read once, in f32.
fn split_cost(splits: usize, outputs: usize) -> f64 {
    LAUNCH + (splits * outputs * 8) as f64 / L2_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv3x3(images: usize, side: usize, c: usize, k: usize) -> ImageProduct {
        ImageProduct {
            images,
            pixels: side * side,
            phases: 1,
            columns: k,
            depth: 9 * c,
            bf16: true,
            vector: true,
            narrow: true,
        }
    }

    #[test]
    fn segments_do_not_depend_on_the_batch() {
        for side in [1, 4, 8, 16, 32] {
            let one = segments(&conv3x3(1, side, 256, 256));
            for images in [2, 3, 128, 1000] {
                assert_eq!(segments(&conv3x3(images, side, 256, 256)), one);
            }
        }
    }

    #[test]
    fn segments_cover_the_depth() {
        for depth in [1, 27, 32, 33, 257, 1152, 2304, 4608, 100_000] {
            for pixels in [1, 16, 64, 256, 1024] {
                for bf16 in [false, true] {
                    let p = ImageProduct { pixels, depth, bf16, ..conv3x3(1, 1, 8, 128) };
                    let s = segments(&p);
                    let steps = depth.div_ceil(if bf16 { 32 } else { 16 });
                    assert!(s.count * s.steps >= steps && (s.count - 1) * s.steps < steps, "{p:?}: {s:?}");
                    assert!(s.count <= MOST_SEGMENTS);
                    assert!(s.count == 1 || s.steps >= SHORTEST_SEGMENT);
                }
            }
        }
    }

    #[test]
    fn small_levels_are_split_for_one_image_and_whole_for_many() {
        for side in [4, 8, 16] {
            let one = choose(&conv3x3(1, side, 256, 256));
            assert!(one.splits > 1 && one.tiles * one.splits >= 32, "{one}");
            let many = choose(&conv3x3(256, side, 256, 256));
            assert_eq!(many.splits, 1, "{many}");
        }
    }

    /// The shape with which `tests/gpu/conv.rs` compares the bits of both ways.
    #[test]
    fn the_way_of_launching_may_follow_the_batch() {
        let pointwise = |images| ImageProduct { depth: 832, ..conv3x3(images, 4, 8, 64) };
        let (one, many) = (choose(&pointwise(1)), choose(&pointwise(32)));
        assert!(one.splits == 3 && many.splits == 1, "{one}; {many}");
    }

    /// The shapes with which `tests/gpu/conv.rs` runs the largest tile.
    #[test]
    fn large_tiles_are_tested() {
        let forward = ImageProduct { depth: 32, ..conv3x3(35, 16, 8, 256) };
        let backward = ImageProduct { narrow: false, ..forward };
        for choice in [choose(&forward), choose(&backward), choose_wgrad(&wgrad(25, 1280, 1280))] {
            assert_eq!(choice.tile, Tile::Large, "{choice}");
        }
    }

    #[test]
    fn large_levels_take_the_large_tile() {
        let choice = choose(&conv3x3(256, 32, 256, 256));
        assert_eq!((choice.tile, choice.variant, choice.splits), (Tile::Large, "large", 1));
        assert_eq!(choice.tiles, 256 * 1024 / 128 * 2);
    }

    #[test]
    fn a_tile_without_totals_never_takes_several_segments() {
        for images in [1, 2, 7, 64, 256, 2048] {
            for side in [1, 3, 4, 8, 11, 16, 32, 64] {
                for c in [8, 64, 128, 256, 512] {
                    let p = conv3x3(images, side, c, 128);
                    let choice = choose(&p);
                    assert!(choice.tile != Tile::Large || choice.splits == segments(&p).count, "{p:?}: {choice}");
                }
            }
        }
    }

    #[test]
    fn image_channels_take_the_narrow_tile_forward() {
        assert_eq!(choose(&conv3x3(256, 32, 128, 3)).tile, Tile::Narrow);
        let backward = choose(&ImageProduct { narrow: false, vector: false, ..conv3x3(256, 32, 128, 3) });
        assert_eq!((backward.tile, backward.variant), (Tile::Small, "gather"));
    }

    #[test]
    fn f32_has_one_tile() {
        for vector in [false, true] {
            let choice = choose(&ImageProduct { bf16: false, vector, ..conv3x3(2, 8, 64, 64) });
            assert_eq!((choice.tile, choice.variant), (Tile::Float, if vector { "small" } else { "gather" }));
        }
    }

    fn wgrad(pixels: usize, k: usize, columns: usize) -> PixelProduct {
        PixelProduct { rows: k, columns, pixels, bf16: true, vector_dy: true, vector_x: true }
    }

    #[test]
    fn weight_gradients_fill_the_device() {
        let choice = choose_wgrad(&wgrad(128 * 1024, 128, 1152));
        assert_eq!(choice.tile, Tile::Large);
        let blocks = choice.tiles * choice.splits;
        assert!((200..=264).contains(&blocks), "{choice}");
        assert!(choice.splits * choice.steps * 32 >= 128 * 1024);
        assert!((choice.splits - 1) * choice.steps * 32 < 128 * 1024);
    }

    #[test]
    fn short_weight_gradients_are_not_split() {
        assert_eq!(choose_wgrad(&wgrad(64, 128, 1152)).splits, 1);
        assert_eq!(choose_wgrad(&wgrad(1, 512, 128)).steps, 1);
    }

    #[test]
    fn weight_gradients_of_image_channels_gather_only_what_they_must() {
        let last = PixelProduct { vector_dy: false, ..wgrad(1024, 3, 1152) };
        assert_eq!(choose_wgrad(&last).variant, "gather_dy");
        let first = PixelProduct { vector_x: false, ..wgrad(1024, 128, 27) };
        assert_eq!(choose_wgrad(&first).variant, "gather");
    }

    #[test]
    fn shared_memory_holds_pipeline_and_result() {
        assert_eq!(Tile::Large.shared_bytes(), 128 * 136 * 4);
        assert_eq!(Tile::Medium.shared_bytes(), 4 * 192 * 64);
        assert_eq!(Tile::Small.shared_bytes(), 4 * 128 * 64);
        assert_eq!(Tile::Narrow.shared_bytes(), 4 * 160 * 64);
        assert_eq!(Tile::Float.shared_bytes(), 4 * 128 * 64);
    }

    #[test]
    fn a_choice_prints_its_reason() {
        let text = choose(&conv3x3(1, 8, 256, 256)).to_string();
        assert!(text.contains("splits of") && text.contains("next best"), "{text}");
    }
}
