//! The rules by which results are judged, as verdicts with a reason.

use warpdiff::compare::rule::{Errors, Limits};
use warpdiff::graph::DType;

/// Judges a result of type `stored`; `rounded` is what the reference that rounds makes of it.
pub fn judge(
    stored: DType,
    gradient: bool,
    actual: &[f64],
    exact: &[f64],
    rounded: Option<&[f64]>,
) -> Result<Errors, String> {
    let (errors, limits) = (Errors::between(actual, exact), Limits::new(stored, gradient, exact, rounded));
    if limits.allow(&errors) {
        return Ok(errors);
    }
    Err(format!(
        "worst element off by {:.2e} where {:.2e} are allowed, norm by {:.2e} where {:.2e} are",
        errors.worst, limits.worst, errors.norm, limits.norm
    ))
}

/// The rule of f32 kernels.
pub fn f32_rule(gradient: bool, actual: &[f64], exact: &[f64]) -> Result<Errors, String> {
    judge(DType::F32, gradient, actual, exact, None)
}

/// The rule of bf16 kernels.
pub fn bf16_rule(
    stored: DType,
    gradient: bool,
    actual: &[f64],
    exact: &[f64],
    rounded: &[f64],
) -> Result<Errors, String> {
    judge(stored, gradient, actual, exact, Some(rounded))
}
