//! The bound timestep by timestep, and what a mean over few images says.

use serde::Serialize;

use crate::diffusion::{Result, Schedule, VbTerm};

/// What the images say of one timestep on average. Timestep 0 is L_0, timestep t is L_t, as in the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimestepTerms {
    /// The timestep, counted from 0.
    pub t: usize,
    /// Images that were evaluated here.
    pub images: usize,
    /// The term in bits per dimension, L_0 with the exact normal distribution function.
    pub bits_per_dim: f64,
    /// The same with the tanh approximation of published figures: `vb` of guided-diffusion. It differs at timestep 0 only.
    pub bits_per_dim_tanh: f64,
    /// Mean squared error of the clipped x_0 estimate: `xstart_mse` of guided-diffusion.
    pub x0_mse: f64,
    /// Mean squared error of the eps that this estimate implies: `mse` of guided-diffusion.
    pub implied_eps_mse: f64,
    /// Mean squared error of the network's own eps.
    pub eps_mse: f64,
}

/// Sums over images, by timestep.
pub(super) struct Sums(Vec<TimestepTerms>);

impl Sums {
    pub fn new(timesteps: usize) -> Self {
        Self((0..timesteps).map(|t| TimestepTerms { t, ..TimestepTerms::default() }).collect())
    }

    pub fn add(&mut self, t: usize, term: &VbTerm) {
        let sum = &mut self.0[t];
        sum.images += 1;
        sum.bits_per_dim += term.vb_exact;
        sum.bits_per_dim_tanh += term.vb_tanh;
        sum.x0_mse += term.x0_mse;
        sum.eps_mse += term.eps_mse;
    }

    /// The means of the timesteps that were visited, in ascending order.
    pub fn means(self, schedule: &Schedule) -> Result<Vec<TimestepTerms>> {
        let visited = self.0.into_iter().filter(|sum| sum.images > 0);
        visited
            .map(|sum| {
                let n = sum.images as f64;
                let x0_mse = sum.x0_mse / n;
                Ok(TimestepTerms {
                    bits_per_dim: sum.bits_per_dim / n,
                    bits_per_dim_tanh: sum.bits_per_dim_tanh / n,
                    x0_mse,
                    implied_eps_mse: x0_mse * schedule.snr(sum.t)?,
                    eps_mse: sum.eps_mse / n,
                    ..sum
                })
            })
            .collect()
    }
}

/// A mean over images, and how far it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Ends of the interval that holds the mean over all images with 95% confidence, by Student's distribution; `None` for one image.
    pub interval_95: Option<(f64, f64)>,
}

impl Estimate {
    /// Of one figure an image.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let n = values.clone().count();
        let mean = values.clone().sum::<f64>() / n as f64;
        let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0).max(1.0);
        let standard_error = (variance / n as f64).sqrt();
        let half = n.checked_sub(1).filter(|&freedom| freedom > 0).map(|freedom| student_975(freedom) * standard_error);
        Self { mean, standard_error, interval_95: half.map(|half| (mean - half, mean + half)) }
    }
}

/// The 97.5% quantile of Student's distribution, to 0.2%.
fn student_975(freedom: usize) -> f64 {
    // The series below needs some freedom.
    const FEW: [f64; 4] = [12.706, 4.303, 3.182, 2.776];
    const NORMAL: f64 = 1.959_963_985;
    if let Some(&quantile) = FEW.get(freedom - 1) {
        return quantile;
    }
    // Expansion around the normal quantile in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    let (z, f) = (NORMAL, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / f + second / f.powi(2) + third / f.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_of_known_numbers() {
        let estimate = Estimate::of([1.0, 2.0, 3.0, 6.0].into_iter());
        let error = (14.0f64 / 3.0 / 4.0).sqrt();
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.standard_error - error).abs() < 1e-15);
        let (low, high) = estimate.interval_95.unwrap();
        assert!((high - 3.0 - 3.182 * error).abs() < 1e-12 && (low + high - 6.0).abs() < 1e-12);
        assert_eq!(Estimate::of([2.0].into_iter()).interval_95, None);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)] {
            let actual = student_975(freedom);
            assert!((actual / expected - 1.0).abs() < 2e-3, "{freedom}: {actual} instead of {expected}");
        }
        assert!((student_975(1_000_000) - 1.96).abs() < 1e-3);
    }
}
