//! The simulator as a device: see `tests/cuda.rs` for the same checks on a GPU.
#![cfg(feature = "sim")]

mod common;

use std::sync::Arc;

use common::device;
use warpdiff::backend::gpu::driver::Driver;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};

fn sim() -> Arc<dyn Driver> {
    Arc::new(Sim::new(Options { threads: 2, ..Options::default() }))
}

#[test]
fn copies_arrive() {
    device::copies_arrive(sim().as_ref());
}

#[test]
fn replay_equals_eager_launches() {
    device::replay_equals_eager_launches(sim().as_ref());
}

#[test]
fn snapshots_hold_their_moment() {
    device::snapshots_hold_their_moment(sim().as_ref());
}

#[test]
fn refusals_are_errors() {
    device::refusals_are_errors(sim().as_ref());
}

#[test]
fn tensor_maps_are_encoded_or_refused() {
    device::tensor_maps_are_encoded_or_refused(sim().as_ref());
}

#[test]
fn times_are_measured() {
    device::times_are_measured(sim().as_ref());
}

#[test]
fn many_runs_equal_single_runs() {
    device::many_runs_equal_single_runs(&sim());
}
