//! The training loss of one example and its gradient with respect to the network's output.

use std::f64::consts::LN_2;

use super::decoder::Bins;
use super::error::Result;
use super::loss::{LossWeighting, Objective};
use super::parameterization::{Linear2, PredictionType};
use super::schedule::Schedule;
use super::step_table::x0_coefficients;
use super::variance::VarianceType;
use super::vlb::Vlb;

/// An element type that the loss reads and writes; the arithmetic is f64.
pub trait Real: Copy {
    /// The value.
    fn get(self) -> f64;
    /// The nearest value of this type.
    fn put(value: f64) -> Self;
}

impl Real for f32 {
    fn get(self) -> f64 {
        f64::from(self)
    }
    fn put(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn get(self) -> f64 {
        self
    }
    fn put(value: f64) -> Self {
        value
    }
}

/// What a model is trained to minimise.
#[derive(Clone, Debug)]
pub struct TrainingObjective {
    schedule: Schedule,
    prediction_type: PredictionType,
    variance_type: VarianceType,
    objective: Objective,
    weights: Vec<f64>,
    levels: u32,
}

/// Operands of one example: NHWC slices of one image.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a, T> {
    /// Timestep.
    pub t: usize,
    /// Clean image.
    pub x0: &'a [T],
    /// Noisy image.
    pub x_t: &'a [T],
    /// Noise.
    pub eps: &'a [T],
    /// Model output, with twice the channels where the variance is learned.
    pub out: &'a [T],
    /// Channels of the image.
    pub channels: usize,
}

/// The loss of one example and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExampleLoss {
    /// The weighted sum that is minimised.
    pub loss: f64,
    /// L_simple, unweighted: the mean squared error of the prediction.
    pub simple: f64,
    /// The bound's term of this timestep in bits/dim; 0 where the objective does not contain it.
    pub vb: f64,
}

/// The scalars of one timestep that the loss is made of: what a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScalars {
    /// The forward process: x_t from (x_0, eps).
    pub forward: Linear2,
    /// What the network is to predict, from (x_0, eps).
    pub target: Linear2,
    /// x_0 from (x_t, model output); read by the bound only.
    pub x0: Linear2,
    /// Factor of x_0 in the posterior's mean.
    pub mean_x0: f64,
    /// Log variance of the posterior.
    pub posterior_log_variance: f64,
    /// Log variance of the reverse step at v = -1, or the fixed one; not read if the network outputs the variance
    /// itself.
    pub log_min: f64,
    /// The same at v = 1.
    pub log_max: f64,
    /// Weight of the squared error.
    pub mse_weight: f64,
}

