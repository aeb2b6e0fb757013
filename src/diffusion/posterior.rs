//! The reverse of the forward process when x_0 is known.

/// q(x_s given x_t, x_0) for s < t: N(`x0_coef` x_0 + `xt_coef` x_t, `variance`) (2006.11239, eq. 6 and 7), where the
/// neighbours s and t of a shortened sampler need not be adjacent training timesteps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Factor of x_0 in the mean: sqrt(alpha_bar_s) beta / (1 - alpha_bar_t).
    pub x0_coef: f64,
    /// Factor of x_t in the mean: sqrt(alpha) (1 - alpha_bar_s) / (1 - alpha_bar_t).
    pub xt_coef: f64,
    /// (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta; 0 when `alpha_bar_s` is 1.
    pub variance: f64,
    /// Variance of the forward jump from s to t: beta = 1 - alpha_bar_t / alpha_bar_s.
    pub beta: f64,
}

impl Posterior {
    /// The posterior between the noise levels `alpha_bar_t` (now) and `alpha_bar_s` (next, larger; 1 means clean).
    pub fn between(alpha_bar_t: f64, alpha_bar_s: f64) -> Self {
        let alpha = alpha_bar_t / alpha_bar_s;
        let beta = 1.0 - alpha;
        let noise_t = 1.0 - alpha_bar_t;
        let noise_s = 1.0 - alpha_bar_s;
        Self {
            x0_coef: alpha_bar_s.sqrt() * beta / noise_t,
            xt_coef: alpha.sqrt() * noise_s / noise_t,
            variance: noise_s / noise_t * beta,
            beta,
        }
    }

    /// The mean for the given x_0 and x_t.
    pub fn mean(&self, x0: f64, x_t: f64) -> f64 {
        self.x0_coef * x0 + self.xt_coef * x_t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaConfig, Schedule};

    #[test]
    fn agrees_with_bayes_rule() {
        // Precision-weighted product of the prior q(x_s | x_0) and the likelihood q(x_t | x_s).
        let schedule = Schedule::new(&BetaConfig::linear(200)).unwrap();
        for (t, s) in [(1, 0), (17, 16), (150, 20), (199, 3)] {
            let (alpha_bar_t, alpha_bar_s) = (schedule.alpha_bars[t], schedule.alpha_bars[s]);
            let (x0, x_t) = (0.37, -1.21);
            let jump: f64 = schedule.alphas[s + 1..=t].iter().product();
            let (prior_mean, prior_variance) = (alpha_bar_s.sqrt() * x0, 1.0 - alpha_bar_s);
            let precision = 1.0 / prior_variance + jump / (1.0 - jump);
            let mean = (prior_mean / prior_variance + jump.sqrt() * x_t / (1.0 - jump)) / precision;
            let posterior = Posterior::between(alpha_bar_t, alpha_bar_s);
            assert!((posterior.mean(x0, x_t) - mean).abs() < 1e-12, "t {t} s {s}");
            assert!((posterior.variance * precision - 1.0).abs() < 1e-11, "t {t} s {s}");
        }
    }

    #[test]
    fn adjacent_steps_reproduce_the_schedule_tables() {
        let s = Schedule::new(&BetaConfig::cosine(60)).unwrap();
        for t in 0..60 {
            let p = Posterior::between(s.alpha_bars[t], s.alpha_bars_prev[t]);
            assert!((p.x0_coef - s.posterior_mean_coef1[t]).abs() < 1e-12);
            assert!((p.xt_coef - s.posterior_mean_coef2[t]).abs() < 1e-12);
            assert!((p.variance - s.posterior_variance[t]).abs() < 1e-12);
            assert!((p.beta - s.betas[t]).abs() < 1e-12);
        }
    }

    #[test]
    fn the_last_step_returns_x0() {
        let p = Posterior::between(0.9, 1.0);
        assert!((p.mean(0.25, 7.0) - 0.25).abs() < 1e-15);
        assert_eq!(p.variance, 0.0);
    }
}
