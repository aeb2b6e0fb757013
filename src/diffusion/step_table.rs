//! One sampling step as a row of scalars: the contract between the samplers and the step kernels.
//!
//! Every sampler reduces to
//!
//! ```text
//! x0     = clip(c_x0x * x_t + c_x0m * model)
//! x_next = a * x_t + b * x0 + e * model + p * x0_prev + std * z
//! ```
//!
//! where `model` is the network's raw output in its own parameterisation, `x0_prev` the clipped x_0 of the step before
//! and z standard normal. A kernel that knows this formula runs any of them.

use super::clip::Clip;
use super::config::{SamplerKind, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::parameterization::{Linear2, PredictionType};
use super::variance::interpolate_log_variance;

/// How the network's variance channels v become the standard deviation of a step's noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnedVariance {
    /// v is the variance: std = sqrt(v).
    Direct,
    /// v interpolates log variances: std = exp(0.5 (f log_max + (1 - f) log_min)), f = (v + 1) / 2.
    LogRange,
}

/// The scalars of one sampling step; see the [module](self) for the formula.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepRow {
    /// What the network receives as time.
    pub timestep: f32,
    /// Factor of x_t in x_0.
    pub c_x0x: f64,
    /// Factor of the model output in x_0.
    pub c_x0m: f64,
    /// Factor of x_t in x_next.
    pub a: f64,
    /// Factor of the clipped x_0 in x_next.
    pub b: f64,
    /// Factor of the model output in x_next.
    pub e: f64,
    /// Factor of the previous step's x_0 in x_next; 0 where there is none.
    pub p: f64,
    /// Standard deviation of the noise; not read if the variance is learned.
    pub s: f64,
    /// Log variance at v = -1; read by [`LearnedVariance::LogRange`] only.
    pub log_min: f64,
    /// Log variance at v = 1; read by [`LearnedVariance::LogRange`] only.
    pub log_max: f64,
    /// Whether noise is added at all.
    pub noise: bool,
}

/// The values of one element that enter a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepInput {
    /// The noisy value.
    pub x_t: f64,
    /// The network's output.
    pub model: f64,
    /// The network's variance channel; not read if the variance is fixed.
    pub v: f64,
    /// The previous step's clipped x_0; not read where `p` is 0.
    pub x0_prev: f64,
    /// A standard normal draw; not read in steps without noise.
    pub z: f64,
}

impl StepRow {
    /// Length of [`packed`](Self::packed).
    pub const PACKED_LEN: usize = 12;

    /// The row for a device: timestep, c_x0x, c_x0m, a, b, e, p, s, log_min, log_max, noise (0 or 1), 0.
    ///
    /// In f64: near alpha_bar = 0 coefficients nearly cancel, and f32 would show in x_0. Twelve keep rows 16-byte aligned.
    pub fn packed(&self) -> [f64; Self::PACKED_LEN] {
        let noise = if self.noise { 1.0 } else { 0.0 };
        [
            f64::from(self.timestep),
            self.c_x0x,
            self.c_x0m,
            self.a,
            self.b,
            self.e,
            self.p,
            self.s,
            self.log_min,
            self.log_max,
            noise,
            0.0,
        ]
    }

    /// The x_0 estimate before clipping.
    pub fn x0(&self, x_t: f64, model: f64) -> f64 {
        self.c_x0x * x_t + self.c_x0m * model
    }

    /// Standard deviation of the noise of an element with variance channel `v`; 0 in steps without noise.
    pub fn noise_std(&self, learned: Option<LearnedVariance>, v: f64) -> f64 {
        match learned {
            _ if !self.noise => 0.0,
            None => self.s,
            Some(LearnedVariance::Direct) => v.sqrt(),
            Some(LearnedVariance::LogRange) => (0.5 * interpolate_log_variance(v, self.log_min, self.log_max)).exp(),
        }
    }

    /// x_next of one element, given its clipped x_0.
    pub fn x_next(&self, input: &StepInput, x0: f64, learned: Option<LearnedVariance>) -> f64 {
        let mut x_next = self.a * input.x_t + self.b * x0 + self.e * input.model;
        // Guarded, as a buffer that holds nothing yet may hold NaN.
        if self.p != 0.0 {
            x_next += self.p * input.x0_prev;
        }
        if self.noise {
            x_next += self.noise_std(learned, input.v) * input.z;
        }
        x_next
    }

    /// One step of one element: (x_next, clipped x_0). `clip_scale` is the image's [`Clip::dynamic_scale`].
    pub fn apply(
        &self,
        input: &StepInput,
        clip: Clip,
        clip_scale: f64,
        learned: Option<LearnedVariance>,
    ) -> (f64, f64) {
        let x0 = clip.apply(self.x0(input.x_t, input.model), clip_scale);
        (self.x_next(input, x0, learned), x0)
    }
}

/// A whole sampling run as data: one row per network evaluation, first step first.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTable {
    /// The steps.
    pub rows: Vec<StepRow>,
    /// Limit on x_0, the same in every step.
    pub clip: Clip,
    /// Set if the noise's variance comes from the network, which then outputs twice the image's channels. If it is
    /// not set and the network has variance channels all the same, they are not read.
    pub learned_variance: Option<LearnedVariance>,
    /// Standard deviation of the initial x.
    pub init_noise_sigma: f64,
}