impl TrainingObjective {
    /// The objective of a model. `levels` is the number of grey levels of the data, for the decoder term.
    pub fn new(
        schedule: Schedule,
        prediction_type: PredictionType,
        variance_type: VarianceType,
        objective: Objective,
        weighting: LossWeighting,
        levels: u32,
    ) -> Self {
        Self {
            weights: weighting.table(prediction_type, &schedule),
            schedule,
            prediction_type,
            variance_type,
            objective,
            levels,
        }
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The timestep that a number means; `None` for numbers that are no timestep of the schedule (NaN, negative,
    /// fractional, too large).
    pub fn timestep(&self, t: f64) -> Option<usize> {
        // False for NaN, too.
        let inside = t >= 0.0 && t < self.schedule.num_timesteps() as f64;
        (inside && t.fract() == 0.0).then_some(t as usize)
    }

    /// Whether the network's output has variance channels.
    pub fn learned_variance(&self) -> bool {
        self.variance_type.is_learned()
    }

    /// How the variance of the reverse step is had.
    pub fn variance_type(&self) -> VarianceType {
        self.variance_type
    }

    /// Weight of the bound of one timestep in bits per dimension; 0 where the objective does not contain it.
    pub fn bound_weight(&self) -> f64 {
        self.objective.vb_weight(self.schedule.num_timesteps())
    }

    /// Whether the bound's gradient reaches the network's prediction.
    pub fn bound_trains_mean(&self) -> bool {
        self.objective.vb_trains_mean()
    }

    /// The grey levels of the decoder term.
    pub fn bins(&self) -> Bins {
        Bins::new(self.levels)
    }

    /// The scalars of timestep `t`.
    ///
    /// # Errors
    /// Where [`example`](Self::example) refuses the timestep.
    pub fn scalars(&self, t: usize) -> Result<LossScalars> {
        Vlb::new(&self.schedule, self.prediction_type, self.variance_type, false, self.levels)?;
        let alpha_bar = self.schedule.alpha_bar(t)?;
        let x0 = if self.bound_weight() == 0.0 {
            Linear2 { first: 0.0, second: 0.0 }
        } else {
            x0_coefficients(self.prediction_type, alpha_bar, t)?
        };
        Ok(LossScalars {
            forward: Linear2 { first: alpha_bar.sqrt(), second: (1.0 - alpha_bar).sqrt() },
            target: self.prediction_type.target(alpha_bar),
            x0,
            mean_x0: self.schedule.posterior_mean_coef1[t],
            posterior_log_variance: self.schedule.posterior_log_variance_clipped[t],
            log_min: self.variance_type.log_variance(&self.schedule, t, -1.0),
            log_max: self.variance_type.log_variance(&self.schedule, t, 1.0),
            mse_weight: self.objective.mse_weight() * self.weights[t],
        })
    }

    /// The loss of one example; writes its gradient times `scale` to `dout`.
    ///
    /// # Errors
    /// A timestep outside the schedule, or one at which the parameterisation is singular.
    ///
    /// # Panics
    /// Slices of different lengths.
    pub fn example<T: Real>(&self, e: Example<'_, T>, scale: f64, dout: &mut [T]) -> Result<ExampleLoss> {
        let vlb = Vlb::new(&self.schedule, self.prediction_type, self.variance_type, false, self.levels)?;
        let vb_weight = self.objective.vb_weight(self.schedule.num_timesteps());
        let bound = if vb_weight == 0.0 { None } else { Some(vlb.at(e.t)?) };
        let alpha_bar = self.schedule.alpha_bar(e.t)?;
        let target = self.prediction_type.target(alpha_bar);
        let count = e.x0.len() as f64;
        let mse_weight = self.objective.mse_weight() * self.weights[e.t];
        let stride = if self.learned_variance() { 2 * e.channels } else { e.channels };
        assert_eq!(e.out.len() / stride, e.x0.len() / e.channels, "the model output does not fit the image");
        let (mut simple, mut vb) = (0.0, 0.0);
        for i in 0..e.x0.len() {
            let at = i / e.channels * stride + i % e.channels;
            let (x0, model) = (e.x0[i].get(), e.out[at].get());
            let error = model - target.apply(x0, e.eps[i].get());
            simple += error * error;
            let mut d_model = mse_weight * 2.0 * error / count;
            if let Some(step) = &bound {
                let v = if self.learned_variance() { e.out[at + e.channels].get() } else { 0.0 };
                let g = step.grad(x0, e.x_t[i].get(), model, v);
                let weight = vb_weight / count / LN_2;
                vb += g.nats / count / LN_2;
                if self.objective.vb_trains_mean() {
                    d_model += weight * g.d_model;
                }
                if self.learned_variance() {
                    dout[at + e.channels] = T::put(scale * weight * g.d_v);
                }
            } else if self.learned_variance() {
                dout[at + e.channels] = T::put(0.0);
            }
            dout[at] = T::put(scale * d_model);
        }
        simple /= count;
        Ok(ExampleLoss { loss: mse_weight * simple + vb_weight * vb, simple, vb })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    /// Deterministic numbers in (-1, 1).
    fn numbers(n: usize, seed: f64) -> Vec<f64> {
        (0..n).map(|i| (seed + 12.9898 * i as f64).sin()).collect()
    }

    #[test]
    fn gradients_match_finite_differences_for_every_objective() {
        let schedule = Schedule::new(&BetaConfig::linear(12)).unwrap();
        let objectives = [Objective::Simple, Objective::Hybrid { lambda: 0.02 }, Objective::Vlb];
        for prediction in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
            for variance in [VarianceType::FixedLarge, VarianceType::LearnedRange] {
                for objective in objectives {
                    for t in [0, 5] {
                        let weighting = LossWeighting::MinSnr { gamma: 5.0 };
                        let o =
                            TrainingObjective::new(schedule.clone(), prediction, variance, objective, weighting, 256);
                        check_gradient(&o, t);
                    }
                }
            }
        }
    }

    fn check_gradient(o: &TrainingObjective, t: usize) {
        let channels = 3;
        let (x0, x_t, eps) = (numbers(6, 0.1), numbers(6, 0.7), numbers(6, 1.9));
        let outputs = if o.learned_variance() { 12 } else { 6 };
        let out = numbers(outputs, 2.3);
        let loss = |out: &[f64], dout: &mut [f64]| {
            let e = Example { t, x0: &x0, x_t: &x_t, eps: &eps, out, channels };
            o.example(e, 1.0, dout).unwrap()
        };
        let mut gradient = vec![f64::NAN; outputs];
        loss(&out, &mut gradient);
        for i in 0..outputs {
            let is_variance = i % (outputs / 2) >= channels;
            let at = |h: f64| {
                let mut moved = out.clone();
                moved[i] += h;
                let l = loss(&moved, &mut vec![0.0; outputs]);
                // The hybrid loss stops the bound's gradient at the mean.
                let stopped = matches!(o.objective, Objective::Hybrid { .. }) && !(o.learned_variance() && is_variance);
                if stopped { l.simple * o.weights[t] } else { l.loss }
            };
            let (near, far) = (at(1e-4) - at(-1e-4), at(2e-4) - at(-2e-4));
            let expected = (8.0 * near - far) / 12e-4;
            let error = (gradient[i] - expected).abs();
            assert!(error < 1e-5 * expected.abs().max(1.0), "t {t}, output {i}: {} vs {expected}", gradient[i]);
        }
    }
}
