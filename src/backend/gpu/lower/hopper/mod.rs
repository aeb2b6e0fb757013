//! Launchers of the kernels that need wgmma and TMA.

pub(super) mod wgrad;
