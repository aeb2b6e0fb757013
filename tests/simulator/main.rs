//! The SIMT simulator: its primitives against plain computations, and planted bugs that it must report.
#![cfg(feature = "sim-checks")]

// Links the simulator.
use warpdiff as _;

mod asan;
mod bugs;
#[path = "../common/e4m3.rs"]
mod e4m3;
mod ffi;
mod hopper;
mod primitives;
