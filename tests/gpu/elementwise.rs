//! Operations that map elements.

use crate::common::gpu::check_families;

#[test]
fn maps_match_the_reference() {
    check_families(&["silu", "add", "to_act"], 8);
}
