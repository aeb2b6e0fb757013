//! The forward (noising) process.

use super::error::Result;
use super::schedule::Schedule;

/// A Gaussian whose mean is a multiple of the conditioning value: N(`mean_coef` * given, `variance`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledGaussian {
    /// Factor of the conditioning value in the mean.
    pub mean_coef: f64,
    /// Variance of every element.
    pub variance: f64,
}

impl ScaledGaussian {
    /// The sample at conditioning value `given` for a standard normal draw `noise`.
    pub fn sample(&self, given: f64, noise: f64) -> f64 {
        self.mean_coef * given + self.variance.sqrt() * noise
    }
}

/// q(x_t given x_0) = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t) (2006.11239, eq. 4).
///
/// # Errors
/// `t` outside the schedule.
pub fn q_xt_given_x0(schedule: &Schedule, t: usize) -> Result<ScaledGaussian> {
    let alpha_bar = schedule.alpha_bar(t)?;
    Ok(ScaledGaussian { mean_coef: alpha_bar.sqrt(), variance: 1.0 - alpha_bar })
}

/// q(x_t given x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t) (2006.11239, eq. 2).
///
/// # Errors
/// `t` outside the schedule.
pub fn q_xt_given_prev(schedule: &Schedule, t: usize) -> Result<ScaledGaussian> {
    schedule.alpha_bar(t)?;
    Ok(ScaledGaussian { mean_coef: schedule.alphas[t].sqrt(), variance: schedule.betas[t] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    #[test]
    fn chaining_single_steps_gives_the_marginal() {
        let schedule = Schedule::new(&BetaConfig::linear(123)).unwrap();
        let (mut mean, mut variance) = (1.0, 0.0);
        for t in 0..123 {
            let step = q_xt_given_prev(&schedule, t).unwrap();
            mean *= step.mean_coef;
            variance = step.mean_coef.powi(2) * variance + step.variance;
            let marginal = q_xt_given_x0(&schedule, t).unwrap();
            assert!((marginal.mean_coef - mean).abs() < 1e-14);
            assert!((marginal.variance - variance).abs() < 1e-14);
        }
        assert!(q_xt_given_prev(&schedule, 123).is_err());
    }

    #[test]
    fn samples_shift_and_scale_the_noise() {
        let q = ScaledGaussian { mean_coef: 0.6, variance: 0.64 };
        assert!((q.sample(-0.5, 1.25) - 0.7).abs() < 1e-15);
    }
}
