//! Every operation of the CPU backend against the f64 reference, forward and backward.

mod common;

use common::optimizer::compare_optimizer;
use common::{check_rows_of_timesteps, compare_all};
use warpdiff::backend::cpu::Cpu;
use warpdiff::reference::Reference;

#[test]
fn every_operation_matches_the_reference() {
    let compared = compare_all(&Cpu::new(Some(2)).unwrap());
    assert!(compared > 1000, "{compared}");
}

#[test]
fn timesteps_meet_their_rows() {
    check_rows_of_timesteps(&Cpu::new(Some(2)).unwrap());
    check_rows_of_timesteps(&Reference::default());
}

#[test]
fn the_optimizer_matches_the_reference() {
    assert_eq!(compare_optimizer(&Cpu::new(Some(2)).unwrap()).unwrap(), 2 * 3 * 17);
}
