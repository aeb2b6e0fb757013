//! The tolerance rule: how far a kernel may be off.
//!
//! An f32 kernel is held to 1e-5 of the largest magnitude and of the norm, 1e-4 for gradients. A bf16 kernel is held to
//! twice the error that rounding alone makes: that of the reference computed in f64 from the same rounded operands, its
//! results rounded to bf16.

use serde::Serialize;

use crate::graph::DType;

/// f32 results.
const FORWARD: f64 = 1e-5;
/// f32 results of a backward pass.
const GRADIENT: f64 = 1e-4;
/// Half the distance of neighbouring bf16 numbers, relative to them: the error of one rounding. A kernel may make it
/// even where the reference's result happens to be representable.
const BF16_ROUNDING: f64 = 1.0 / 512.0;

/// Errors of a tensor against what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// The largest, relative to the largest magnitude that was expected.
    pub worst: f64,
    /// The mean, relative to the mean magnitude.
    pub mean: f64,
    /// The 2-norm, relative to that of what was expected.
    pub norm: f64,
}

impl Errors {
    /// The errors of `actual`. A NaN that was not expected is an infinite error.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn between(actual: &[f64], expected: &[f64]) -> Self {
        assert_eq!(actual.len(), expected.len(), "tensors of different lengths were compared");
        let (mut worst, mut largest) = (0.0f64, 0.0f64);
        let (mut sum, mut magnitude, mut square, mut norm) = (0.0, 0.0, 0.0, 0.0);
        for (a, e) in actual.iter().zip(expected) {
            let d = if a.is_nan() && e.is_nan() || a == e { 0.0 } else { (a - e).abs() };
            let d = if d.is_nan() { f64::INFINITY } else { d };
            let e = if e.is_finite() { e.abs() } else { 0.0 };
            (worst, largest) = (worst.max(d), largest.max(e));
            (sum, magnitude) = (sum + d, magnitude + e);
            (square, norm) = (square + d * d, norm + e * e);
        }
        let ratio = |error: f64, scale: f64| if error == 0.0 { 0.0 } else { error / scale.max(1e-30) };
        Self { worst: ratio(worst, largest), mean: ratio(sum, magnitude), norm: ratio(square.sqrt(), norm.sqrt()) }
    }
}

/// What [`Errors`] may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Of [`Errors::worst`].
    pub worst: f64,
    /// Of [`Errors::norm`].
    pub norm: f64,
}

impl Limits {
    /// The limits of a result of type `dtype`. `rounded` is the error of the reference that rounds to bf16, if
    /// activations are bf16.
    pub fn new(dtype: DType, gradient: bool, rounded: Option<Errors>) -> Self {
        let f32_limit = if gradient { GRADIENT } else { FORWARD };
        let Some(rounded) = rounded else { return Self { worst: f32_limit, norm: f32_limit } };
        let floor = if dtype == DType::Act { BF16_ROUNDING } else { f32_limit };
        Self { worst: (2.0 * rounded.worst).max(floor), norm: (2.0 * rounded.norm).max(f32_limit) }
    }

    /// Whether errors are within the limits.
    pub fn allow(&self, errors: &Errors) -> bool {
        errors.worst <= self.worst && errors.norm <= self.norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_what_was_expected() {
        let e = Errors::between(&[1.0, 2.5, -4.0], &[1.0, 2.0, -4.0]);
        assert_eq!((e.worst, e.mean), (0.125, 0.5 / 7.0));
        assert!((e.norm - 0.5 / 21f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_nan_or_infinity_never_passes() {
        for bad in [f64::NAN, f64::INFINITY] {
            let e = Errors::between(&[1.0, bad], &[1.0, 2.0]);
            assert!(!Limits::new(DType::Act, true, Some(Errors { worst: 1.0, mean: 1.0, norm: 1.0 })).allow(&e));
        }
        let missing = Errors::between(&[1.0, 2.0], &[1.0, f64::NAN]);
        assert!(!Limits::new(DType::F32, false, None).allow(&missing));
    }

    #[test]
    fn a_bf16_kernel_may_make_twice_the_error_of_rounding_and_no_more() {
        let expected: Vec<f64> = (0..500).map(|i| (f64::from(i) * 0.37).sin()).collect();
        let rounded: Vec<f64> = expected.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect();
        let yardstick = Errors::between(&rounded, &expected);
        let limits = Limits::new(DType::Act, false, Some(yardstick));
        let off_by = |factor: f64| {
            let actual: Vec<f64> = rounded.iter().zip(&expected).map(|(r, e)| e + factor * (r - e)).collect();
            limits.allow(&Errors::between(&actual, &expected))
        };
        assert!(off_by(1.0) && off_by(1.99));
        assert!(!off_by(2.05));
    }
}
