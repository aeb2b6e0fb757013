//! Measuring one operation: shapes, the plans that run them, the order of measurements and what is made of them.
//!
//! [`shape`] names convolutions and matrix products, [`collect`] finds those of a network, [`program`] makes a plan that
//! runs one of them on rotated operands, [`race`] measures it in turn with a peer, and [`roof`] says how fast it could be.

pub mod collect;
pub mod program;
pub mod race;
pub mod roof;
pub mod shape;
pub mod statistics;

pub use shape::{ConvShape, GemmShape, Pass, Product, ShapeError};
