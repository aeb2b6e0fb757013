//! Operations that map elements.

use crate::common::gpu::check_both;
use crate::common::{differentiable, forward_only};

#[test]
fn maps_match_the_reference() {
    let mapped = |name: &str| ["silu", "add", "to_act"].contains(&name);
    let cases = || (1..=4).flat_map(differentiable).filter(|c| mapped(c.op.name()));
    assert!(cases().count() >= 8);
    for (i, case) in cases().enumerate() {
        check_both(&case, case.op.name() != "to_act", i as u64);
    }
    for (i, case) in forward_only().iter().filter(|c| mapped(c.op.name())).enumerate() {
        check_both(case, false, i as u64);
    }
}
