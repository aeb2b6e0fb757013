//! warpdiff trains and samples denoising diffusion models.
#![warn(missing_docs)]

pub mod backend;
pub mod diffusion;
pub mod graph;
pub mod reference;
pub mod rng;
pub mod unet;
