//! Measuring operations: shapes, the plans that run them, the order of measurements and what is made of them.
//!
//! [`shape`] names convolutions and matrix products, [`named`] attention and norms, [`collect`] and [`operation`] find those
//! of a network, [`program`] makes a plan that runs one of them on rotated operands, [`race`] measures it in turn with a
//! peer, [`roof`] says how fast it could be, and [`change`] whether two reports of it differ.

pub mod change;
pub mod collect;
pub mod named;
pub mod operation;
pub mod program;
pub mod race;
pub mod roof;
pub mod samplers;
pub mod shape;
pub mod statistics;
pub mod work;

pub use operation::{Family, Operation};
pub use shape::{ConvShape, GemmShape, Pass, Product, ShapeError};
pub use work::Work;
