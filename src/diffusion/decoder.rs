//! Scalar pieces of the variational bound: the Gaussian KL and the discretised decoder, in nats.

/// Probabilities below this are raised to it before their log is taken.
pub const MIN_PROBABILITY: f64 = 1e-12;

/// KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2))).
pub fn normal_kl(mean1: f64, log_var1: f64, mean2: f64, log_var2: f64) -> f64 {
    let ratio = log_var1 - log_var2;
    0.5 * (ratio.exp() - 1.0 - ratio + (mean1 - mean2).powi(2) * (-log_var2).exp())
}

/// Standard normal cumulative distribution function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cdf {
    /// By the error function.
    Exact,
    /// 0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which published bits per dimension were computed with.
    Tanh,
}

impl Cdf {
    /// The probability of a value below `x`.
    pub fn at(self, x: f64) -> f64 {
        match self {
            Self::Exact => 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Self::Tanh => 0.5 * (1.0 + tanh_argument(x).tanh()),
        }
    }

    /// Derivative of [`at`](Self::at): the exact density, or the derivative of the approximation.
    pub fn density(self, x: f64) -> f64 {
        let root = (2.0 / std::f64::consts::PI).sqrt();
        match self {
            Self::Exact => 0.5 * root * (-0.5 * x * x).exp(),
            Self::Tanh => 0.5 * (1.0 - tanh_argument(x).tanh().powi(2)) * root * (1.0 + 3.0 * 0.044715 * x * x),
        }
    }
}

fn tanh_argument(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

/// A value with its derivatives with respect to the mean and the log variance of a Gaussian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaussianGrad {
    /// The value, in nats.
    pub nats: f64,
    /// Derivative with respect to the mean.
    pub d_mean: f64,
    /// Derivative with respect to the log variance.
    pub d_log_variance: f64,
}

/// KL(q || p) of [`normal_kl`] with its derivatives with respect to the second Gaussian.
pub fn normal_kl_grad(mean_q: f64, log_var_q: f64, mean_p: f64, log_var_p: f64) -> GaussianGrad {
    let precision = (-log_var_p).exp();
    let delta = mean_p - mean_q;
    GaussianGrad {
        nats: normal_kl(mean_q, log_var_q, mean_p, log_var_p),
        d_mean: delta * precision,
        d_log_variance: 0.5 * (1.0 - (log_var_q - log_var_p).exp() - delta * delta * precision),
    }
}

/// The grey levels x = -1 + 2 k / (levels - 1) as bins of half width 1 / (levels - 1) (2006.11239, eq. 13).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bins {
    half_width: f64,
    /// Beyond this magnitude a value belongs to an outermost level, whose bin is open.
    edge: f64,
}

impl Bins {
    /// Bins for `levels` grey levels (at least 2; 256 for 8-bit images).
    pub fn new(levels: u32) -> Self {
        let half_width = 1.0 / (levels.max(2) - 1) as f64;
        // About a quarter of the way to the next level's bin; 0.999 for 256 levels, as the published codes have it.
        Self { half_width, edge: 1.0 - 0.255 * half_width }
    }

    /// Half the width of a bin.
    pub fn half_width(&self) -> f64 {
        self.half_width
    }

    /// Beyond this magnitude a value belongs to an outermost level, whose bin is open.
    pub fn edge(&self) -> f64 {
        self.edge
    }

    /// -ln of the probability that N(mean, exp(log_variance)) falls into the bin of level `x`, at most
    /// -ln [`MIN_PROBABILITY`].
    pub fn negative_log_likelihood(&self, cdf: Cdf, x: f64, mean: f64, log_variance: f64) -> f64 {
        -self.probability(cdf, x, mean, log_variance).max(MIN_PROBABILITY).ln()
    }

    fn probability(&self, cdf: Cdf, x: f64, mean: f64, log_variance: f64) -> f64 {
        let (low, high) = self.bounds(x, mean, log_variance);
        match (low, high) {
            (None, Some(high)) => cdf.at(high),
            (Some(low), None) => 1.0 - cdf.at(low),
            (Some(low), Some(high)) => cdf.at(high) - cdf.at(low),
            (None, None) => 1.0,
        }
    }

    /// The ends of the bin in standard deviations from the mean; `None` where it is open.
    fn bounds(&self, x: f64, mean: f64, log_variance: f64) -> (Option<f64>, Option<f64>) {
        let inverse_std = (-0.5 * log_variance).exp();
        let end = |offset: f64| inverse_std * (x - mean + offset);
        if x < -self.edge {
            (None, Some(end(self.half_width)))
        } else if x > self.edge {
            (Some(end(-self.half_width)), None)
        } else {
            (Some(end(-self.half_width)), Some(end(self.half_width)))
        }
    }

