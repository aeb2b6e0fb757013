//! The variational bound on -log p(x_0), in bits per dimension, and its gradient.
//!
//! L = L_T + sum over t >= 1 of KL(q(x_{t-1} given x_t, x_0) || p(x_{t-1} given x_t)) + L_0, where the term of
//! timestep index 0 is L_0 = -log p(x_0 given x_1) of a discretised decoder (2006.11239, eq. 5 and 13).

use std::f64::consts::LN_2;

use super::decoder::{Bins, Cdf, GaussianGrad, normal_kl, normal_kl_grad};
use super::error::{DiffusionError, Result};
use super::parameterization::{Linear2, PredictionType};
use super::schedule::Schedule;
use super::step_table::x0_coefficients;
use super::variance::VarianceType;

/// One term of the bound, for one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VbTerm {
    /// Bits per dimension; the decoder term by the tanh approximation of the normal CDF, as published figures are.
    pub vb_tanh: f64,
    /// Bits per dimension; the decoder term by the error function. Equal to `vb_tanh` for t >= 1.
    pub vb_exact: f64,
    /// Mean squared error of the (possibly clipped) x_0 estimate. Multiplied by the SNR of t it is the error of the
    /// eps that this estimate implies.
    pub x0_mse: f64,
    /// Mean squared error of the network's own eps, not clipped.
    pub eps_mse: f64,
}

/// What the bound is computed with.
#[derive(Clone, Debug)]
pub struct Vlb<'a> {
    schedule: &'a Schedule,
    prediction_type: PredictionType,
    variance_type: VarianceType,
    clip_x0: bool,
    bins: Bins,
}

impl<'a> Vlb<'a> {
    /// `clip_x0` clamps the x_0 estimate to [-1, 1]: true when evaluating, false in the hybrid training loss. `levels`
    /// is the number of grey levels of the data, 256 for 8-bit images.
    ///
    /// # Errors
    /// Fewer than 2 levels.
    pub fn new(
        schedule: &'a Schedule,
        prediction_type: PredictionType,
        variance_type: VarianceType,
        clip_x0: bool,
        levels: u32,
    ) -> Result<Self> {
        if levels < 2 {
            return Err(DiffusionError::TooFewLevels(levels));
        }
        Ok(Self { schedule, prediction_type, variance_type, clip_x0, bins: Bins::new(levels) })
    }

    /// The scalars of timestep `t`, for element-wise use.
    ///
    /// # Errors
    /// `t` outside the schedule, or eps prediction at an alpha_bar of 0.
    pub fn at(&self, t: usize) -> Result<VlbStep<'_>> {
        let alpha_bar = self.schedule.alpha_bar(t)?;
        Ok(VlbStep {
            vlb: self,
            t,
            x0: x0_coefficients(self.prediction_type, alpha_bar, t)?,
            eps: self.prediction_type.eps_from_model(alpha_bar),
            true_eps: super::parameterization::eps_from_x0(alpha_bar),
            mean: Linear2 {
                first: self.schedule.posterior_mean_coef1[t],
                second: self.schedule.posterior_mean_coef2[t],
            },
        })
    }

    /// The term of timestep `t` for one image of any element order that the slices share. `v` are the variance
    /// channels; it may be empty for fixed variances. Pass x_t in f64 where it can be had: small t is ill-conditioned.
    ///
    /// # Errors
    /// As [`at`](Self::at).
    ///
    /// # Panics
    /// Slices of different lengths.
    pub fn term<X, S, M>(&self, t: usize, x0: &[X], x_t: &[S], model: &[M], v: &[M]) -> Result<VbTerm>
    where
        X: Copy + Into<f64>,
        S: Copy + Into<f64>,
        M: Copy + Into<f64>,
    {
        let step = self.at(t)?;
        let learned = self.variance_type.is_learned();
        assert!(x_t.len() == x0.len() && model.len() == x0.len(), "x0, x_t and model differ in length");
        assert!(!learned || v.len() == x0.len(), "the variance channels have another length than x0");
        let (mut tanh, mut exact, mut x0_error, mut eps_error) = (0.0, 0.0, 0.0, 0.0);
        for i in 0..x0.len() {
            let (x0, x_t, model) = (x0[i].into(), x_t[i].into(), model[i].into());
            let v = if learned { v[i].into() } else { 0.0 };
            let nats = step.nats(Cdf::Tanh, x0, x_t, model, v);
            tanh += nats;
            exact += if t == 0 { step.nats(Cdf::Exact, x0, x_t, model, v) } else { nats };
            x0_error += (step.x0_estimate(x_t, model) - x0).powi(2);
            eps_error += (step.eps.apply(x_t, model) - step.true_eps.apply(x_t, x0)).powi(2);
        }
        let count = x0.len() as f64;
        Ok(VbTerm {
            vb_tanh: tanh / count / LN_2,
            vb_exact: exact / count / LN_2,
            x0_mse: x0_error / count,
            eps_mse: eps_error / count,
        })
    }
}

