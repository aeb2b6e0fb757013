//! The training loop on tiny models: its batches, its runs and its checkpoints.

mod ahead;
mod checkpoints;
mod data;
#[path = "../common/late.rs"]
mod late;
mod runs;
mod support;
