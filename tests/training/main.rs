//! The training loop on tiny models: its batches, its runs and its checkpoints.

mod checkpoints;
mod data;
mod runs;
mod support;