/// L_T = KL(q(x_T given x_0) || N(0, 1)) of one image, in bits per dimension.
pub fn prior_bpd<X: Copy + Into<f64>>(schedule: &Schedule, x0: &[X]) -> f64 {
    let alpha_bar = schedule.alpha_bars.last().copied().unwrap_or(1.0);
    let log_variance = (-alpha_bar).ln_1p();
    let nats: f64 = x0.iter().map(|&x| normal_kl(alpha_bar.sqrt() * x.into(), log_variance, 0.0, 0.0)).sum();
    nats / x0.len() as f64 / LN_2
}

/// The bound of one timestep, element by element, in nats. Divide a mean over elements by ln 2 for bits per dimension.
#[derive(Clone, Debug)]
pub struct VlbStep<'a> {
    vlb: &'a Vlb<'a>,
    t: usize,
    x0: Linear2,
    eps: Linear2,
    true_eps: Linear2,
    /// Posterior mean from (x_0, x_t).
    mean: Linear2,
}

/// The bound of one element, in nats, with its derivatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ElementGrad {
    /// The value.
    pub nats: f64,
    /// Derivative with respect to the model output; 0 where the x_0 estimate is clipped. The hybrid loss drops it.
    pub d_model: f64,
    /// Derivative with respect to the variance channel; 0 for fixed variances.
    pub d_v: f64,
}

