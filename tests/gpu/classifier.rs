//! The head of a classifier.

use crate::common::gpu::check_families;

#[test]
fn tokens_and_probabilities_match_the_reference() {
    let tokens = ["pool_tokens", "pool_tokens_grad", "first_token", "first_token_grad"];
    check_families(&[&tokens[..], &["spread_pixels", "log_probability"]].concat(), 30);
}
