//! Launchers of the kernels that need wgmma and TMA.

pub(super) mod image;
mod views;
pub(super) mod wgrad;