impl VlbStep<'_> {
    /// The x_0 estimate, clipped if the bound is computed so.
    pub fn x0_estimate(&self, x_t: f64, model: f64) -> f64 {
        let x0 = self.x0.apply(x_t, model);
        if self.vlb.clip_x0 { x0.clamp(-1.0, 1.0) } else { x0 }
    }

    /// The term's value for one element.
    pub fn nats(&self, cdf: Cdf, x0: f64, x_t: f64, model: f64, v: f64) -> f64 {
        let mean = self.mean.apply(self.x0_estimate(x_t, model), x_t);
        let log_variance = self.log_variance(v);
        if self.t == 0 {
            self.vlb.bins.negative_log_likelihood(cdf, x0, mean, log_variance)
        } else {
            normal_kl(self.mean.apply(x0, x_t), self.posterior_log_variance(), mean, log_variance)
        }
    }

    /// The term's value and derivatives for one element, the decoder by the tanh approximation, as models are trained.
    pub fn grad(&self, x0: f64, x_t: f64, model: f64, v: f64) -> ElementGrad {
        let estimate = self.x0_estimate(x_t, model);
        let mean = self.mean.apply(estimate, x_t);
        let log_variance = self.log_variance(v);
        let GaussianGrad { nats, d_mean, d_log_variance } = if self.t == 0 {
            let bins = &self.vlb.bins;
            bins.negative_log_likelihood_grad(Cdf::Tanh, x0, mean, log_variance)
        } else {
            let q_mean = self.mean.apply(x0, x_t);
            normal_kl_grad(q_mean, self.posterior_log_variance(), mean, log_variance)
        };
        let is_clipped = estimate != self.x0.apply(x_t, model);
        ElementGrad {
            nats,
            d_model: if is_clipped { 0.0 } else { d_mean * self.mean.first * self.x0.second },
            d_v: d_log_variance * self.vlb.variance_type.log_variance_grad(self.vlb.schedule, self.t, v),
        }
    }

    fn log_variance(&self, v: f64) -> f64 {
        self.vlb.variance_type.log_variance(self.vlb.schedule, self.t, v)
    }

    fn posterior_log_variance(&self) -> f64 {
        self.vlb.schedule.posterior_log_variance_clipped[self.t]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    const X0: [f64; 5] = [-1.0, -1.0 + 22.0 / 255.0, -1.0 + 254.0 / 255.0, 0.6, 1.0];
    const EPS: [f64; 5] = [0.3, -1.2, 0.05, 2.2, -0.7];

    fn noisy(schedule: &Schedule, t: usize) -> Vec<f64> {
        let alpha_bar = schedule.alpha_bars[t];
        let mix = |(x0, eps): (&f64, &f64)| alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * eps;
        X0.iter().zip(&EPS).map(mix).collect()
    }

    #[test]
    fn a_perfect_eps_has_zero_kl_with_the_small_variance() {
        let schedule = Schedule::new(&BetaConfig::linear(50)).unwrap();
        let vlb = Vlb::new(&schedule, PredictionType::Epsilon, VarianceType::FixedSmall, true, 256).unwrap();
        for t in [1, 7, 49] {
            let term = vlb.term(t, &X0, &noisy(&schedule, t), &EPS, &[]).unwrap();
            assert!(term.vb_exact.abs() < 1e-12 && term.eps_mse < 1e-20, "t {t}: {term:?}");
        }
    }

    #[test]
    fn kl_of_an_eps_error_matches_its_closed_form() {
        // With the posterior variance: beta^2 / (2 var alpha (1 - alpha_bar)) |d eps|^2 (2006.11239, eq. 12).
        let s = Schedule::new(&BetaConfig::linear(50)).unwrap();
        let vlb = Vlb::new(&s, PredictionType::Epsilon, VarianceType::FixedSmallLog, false, 256).unwrap();
        let t = 20;
        let model: Vec<f64> = EPS.iter().map(|eps| eps + 0.25).collect();
        let term = vlb.term(t, &X0, &noisy(&s, t), &model, &[]).unwrap();
        let weight = s.betas[t].powi(2) / (2.0 * s.posterior_variance[t] * s.alphas[t] * (1.0 - s.alpha_bars[t]));
        assert!((term.vb_tanh / (weight * 0.0625 / LN_2) - 1.0).abs() < 1e-9);
        assert!((term.eps_mse - 0.0625).abs() < 1e-12);
        assert!((term.x0_mse * s.snr(t).unwrap() - 0.0625).abs() < 1e-12);
    }

    #[test]
    fn prior_vanishes_at_zero_snr_and_matches_the_formula() {
        let mut config = BetaConfig::linear(50);
        let schedule = Schedule::new(&config).unwrap();
        let a = *schedule.alpha_bars.last().unwrap();
        let expected: f64 = X0.iter().map(|x| 0.5 * (a * x * x - a - (1.0 - a).ln())).sum::<f64>() / 5.0 / LN_2;
        assert!((prior_bpd(&schedule, &X0) - expected).abs() < 1e-12);
        config.rescale_zero_terminal_snr = true;
        assert_eq!(prior_bpd(&Schedule::new(&config).unwrap(), &X0), 0.0);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let schedule = Schedule::new(&BetaConfig::cosine(24)).unwrap();
        let h = 1e-6;
        for prediction_type in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
            for variance_type in [VarianceType::LearnedRange, VarianceType::Learned, VarianceType::FixedLarge] {
                let vlb = Vlb::new(&schedule, prediction_type, variance_type, true, 256).unwrap();
                for t in [0, 1, 11, 22] {
                    let step = vlb.at(t).unwrap();
                    let target = prediction_type.target(schedule.alpha_bars[t]);
                    for (i, x_t) in noisy(&schedule, t).into_iter().enumerate() {
                        let (model, v) = (target.apply(X0[i], EPS[i]) + 0.013, 0.2);
                        let nats = |m: f64, v: f64| step.nats(Cdf::Tanh, X0[i], x_t, m, v);
                        let grad = step.grad(X0[i], x_t, model, v);
                        let d_model = (nats(model + h, v) - nats(model - h, v)) / (2.0 * h);
                        let d_v = (nats(model, v + h) - nats(model, v - h)) / (2.0 * h);
                        assert_eq!(grad.nats, nats(model, v));
                        let context = format!("{prediction_type:?} {variance_type:?} t {t} element {i}");
                        assert!((grad.d_model - d_model).abs() < 1e-5 * (1.0 + d_model.abs()), "{context}");
                        assert!((grad.d_v - d_v).abs() < 1e-5 * (1.0 + d_v.abs()), "{context}");
                    }
                }
            }
        }
    }

    #[test]
    fn misuse_is_refused() {
        let schedule = Schedule::new(&BetaConfig::linear(5)).unwrap();
        let vlb = |levels| Vlb::new(&schedule, PredictionType::Epsilon, VarianceType::FixedSmall, true, levels);
        assert!(matches!(vlb(1), Err(DiffusionError::TooFewLevels(1))));
        assert!(matches!(vlb(2).unwrap().at(5), Err(DiffusionError::TimestepOutOfRange { .. })));
    }
}