    /// [`negative_log_likelihood`](Self::negative_log_likelihood) with its derivatives; they are 0 where the
    /// probability was raised to [`MIN_PROBABILITY`].
    pub fn negative_log_likelihood_grad(&self, cdf: Cdf, x: f64, mean: f64, log_variance: f64) -> GaussianGrad {
        let probability = self.probability(cdf, x, mean, log_variance);
        let nats = -probability.max(MIN_PROBABILITY).ln();
        if probability < MIN_PROBABILITY {
            return GaussianGrad { nats, d_mean: 0.0, d_log_variance: 0.0 };
        }
        let (low, high) = self.bounds(x, mean, log_variance);
        let inverse_std = (-0.5 * log_variance).exp();
        // An end z = (x - mean +- half width) / std moves by -1 / std with the mean and by -z / 2 with the log variance.
        let density = |end: Option<f64>| end.map_or((0.0, 0.0), |z| (cdf.density(z), z * cdf.density(z)));
        let ((low, low_z), (high, high_z)) = (density(low), density(high));
        GaussianGrad {
            nats,
            d_mean: inverse_std * (high - low) / probability,
            d_log_variance: 0.5 * (high_z - low_z) / probability,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_matches_numeric_integration() {
        for (m1, v1, m2, v2) in [(0.3, 0.5, -0.2, 0.9), (1.0, 0.02, 1.1, 0.05), (0.0, 1.0, 0.0, 1.0)] {
            let density =
                |x: f64, m: f64, v: f64| (-(x - m).powi(2) / (2.0 * v)).exp() / (std::f64::consts::TAU * v).sqrt();
            let (n, width) = (100_000, 12.0 * f64::sqrt(v1));
            let step = 2.0 * width / n as f64;
            let sum: f64 = (0..n)
                .map(|i| {
                    let x = m1 - width + (i as f64 + 0.5) * step;
                    let q = density(x, m1, v1);
                    // The log ratio in closed form, as the densities underflow in the tails.
                    let log_ratio = 0.5 * (f64::ln(v2 / v1) + (x - m2).powi(2) / v2 - (x - m1).powi(2) / v1);
                    q * log_ratio * step
                })
                .sum();
            assert!((normal_kl(m1, f64::ln(v1), m2, f64::ln(v2)) - sum).abs() < 1e-7);
        }
    }

    #[test]
    fn probabilities_of_all_levels_sum_to_one() {
        for levels in [2_u32, 3, 17, 256, 1000] {
            let bins = Bins::new(levels);
            for cdf in [Cdf::Exact, Cdf::Tanh] {
                for (mean, std) in [(0.1, 0.05), (-0.98, 0.02), (1.2, 0.3)] {
                    let total: f64 = (0..levels)
                        .map(|k| -1.0 + 2.0 * k as f64 / (levels - 1) as f64)
                        .map(|x| (-bins.negative_log_likelihood(cdf, x, mean, 2.0 * f64::ln(std))).exp())
                        .sum();
                    // Up to the floor that raises each empty bin.
                    assert!((total - 1.0).abs() < 1e-8, "{levels} {cdf:?} {mean}: {total}");
                }
            }
        }
    }

    #[test]
    fn exact_cdf_has_published_values_and_tanh_is_close() {
        // Abramowitz & Stegun, table 26.1.
        for (x, p) in [(0.0, 0.5), (1.0, 0.841344746068543), (-1.96, 0.024997895148220), (3.0, 0.998650101968370)] {
            assert!((Cdf::Exact.at(x) - p).abs() < 1e-14);
            assert!((Cdf::Tanh.at(x) - p).abs() < 5e-4);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let bins = Bins::new(256);
        let h = 1e-5;
        let levels = [-1.0, -1.0 + 2.0 / 255.0, 0.2 + 1.0 / 255.0, 1.0];
        for cdf in [Cdf::Exact, Cdf::Tanh] {
            for x in levels {
                for (offset, log_variance) in [(0.003, -9.0), (-0.02, -7.5), (0.3, -3.0)] {
                    let mean = x + offset;
                    let nll = |m: f64, lv: f64| bins.negative_log_likelihood(cdf, x, m, lv);
                    let grad = bins.negative_log_likelihood_grad(cdf, x, mean, log_variance);
                    let d_mean = (nll(mean + 1e-2 * h, log_variance) - nll(mean - 1e-2 * h, log_variance)) / (2e-2 * h);
                    let d_lv = (nll(mean, log_variance + h) - nll(mean, log_variance - h)) / (2.0 * h);
                    assert!((grad.d_mean - d_mean).abs() < 1e-5 * (1.0 + d_mean.abs()), "{x} {mean}");
                    assert!((grad.d_log_variance - d_lv).abs() < 1e-7 * (1.0 + d_lv.abs()), "{x} {mean}");
                    let kl = |m: f64, lv: f64| normal_kl(x, -8.0, m, lv);
                    let grad = normal_kl_grad(x, -8.0, mean, log_variance);
                    let d_mean = (kl(mean + h, log_variance) - kl(mean - h, log_variance)) / (2.0 * h);
                    let d_lv = (kl(mean, log_variance + h) - kl(mean, log_variance - h)) / (2.0 * h);
                    assert!((grad.d_mean - d_mean).abs() < 1e-6 * (1.0 + d_mean.abs()));
                    assert!((grad.d_log_variance - d_lv).abs() < 1e-6 * (1.0 + d_lv.abs()));
                }
            }
        }
    }

    #[test]
    fn improbable_bins_are_floored_and_have_no_gradient() {
        let grad = Bins::new(256).negative_log_likelihood_grad(Cdf::Tanh, 0.5 / 127.5, 0.9, -12.0);
        assert_eq!(grad, GaussianGrad { nats: -MIN_PROBABILITY.ln(), d_mean: 0.0, d_log_variance: 0.0 });
    }
}
