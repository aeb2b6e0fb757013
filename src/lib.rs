//! warpdiff trains and samples denoising diffusion models.
#![warn(missing_docs)]
// What a user can influence must end in an error; tests may panic.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod backend;
pub mod bench;
pub mod bilinear;
pub mod cli;
pub mod compare;
pub mod data;
pub mod diffusion;
pub mod evaluate;
pub mod graph;
pub mod io;
pub mod layout;
pub mod levels;
pub mod model;
pub mod peer;
pub mod profile;
pub mod program;
pub mod reference;
pub mod rng;
pub mod sample;
pub mod train;
pub mod unet;
pub mod verify;
