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
    /// The errors of `actual`; infinite where something is not a number.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn between(actual: &[f64], expected: &[f64]) -> Self {
        assert_eq!(actual.len(), expected.len(), "tensors of different lengths were compared");
        let difference = actual.iter().zip(expected).map(|(a, e)| (a - e).abs());
        // A NaN must neither hide behind `max` nor compare as small.
        if difference.clone().any(f64::is_nan) {
            return Self { worst: f64::INFINITY, mean: f64::INFINITY, norm: f64::INFINITY };
        }
        let magnitude: f64 = expected.iter().map(|e| e.abs()).sum();
        Self {
            worst: difference.clone().fold(0.0, f64::max) / largest(expected),
            norm: difference.clone().map(|d| d * d).sum::<f64>().sqrt() / length(expected),
            mean: difference.sum::<f64>() / magnitude.max(TINY),
        }
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
    /// The limits of a result of type `dtype` that is `exact` in f64, where `rounded` is the result of the reference
    /// that rounds, if activations are bf16.
    ///
    /// Where rounding happens to cost nothing, an activation may still be off by half a unit in the last place of the
    /// largest, and the whole by as much as one such element makes. Results that are stored in f32 are not rounded by
    /// the reference; they get the limits of f32 kernels instead.
    ///
    /// Bytes may be off by one level, in one element and in as many as an error of f32 size in [-1, 1] moves over the
    /// border of two levels.
    pub fn new(dtype: DType, gradient: bool, exact: &[f64], rounded: Option<&[f64]>) -> Self {
        let f32_limit = if gradient { GRADIENT } else { FORWARD };
        let floor = match dtype {
            DType::U8 => {
                let moved = 1.0 + 2.0 * 127.5 * FORWARD * exact.len() as f64;
                Self { worst: 1.0 / largest(exact), norm: moved.sqrt() / length(exact) }
            }
            _ => Self { worst: f32_limit, norm: f32_limit },
        };
        let Some(rounded) = rounded else { return floor };
        let yardstick = Errors::between(rounded, exact);
        if !yardstick.worst.is_finite() {
            // A yardstick that is not finite would let anything pass.
            return Self { worst: 0.0, norm: 0.0 };
        }
        let floor = match dtype {
            DType::Act => Self { worst: BF16_ROUNDING, norm: BF16_ROUNDING * largest(exact) / length(exact) },
            _ => floor,
        };
        Self { worst: (2.0 * yardstick.worst).max(floor.worst), norm: (2.0 * yardstick.norm).max(floor.norm) }
    }

    /// Whether errors are within the limits.
    pub fn allow(&self, errors: &Errors) -> bool {
        errors.worst <= self.worst && errors.norm <= self.norm
    }
}

const TINY: f64 = 1e-30;

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(TINY, |m, v| m.max(v.abs()))
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt().max(TINY)
}
