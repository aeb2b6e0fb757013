//! The SIMT simulator: its primitives against plain computations, and planted bugs that it must report.
#![cfg(feature = "sim-checks")]

// Links the simulator.
use warpdiff as _;

mod asan;
mod bugs;
mod ffi;
mod hopper;
mod primitives;
