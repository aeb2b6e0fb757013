//! Launch configurations of the matrix products as data: problem, candidates, legality, predicted time, choice with its
//! reason. Pure functions, so that a choice can be tested and printed without a device (`warpdiff explain`).
//!
//! Three families: [`image`] and [`pixel`] for the kernels of Hopper (wgmma and TMA; forward pass and data gradient,
//! weight gradient), [`mma`] for those of mma.sync, which run everywhere and take every shape.
//!
//! **What may not change a bit.** How the depth of an image's product is cut into segments follows from the shape of one
//! image alone ([`image::segments`]): not from the batch, the device or a tuning table. Everything else that is chosen for
//! such a product (tile, boxes, split or whole, slots) leaves the order of sums alone, so it may follow the batch, and
//! [`tuning`] may override it. Weight gradients are sums over the batch and may follow it, but not the device.

pub mod cell;
pub mod cost;
pub mod image;
pub mod mma;
pub mod patch;
pub mod pixel;
pub mod product;
pub mod shape;
pub mod tuning;

pub use cell::Cell;
pub use cost::{Limit, Prediction};
pub use image::{Boxes, ImageChoice, ImageConfig, ImageProblem, ImageTile, Pass, Segments, choose_image, takes_image};
pub use patch::Patch;
pub use pixel::{PixelChoice, PixelConfig, PixelProblem, choose_pixel, takes_pixel};
pub use product::{Plan, Product};
pub use tuning::Tuning;

use std::fmt;

use thiserror::Error;

/// A configuration that a kernel cannot run, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Illegal(pub String);

/// Channels of a slab: the depth of one step, 128 bytes of bf16.
pub const SLAB: usize = 64;
/// Bytes of a slab of one pixel: a row of the 128-byte swizzle.
pub const LINE_BYTES: usize = 128;
/// Alignment of a slot, the period of the 128-byte swizzle.
pub const SLOT_ALIGN: usize = 1024;
/// Threads of a block: a producer warpgroup and two consumer warpgroups.
pub const THREADS: u32 = 384;
/// Shared memory of the barriers, and what aligning the first slot may cost.
pub const BARRIER_BYTES: usize = 1024;
/// Fewest channels of a source that the kernels of Hopper take: half a slab, so that at most half of a product is zeros.
pub const FEWEST_CHANNELS: usize = 32;

/// Where a choice comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The cost model.
    Model,
    /// A measured table, by its name.
    Table(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Model => f.write_str("predicted"),
            Origin::Table(name) => write!(f, "measured ({name})"),
        }
    }
}

/// The candidate that came second.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerUp {
    /// Its name.
    pub name: String,
    /// Its predicted time in microseconds.
    pub us: f64,
}