impl StepTable {
    /// The table of a sampler configuration for `num_inference_steps` steps; `eta` is DDIM's.
    ///
    /// # Errors
    /// Timesteps that do not fit the schedule, an invalid noise schedule, eta outside 0..=1 or given to a sampler other
    /// than DDIM, or eps prediction at an alpha_bar of 0.
    pub fn build(config: &SchedulerConfig, num_inference_steps: usize, eta: f64) -> Result<Self> {
        if config.sampler != SamplerKind::Ddim && eta != 0.0 {
            let sampler = config.sampler;
            return Err(DiffusionError::EtaWithoutDdim { eta, sampler });
        }
        match config.sampler {
            SamplerKind::Ddpm => Self::ddpm(config, num_inference_steps),
            SamplerKind::Ddim => Self::ddim(config, num_inference_steps, eta, false),
            SamplerKind::DpmSolverPp => Self::dpm_solver_pp(config, num_inference_steps),
        }
    }

    /// Rows for a device, one after the other, [`StepRow::PACKED_LEN`] numbers each.
    pub fn packed(&self) -> Vec<f64> {
        self.rows.iter().flat_map(StepRow::packed).collect()
    }

    /// Runs step `step` on one image in place: `x` is x_t and becomes x_next, `x0_prev` becomes this step's x_0.
    ///
    /// `v` may be empty if the variance is fixed, `z` if the step adds no noise; any element order will do as long as
    /// all slices share it.
    ///
    /// # Panics
    /// `step` outside the table, or a slice of another length than `x`.
    pub fn step_image(&self, step: usize, x: &mut [f64], model: &[f64], v: &[f64], x0_prev: &mut [f64], z: &[f64]) {
        let row = &self.rows[step];
        let reads_v = row.noise && self.learned_variance.is_some();
        assert!(model.len() == x.len() && x0_prev.len() == x.len());
        assert!(!reads_v || v.len() == x.len(), "the variance channels have another length than x");
        assert!(!row.noise || z.len() == x.len(), "the noise has another length than x");
        let scale = match self.clip {
            Clip::Dynamic { .. } => {
                let mut magnitudes: Vec<f64> = x.iter().zip(model).map(|(&x, &m)| row.x0(x, m).abs()).collect();
                self.clip.dynamic_scale(&mut magnitudes)
            }
            _ => 1.0,
        };
        for i in 0..x.len() {
            let input = StepInput {
                x_t: x[i],
                model: model[i],
                v: if reads_v { v[i] } else { 0.0 },
                x0_prev: x0_prev[i],
                z: if row.noise { z[i] } else { 0.0 },
            };
            (x[i], x0_prev[i]) = row.apply(&input, self.clip, scale, self.learned_variance);
        }
    }
}

/// x_0 from (x_t, model output), refused where alpha_bar = 0 makes it infinite.
pub(super) fn x0_coefficients(prediction: PredictionType, alpha_bar: f64, timestep: usize) -> Result<Linear2> {
    if prediction == PredictionType::Epsilon && alpha_bar == 0.0 {
        return Err(DiffusionError::EpsilonAtZeroSnr { timestep });
    }
    Ok(prediction.x0_from_model(alpha_bar))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: StepRow = StepRow {
        timestep: 7.0,
        c_x0x: 2.0,
        c_x0m: -1.0,
        a: 0.5,
        b: 0.25,
        e: 0.125,
        p: -0.5,
        s: 0.1,
        log_min: -4.0,
        log_max: -2.0,
        noise: true,
    };

    #[test]
    fn apply_follows_the_formula() {
        let input = StepInput { x_t: 1.0, model: -0.5, v: 0.5, x0_prev: 0.75, z: -2.0 };
        // x0 = 2 + 0.5 clamped to 2.
        let (x_next, x0) = ROW.apply(&input, Clip::Range(2.0), 1.0, None);
        assert_eq!(x0, 2.0);
        assert!((x_next - (0.5 + 0.5 - 0.0625 - 0.375 - 0.2)).abs() < 1e-15);
        let std = ROW.noise_std(Some(LearnedVariance::LogRange), 0.5);
        assert!((std - (-1.25_f64).exp()).abs() < 1e-15);
        assert_eq!(ROW.noise_std(Some(LearnedVariance::Direct), 0.25), 0.5);
    }

    #[test]
    fn unread_inputs_may_hold_nan() {
        let row = StepRow { p: 0.0, noise: false, ..ROW };
        let input = StepInput { x_t: 1.0, model: 0.0, v: f64::NAN, x0_prev: f64::NAN, z: f64::NAN };
        assert_eq!(row.apply(&input, Clip::None, 1.0, Some(LearnedVariance::Direct)), (1.0, 2.0));
    }

    #[test]
    fn packing_keeps_the_order() {
        let expected = [7.0, 2.0, -1.0, 0.5, 0.25, 0.125, -0.5, 0.1, -4.0, -2.0, 1.0, 0.0];
        assert_eq!(ROW.packed(), expected);
        let table = StepTable { rows: vec![ROW, ROW], clip: Clip::None, learned_variance: None, init_noise_sigma: 1.0 };
        assert_eq!(table.packed(), [expected, expected].concat());
    }

    #[test]
    fn step_image_thresholds_each_image_by_its_own_quantile() {
        let table = StepTable {
            rows: vec![StepRow { a: 0.0, e: 0.0, b: 1.0, p: 0.0, noise: false, ..ROW }],
            clip: Clip::Dynamic { ratio: 0.5, max_value: 100.0 },
            learned_variance: None,
            init_noise_sigma: 1.0,
        };
        // x0 = 2 x - m = 1, -4, 8: the median magnitude is 4.
        let (mut x, mut x0_prev) = ([0.5, -2.0, 3.5], [f64::NAN; 3]);
        table.step_image(0, &mut x, &[0.0, 0.0, -1.0], &[], &mut x0_prev, &[]);
        assert_eq!(x, [0.25, -1.0, 1.0]);
        assert_eq!(x0_prev, x);
    }
}
