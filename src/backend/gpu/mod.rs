//! The GPU backend.

pub mod kernels;
