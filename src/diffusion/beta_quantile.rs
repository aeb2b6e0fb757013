//! Quantiles of the symmetric beta distribution, by which `use_beta_sigmas` spreads noise levels (2407.12173).

/// The point below which a share `p` of the distribution with both parameters `a` lies.
pub(super) fn beta_quantile(a: f64, p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(a, 1.0 - p);
    }
    // Halving an interval of numbers below 1 reaches the last bit of any quantile that matters in so many steps.
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if distribution(a, middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, a), x at most 1/2, by its power series:
/// `x^a / B(a, a) * sum_n (1 - a)_n x^n / (n! (a + n))`.
fn distribution(a: f64, x: f64) -> f64 {
    if x == 0.0 {
        return 0.0;
    }
    let log_beta = 2.0 * libm::lgamma(a) - libm::lgamma(2.0 * a);
    let (mut coefficient, mut sum) = (1.0, 1.0 / a);
    // Terms fall at least as fast as 2^-n.
    for n in 1..80 {
        let n = f64::from(n);
        coefficient *= (n - a) / n * x;
        sum += coefficient / (a + n);
    }
    (a * x.ln() - log_beta).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SciPy's `beta.ppf` gives.
    #[test]
    fn quantiles_of_the_distribution_that_samplers_use() {
        for (p, expected) in [
            (0.0, 0.0),
            (0.01, 0.000_861_238_821_542_905_9),
            (0.1, 0.039_584_405_588_780_85),
            (0.25, 0.175_680_378_652_694_98),
            (0.5, 0.5),
            (0.7, 0.765_982_996_124_764_3),
            (0.95, 0.987_445_543_126_388_5),
            (1.0, 1.0),
        ] {
            let actual = beta_quantile(0.6, p);
            assert!((actual - expected).abs() < 1e-13, "{p}: {actual} instead of {expected}");
        }
    }

    /// With a = 1 the distribution is uniform, with a = 1/2 its quantile is sin^2(pi p / 2).
    #[test]
    fn closed_forms() {
        for i in 0..=20 {
            let p = f64::from(i) / 20.0;
            assert!((beta_quantile(1.0, p) - p).abs() < 1e-14);
            let arcsine = (0.5 * std::f64::consts::PI * p).sin().powi(2);
            assert!((beta_quantile(0.5, p) - arcsine).abs() < 1e-13, "{p}");
        }
    }
}
