//! Tiles and candidates, and their names.

use std::fmt;
use std::str::FromStr;

use crate::backend::gpu::choice::{Illegal, LINE_BYTES, Patch, SLAB};

/// The tile of a consumer warpgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageTile {
    /// Output pixels: one or two wgmma of 64 rows.
    pub rows: usize,
    /// Output channels.
    pub columns: usize,
    /// Whether there is a second set of accumulators, so that one work item can add several segments.
    pub totals: bool,
}

impl ImageTile {
    /// The largest tile, for levels with many pixels.
    pub const LARGE: Self = Self { rows: 128, columns: 128, totals: false };
    /// Half its columns, with totals.
    pub const MEDIUM: Self = Self { rows: 128, columns: 64, totals: true };
    /// For few pixels.
    pub const SMALL: Self = Self { rows: 64, columns: 64, totals: true };
    /// For the image's channels: at most 16, or no multiple of 8. Forward only.
    pub const NARROW: Self = Self { rows: 128, columns: 16, totals: false };
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LARGE, Self::MEDIUM, Self::SMALL, Self::NARROW];

    /// Rows times columns, as in the names of the kernels.
    pub fn name(self) -> String {
        format!("{}x{}", self.rows, self.columns)
    }

    /// f32 accumulators of a consumer thread, totals included.
    pub fn accumulators(self) -> usize {
        self.rows * self.columns / 128 * if self.totals { 2 } else { 1 }
    }

    /// Bytes of one step's filter slot.
    pub fn filter_slot_bytes(self) -> usize {
        self.columns * LINE_BYTES
    }

    /// Bytes of a consumer's staging tile.
    pub fn staging_bytes(self) -> usize {
        self.rows * self.columns.div_ceil(SLAB) * LINE_BYTES
    }
}

/// How pixels come to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boxes {
    /// A box of the patch under one tap, each step.
    Taps,
    /// A box of the patch and what the taps reach around it, once a slab; needs
    /// [`DeviceLimits::shifted_operands`](crate::backend::gpu::driver::DeviceLimits::shifted_operands).
    Halo,
}

impl Boxes {
    /// As in the names of candidates.
    pub fn name(self) -> &'static str {
        match self {
            Boxes::Taps => "taps",
            Boxes::Halo => "halo",
        }
    }
}

/// One candidate. Nothing in it changes a bit of the result.
///
/// Prints and parses as `128x128.halo.8x16x1.whole.2+7`: tile, boxes, patch, way, source and filter slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageConfig {
    /// The tile.
    pub tile: ImageTile,
    /// How pixels come.
    pub boxes: Boxes,
    /// The rows of a tile.
    pub patch: Patch,
    /// Whether each segment is a work item of its own.
    pub split: bool,
    /// Slots of the source ring.
    pub source_slots: usize,
    /// Slots of the filter ring.
    pub filter_slots: usize,
}

impl fmt::Display for ImageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.split { "split" } else { "whole" };
        let (tile, boxes) = (self.tile.name(), self.boxes.name());
        write!(f, "{tile}.{boxes}.{}.{way}.{}+{}", self.patch, self.source_slots, self.filter_slots)
    }
}

impl FromStr for ImageConfig {
    type Err = Illegal;

    fn from_str(text: &str) -> Result<Self, Illegal> {
        let bad = |what: &str| {
            Illegal(format!("{text:?} is no candidate: {what}; a candidate reads 128x128.halo.8x16x1.whole.2+7"))
        };
        let parts: Vec<&str> = text.split('.').collect();
        let [tile, boxes, patch, way, slots] = parts[..] else { return Err(bad("it has not five parts")) };
        let tile = ImageTile::ALL.into_iter().find(|t| t.name() == tile).ok_or_else(|| {
            bad(&format!("there is no tile {tile}, but {}", ImageTile::ALL.map(ImageTile::name).join(", ")))
        })?;
        let boxes = [Boxes::Taps, Boxes::Halo].into_iter().find(|b| b.name() == boxes);
        let boxes = boxes.ok_or_else(|| bad("the boxes are taps or halo"))?;
        let patch = patch.parse().map_err(|()| bad("the patch is width x height x images"))?;
        let split = match way {
            "split" => true,
            "whole" => false,
            _ => return Err(bad("the way is split or whole")),
        };
        let slots = slots.split_once('+').and_then(|(s, f)| Some((s.parse().ok()?, f.parse().ok()?)));
        let (source_slots, filter_slots) = slots.ok_or_else(|| bad("the slots are source + filter"))?;
        Ok(Self { tile, boxes, patch, split, source_slots, filter_slots })
    }
}
