//! When a result counts as right.

use warpdiff::graph::DType;

/// The two errors of a result.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    /// Of the worst element, relative to the largest expected magnitude.
    pub worst: f64,
    /// Of the whole, as 2-norms.
    pub norm: f64,
}

impl Errors {
    pub fn of(actual: &[f64], expected: &[f64]) -> Self {
        assert_eq!(actual.len(), expected.len());
        let difference: Vec<f64> = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).collect();
        // A NaN must neither hide behind `max` nor compare as small.
        let worst = difference.iter().fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(*d) });
        let norm = if worst.is_finite() { length(&difference) } else { f64::INFINITY };
        Self { worst: worst / largest(expected), norm: norm / length(expected).max(TINY) }
    }

    fn within(self, limit: Self) -> Result<Self, String> {
        if self.worst <= limit.worst && self.norm <= limit.norm {
            return Ok(self);
        }
        Err(format!(
            "worst element off by {:.2e} where {:.2e} are allowed, norm by {:.2e} where {:.2e} are",
            self.worst, limit.worst, self.norm, limit.norm
        ))
    }
}

const TINY: f64 = 1e-30;

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(TINY, |m, e| m.max(e.abs()))
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The tolerance of f32 kernels, and of results that bf16 kernels store in f32.
pub fn f32_tolerance(gradient: bool) -> f64 {
    if gradient { 1e-4 } else { 1e-5 }
}

/// The rule of f32 kernels: worst element and norm within 1e-5 of the f64 reference, gradients within 1e-4.
pub fn f32_rule(gradient: bool, actual: &[f64], exact: &[f64]) -> Result<Errors, String> {
    let tolerance = f32_tolerance(gradient);
    Errors::of(actual, exact).within(Errors { worst: tolerance, norm: tolerance })
}

/// The rule of bf16 kernels: both errors against the f64 reference are at most twice those of the reference that
/// rounds as a bf16 backend must, all three on the same operands.
///
/// Where the rounding happens to cost nothing, an activation may still be off by half a unit in the last place of the
/// largest, and the whole by as much as one such element makes. Results stored in f32 are not rounded by the
/// reference; they get the tolerance of f32 kernels instead.
pub fn bf16_rule(
    stored: DType,
    gradient: bool,
    actual: &[f64],
    exact: &[f64],
    rounded: &[f64],
) -> Result<Errors, String> {
    let floor = match stored {
        DType::Act => {
            let worst = 2f64.powi(-9);
            Errors { worst, norm: worst * largest(exact) / length(exact).max(TINY) }
        }
        _ => Errors { worst: f32_tolerance(gradient), norm: f32_tolerance(gradient) },
    };
    let yardstick = Errors::of(rounded, exact);
    if !yardstick.worst.is_finite() {
        return Err("the reference itself is not finite".into());
    }
    let limit =
        Errors { worst: (2.0 * yardstick.worst).max(floor.worst), norm: (2.0 * yardstick.norm).max(floor.norm) };
    Errors::of(actual, exact).within(limit)
}
