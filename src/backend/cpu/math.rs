//! Elementary functions that the compiler can vectorise: straight-line arithmetic, no library calls.

/// e^x to 2 units in the last place; 0 below -87.3, saturates above 88.3.
///
/// The argument is split as `n ln 2 + r` with |r| <= ln 2 / 2, e^r is a polynomial, 2^n is put into the exponent.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    p * scale
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Derivative of x * sigmoid(x).
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.5e-7, "{worst:e}");
    }

    #[test]
    fn extremes_stay_finite_and_ordered() {
        assert!(exp(-1000.0) < 2e-38 && exp(1000.0).is_finite());
        assert_eq!(exp(0.0), 1.0);
        assert!(sigmoid(-1000.0) < 2e-38 && sigmoid(1000.0) == 1.0);
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn silu_slope_matches_differences() {
        for i in -80..=80 {
            let x = f64::from(i) * 0.1;
            let f = |x: f64| x / (1.0 + (-x).exp());
            let expected = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
            assert!((f64::from(silu_slope(x as f32)) - expected).abs() < 1e-6);
        }
    }
}
