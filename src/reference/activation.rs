//! Activation functions and their slopes, by their definitions.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::norm::{sigmoid, silu_slope};
use crate::graph::Activation;

pub(super) fn value(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x * sigmoid(x),
        Activation::Mish => x * softplus(x).tanh(),
        Activation::Gelu => x * normal_distribution(x),
        Activation::Relu => x.max(0.0),
    }
}

/// The derivative.
pub(super) fn slope(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => silu_slope(x),
        Activation::Mish => {
            let t = softplus(x).tanh();
            t + x * (1.0 - t * t) * sigmoid(x)
        }
        Activation::Gelu => normal_distribution(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
        Activation::Relu => f64::from(u8::from(x > 0.0)),
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn normal_distribution(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out with Python's `math` from the definitions.
    #[test]
    fn values_at_some_points() {
        let expected = [
            (
                Activation::Silu,
                [-0.238_405_844_044_235_1, -0.188_770_334_399_072_7, 0.509_384_024_381_544_7, 2.857_722_380_467_299_8],
            ),
            (
                Activation::Gelu,
                [-0.045_500_263_896_358_44, -0.154_268_769_362_993_44, 0.580_029_485_717_348_8, 2.995_950_305_905_11],
            ),
            (
                Activation::Mish,
                [-0.252_501_482_695_708_9, -0.220_743_774_651_73, 0.610_018_335_218_293_4, 2.986_535_004_967_957_5],
            ),
            (Activation::Relu, [0.0, 0.0, 0.75, 3.0]),
        ];
        for (f, values) in expected {
            for (x, expected) in [-2.0, -0.5, 0.75, 3.0].into_iter().zip(values) {
                let actual = value(f, x);
                assert!((actual - expected).abs() < 1e-14, "{f:?}({x}) = {actual}");
            }
        }
    }

    #[test]
    fn slopes_match_differences() {
        for f in Activation::ALL {
            for i in -60..60 {
                // Not at 0, where a rectifier has no slope.
                let x = f64::from(i) * 0.1 + 0.05;
                let expected = (value(f, x + 1e-5) - value(f, x - 1e-5)) / 2e-5;
                assert!((slope(f, x) - expected).abs() < 1e-9, "{f:?} at {x}");
            }
        }
    }
}
