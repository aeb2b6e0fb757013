//! One sampling step as a row of scalars: the contract between the samplers and the step kernels.
//!
//! Every sampler reduces to
//!
//! ```text
//! x0         = clip(c_x0x * x_t + c_x0m * model)
//! x_next     = a * x_t + b * x0 + e * model + p * x0_prev + q * x0_prev2 + r * saved + std * z
//!              + (g + g_variance * std^2) * gradient
//! saved_next = k.x * x_t + k.x0 * x0 + k.x0_prev * x0_prev + k.x0_prev2 * x0_prev2 + k.saved * saved
//! ```
//!
//! where `model` is the network's raw output in its own parameterisation, `x0_prev` and `x0_prev2` the clipped x_0 of the
//! two steps before, `saved` a state the sampler fills as it likes, z standard normal and `gradient` that of a classifier,
//! d log p(y | x_t) / d x_t, times a scale (2105.05233); without a classifier the last line is not there. A kernel that knows
//! this formula runs any of them. Which of `x0_prev2` and `saved` exist at all is [`StepTable::history`].
//!
//! The state is always in the variance-preserving scale, x_t = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1: it is what
//! the network reads. Samplers that are published in the variance-exploding scale differ by a factor a step,
//! [`StepTable::published_scale`].

use super::clip::Clip;
use super::config::{Compat, SamplerKind, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::parameterization::{Linear2, PredictionType};
use super::respacing::Respaced;
use super::schedule::Schedule;
use super::score_sde::{DataRange, NormScope, norm};
use super::variance::interpolate_log_variance;

/// How the network's variance channels v become the standard deviation of a step's noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnedVariance {
    /// v is the variance: std = sqrt(v).
    Direct,
    /// v interpolates log variances: std = exp(0.5 (f log_max + (1 - f) log_min)), f = (v + 1) / 2.
    LogRange,
}

/// The saved state after a step as a combination of what the step read, x_0 being the clipped one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Keep {
    /// Factor of x_t.
    pub x: f64,
    /// Factor of this step's x_0.
    pub x0: f64,
    /// Factor of the previous step's x_0.
    pub x0_prev: f64,
    /// Factor of the x_0 of two steps before.
    pub x0_prev2: f64,
    /// Factor of the saved state itself.
    pub saved: f64,
}

/// Which states a table needs besides x and the previous x_0. What is not needed takes no memory and no traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The x_0 of two steps before.
    pub x0_prev2: bool,
    /// The saved state.
    pub saved: bool,
}

impl History {
    /// Whether there is any.
    pub fn any(self) -> bool {
        self.x0_prev2 || self.saved
    }
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
    /// Factor of the x_0 of two steps before in x_next; 0 where there is none.
    pub q: f64,
    /// Factor of the saved state in x_next; 0 where there is none.
    pub r: f64,
    /// What becomes of the saved state.
    pub keep: Keep,
    /// Standard deviation of the noise; not read if the variance is learned.
    pub s: f64,
    /// Log variance at v = -1; read by [`LearnedVariance::LogRange`] only.
    pub log_min: f64,
    /// Log variance at v = 1; read by [`LearnedVariance::LogRange`] only.
    pub log_max: f64,
    /// Whether noise is added at all.
    pub noise: bool,
    /// Factor of a classifier's scaled gradient in x_next.
    pub g: f64,
    /// The same, to be multiplied by the variance of the step, which a network may decide.
    pub g_variance: f64,
    /// Signal-to-noise ratio of a Langevin corrector, whose `e` and `s` follow from it and from the image
    /// ([`StepRow::with_norms`]); 0 in all other steps.
    pub snr: f64,
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
    /// The previous step's clipped x_0; not read where its factors are 0.
    pub x0_prev: f64,
    /// The clipped x_0 of two steps before; not read where its factors are 0.
    pub x0_prev2: f64,
    /// The saved state; not read where its factors are 0.
    pub saved: f64,
    /// A standard normal draw; not read in steps without noise.
    pub z: f64,
    /// A classifier's gradient times its scale; 0 without a classifier.
    pub gradient: f64,
}

impl StepRow {
    /// Length of [`packed`](Self::packed).
    pub const PACKED_LEN: usize = 22;

    /// The row for a device: timestep, c_x0x, c_x0m, a, b, e, p, s, log_min, log_max, noise (0 or 1), q, r, the
    /// factors of [`Keep`] in their order, g, g_variance, snr, and a number that is not read.
    ///
    /// In f64: near alpha_bar = 0 coefficients nearly cancel, and f32 would show in x_0. Their number is even, so that rows
    /// stay aligned to 16 bytes.
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
            self.q,
            self.r,
            self.keep.x,
            self.keep.x0,
            self.keep.x0_prev,
            self.keep.x0_prev2,
            self.keep.saved,
            self.g,
            self.g_variance,
            self.snr,
            0.0,
        ]
    }

    /// The x_0 estimate before clipping.
    pub fn x0(&self, x_t: f64, model: f64) -> f64 {
        self.c_x0x * x_t + self.c_x0m * model
    }

    /// Standard deviation of the noise of an element with variance channel `v`; 0 in steps without noise.
    pub fn noise_std(&self, learned: Option<LearnedVariance>, v: f64) -> f64 {
        if self.noise { self.std(learned, v) } else { 0.0 }
    }

    /// Standard deviation of the reverse step at variance channel `v`, also of a step that adds no noise.
    fn std(&self, learned: Option<LearnedVariance>, v: f64) -> f64 {
        match learned {
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
        if self.q != 0.0 {
            x_next += self.q * input.x0_prev2;
        }
        if self.r != 0.0 {
            x_next += self.r * input.saved;
        }
        if self.noise {
            x_next += self.noise_std(learned, input.v) * input.z;
        }
        if input.gradient != 0.0 {
            let variance = if self.g_variance == 0.0 { 0.0 } else { self.std(learned, input.v).powi(2) };
            x_next += (self.g + self.g_variance * variance) * input.gradient;
        }
        x_next
    }

    /// The saved state of one element after the step, given its clipped x_0.
    pub fn saved_next(&self, input: &StepInput, x0: f64) -> f64 {
        let Keep { x, x0: now, x0_prev, x0_prev2, saved } = self.keep;
        let mut next = x * input.x_t + now * x0;
        for (factor, value) in [(x0_prev, input.x0_prev), (x0_prev2, input.x0_prev2), (saved, input.saved)] {
            if factor != 0.0 {
                next += factor * value;
            }
        }
        next
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
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// For samplers published in the variance-exploding scale: x after step i times entry i is what they call x. Empty where
    /// the published x is the state itself.
    pub published_scale: Vec<f64>,
    /// What the norms of corrector steps are taken over.
    pub norms: NormScope,
    /// The values that x ends at.
    pub range: DataRange,
}

/// The states of one image that a step reads and replaces.
#[derive(Debug)]
pub struct ImageStates<'a> {
    /// x_t, becomes x_next.
    pub x: &'a mut [f64],
    /// The previous x_0, becomes this step's.
    pub x0_prev: &'a mut [f64],
    /// The x_0 of two steps before, becomes the previous one; empty unless [`History::x0_prev2`].
    pub x0_prev2: &'a mut [f64],
    /// The saved state; empty unless [`History::saved`].
    pub saved: &'a mut [f64],
}

impl StepTable {
    /// The table of a sampler configuration for `num_inference_steps` steps; `eta` is DDIM's. Heun evaluates the network
    /// twice a step but the last, so its table has 2 N - 1 rows.
    ///
    /// # Errors
    /// Timesteps that do not fit the schedule, an invalid noise schedule, eta outside 0..=1 or given to a sampler other
    /// than DDIM, eps prediction at an alpha_bar of 0, or options that exclude one another.
    pub fn build(config: &SchedulerConfig, num_inference_steps: usize, eta: f64) -> Result<Self> {
        if config.sampler != SamplerKind::Ddim && eta != 0.0 {
            let sampler = config.sampler;
            return Err(DiffusionError::EtaWithoutDdim { eta, sampler });
        }
        if config.compat == Compat::GuidedDiffusion
            && let Some(table) = Self::respaced(config, num_inference_steps, eta)?
        {
            return Ok(table);
        }
        match config.sampler {
            SamplerKind::Ddpm => Self::ddpm(config, num_inference_steps),
            SamplerKind::Ddim => Self::ddim(config, num_inference_steps, eta, false),
            SamplerKind::DdimInverse => Self::ddim_inverse(config, num_inference_steps),
            SamplerKind::DpmSolverPp => Self::dpm_solver_pp(config, num_inference_steps),
            SamplerKind::DpmSolverSinglestep => Self::dpm_solver_singlestep(config, num_inference_steps),
            SamplerKind::UniPc => Self::unipc(config, num_inference_steps),
            SamplerKind::Euler => Self::euler(config, num_inference_steps),
            SamplerKind::EulerAncestral => Self::euler_ancestral(config, num_inference_steps),
            SamplerKind::Heun => Self::heun(config, num_inference_steps),
            SamplerKind::ScoreSde => Self::score_sde(config, num_inference_steps),
        }
    }

    /// The table over a respaced chain, for samplers that guided-diffusion has.
    fn respaced(config: &SchedulerConfig, steps: usize, eta: f64) -> Result<Option<Self>> {
        let spec = config.respacing.clone().unwrap_or_else(|| match config.sampler {
            SamplerKind::Ddpm => steps.to_string(),
            _ => format!("ddim{steps}"),
        });
        let chain = Respaced::new(&Schedule::new(&config.betas)?, &spec)?;
        let (prediction, clip) = (config.prediction_type, config.clip());
        Ok(Some(match config.sampler {
            SamplerKind::Ddpm => Self::respaced_ancestral(&chain, prediction, config.variance_type, clip, false)?,
            SamplerKind::Ddim => Self::respaced_ddim(&chain, prediction, clip, eta, false)?,
            SamplerKind::DdimInverse => Self::respaced_ddim_reverse(&chain, prediction, clip, false)?,
            _ => return Ok(None),
        }))
    }

    /// The states that the rows read besides x and the previous x_0.
    pub fn history(&self) -> History {
        History {
            x0_prev2: self.rows.iter().any(|row| row.q != 0.0 || row.keep.x0_prev2 != 0.0),
            saved: self.rows.iter().any(|row| row.r != 0.0),
        }
    }

    /// Whether the sampler has a rule for a classifier's gradient.
    pub fn takes_gradient(&self) -> bool {
        self.rows.iter().any(|row| row.g != 0.0 || row.g_variance != 0.0)
    }

    /// Whether any step needs the norms of its image.
    pub fn has_correctors(&self) -> bool {
        self.rows.iter().any(|row| row.snr != 0.0)
    }

    /// Rows for a device, one after the other, [`StepRow::PACKED_LEN`] numbers each.
    pub fn packed(&self) -> Vec<f64> {
        self.rows.iter().flat_map(StepRow::packed).collect()
    }

    /// [`step_states`](Self::step_states) of a table without [`history`](Self::history).
    ///
    /// # Panics
    /// As there, and a table that has history.
    pub fn step_image(&self, step: usize, x: &mut [f64], model: &[f64], v: &[f64], x0_prev: &mut [f64], z: &[f64]) {
        self.step_states(step, ImageStates { x, x0_prev, x0_prev2: &mut [], saved: &mut [] }, model, v, z, &[]);
    }

    /// Runs step `step` on the states of one image; a corrector takes the norms of this image.
    ///
    /// `v` may be empty if the variance is fixed, `z` if the step adds no noise, `gradient` (times its scale) without a
    /// classifier; any element order will do as long as all slices share it.
    ///
    /// # Panics
    /// `step` outside the table, or a slice of another length than `x`.
    pub fn step_states(
        &self,
        step: usize,
        states: ImageStates<'_>,
        model: &[f64],
        v: &[f64],
        z: &[f64],
        gradient: &[f64],
    ) {
        let row = self.rows[step];
        let row =
            if row.snr == 0.0 { row } else { row.with_norms(norm(z.iter().copied()), norm(model.iter().copied())) };
        self.states_by_row(&row, states, model, v, z, gradient);
    }

    /// As [`step_states`](Self::step_states), by a row whose norms are known.
    ///
    /// # Panics
    /// As there.
    pub fn states_by_row(
        &self,
        row: &StepRow,
        states: ImageStates<'_>,
        model: &[f64],
        v: &[f64],
        z: &[f64],
        gradient: &[f64],
    ) {
        let history = self.history();
        let ImageStates { x, x0_prev, x0_prev2, saved } = states;
        let guided = !gradient.is_empty() && row.g_variance != 0.0;
        let reads_v = (row.noise || guided) && self.learned_variance.is_some();
        assert!(model.len() == x.len() && x0_prev.len() == x.len());
        assert!(!history.x0_prev2 || x0_prev2.len() == x.len(), "the second previous x_0 has another length than x");
        assert!(!history.saved || saved.len() == x.len(), "the saved state has another length than x");
        assert!(!reads_v || v.len() == x.len(), "the variance channels have another length than x");
        assert!(!row.noise || z.len() == x.len(), "the noise has another length than x");
        assert!(gradient.is_empty() || gradient.len() == x.len(), "the gradient has another length than x");
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
                x0_prev2: if history.x0_prev2 { x0_prev2[i] } else { 0.0 },
                saved: if history.saved { saved[i] } else { 0.0 },
                z: if row.noise { z[i] } else { 0.0 },
                gradient: gradient.get(i).copied().unwrap_or_default(),
            };
            let (x_next, x0) = row.apply(&input, self.clip, scale, self.learned_variance);
            if history.x0_prev2 {
                x0_prev2[i] = x0_prev[i];
            }
            if history.saved {
                saved[i] = row.saved_next(&input, x0);
            }
            (x[i], x0_prev[i]) = (x_next, x0);
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
        q: 0.0,
        r: 0.0,
        keep: Keep { x: 0.0, x0: 0.0, x0_prev: 0.0, x0_prev2: 0.0, saved: 0.0 },
        s: 0.1,
        log_min: -4.0,
        log_max: -2.0,
        noise: true,
        g: 0.5,
        g_variance: 3.0,
        snr: 0.0,
    };
    const KEEP: Keep = Keep { x: 1.5, x0: -2.5, x0_prev: 3.5, x0_prev2: 0.75, saved: 0.5 };

    #[test]
    fn apply_follows_the_formula() {
        let input = StepInput {
            x_t: 1.0,
            model: -0.5,
            v: 0.5,
            x0_prev: 0.75,
            x0_prev2: -3.0,
            saved: 5.0,
            z: -2.0,
            gradient: 0.0,
        };
        // x0 = 2 + 0.5 clamped to 2.
        let (x_next, x0) = ROW.apply(&input, Clip::Range(2.0), 1.0, None);
        assert_eq!(x0, 2.0);
        assert!((x_next - (0.5 + 0.5 - 0.0625 - 0.375 - 0.2)).abs() < 1e-15);
        let std = ROW.noise_std(Some(LearnedVariance::LogRange), 0.5);
        assert!((std - (-1.25_f64).exp()).abs() < 1e-15);
        assert_eq!(ROW.noise_std(Some(LearnedVariance::Direct), 0.25), 0.5);
    }

    #[test]
    fn a_gradient_moves_the_mean_by_its_factors_also_in_steps_without_noise() {
        let input = StepInput { x_t: 1.0, model: -0.5, v: 0.25, x0_prev: 0.75, ..StepInput::default() };
        for (noise, learned, variance) in [
            (true, None, 0.01),
            (false, Some(LearnedVariance::Direct), 0.25),
            (true, Some(LearnedVariance::Direct), 0.25),
        ] {
            let row = StepRow { noise, ..ROW };
            let plain = row.apply(&input, Clip::None, 1.0, learned).0;
            let guided = row.apply(&StepInput { gradient: -2.0, ..input }, Clip::None, 1.0, learned).0;
            assert!((guided - plain - (0.5 + 3.0 * variance) * -2.0).abs() < 1e-15);
        }
    }

    #[test]
    fn unread_inputs_may_hold_nan() {
        let row = StepRow { p: 0.0, noise: false, ..ROW };
        let nan = f64::NAN;
        let input =
            StepInput { x_t: 1.0, model: 0.0, v: nan, x0_prev: nan, x0_prev2: nan, saved: nan, z: nan, gradient: 0.0 };
        assert_eq!(row.apply(&input, Clip::None, 1.0, Some(LearnedVariance::Direct)), (1.0, 2.0));
        let row = StepRow { keep: Keep { x: 3.0, x0: -1.0, ..Keep::default() }, ..row };
        assert_eq!(row.saved_next(&input, 2.0), 1.0);
    }

    #[test]
    fn packing_keeps_the_order() {
        let row = StepRow { q: 8.0, r: 9.0, keep: KEEP, snr: 10.0, ..ROW };
        let expected = [
            7.0, 2.0, -1.0, 0.5, 0.25, 0.125, -0.5, 0.1, -4.0, -2.0, 1.0, 8.0, 9.0, 1.5, -2.5, 3.5, 0.75, 0.5, 0.5,
            3.0, 10.0, 0.0,
        ];
        assert_eq!(row.packed(), expected);
        let table = StepTable { rows: vec![row, row], ..StepTable::default() };
        assert_eq!(table.packed(), [expected, expected].concat());
    }

    #[test]
    fn step_image_thresholds_each_image_by_its_own_quantile() {
        let table = StepTable {
            rows: vec![StepRow { a: 0.0, e: 0.0, b: 1.0, p: 0.0, noise: false, ..ROW }],
            clip: Clip::Dynamic { ratio: 0.5, max_value: 100.0 },
            ..StepTable::default()
        };
        // x0 = 2 x - m = 1, -4, 8: the median magnitude is 4.
        let (mut x, mut x0_prev) = ([0.5, -2.0, 3.5], [f64::NAN; 3]);
        table.step_image(0, &mut x, &[0.0, 0.0, -1.0], &[], &mut x0_prev, &[]);
        assert_eq!(x, [0.25, -1.0, 1.0]);
        assert_eq!(x0_prev, x);
    }

    #[test]
    fn history_is_read_shifted_and_kept() {
        let row = StepRow { noise: false, q: 2.0, r: -1.0, keep: KEEP, ..ROW };
        let table = StepTable { rows: vec![row], ..StepTable::default() };
        assert_eq!(table.history(), History { x0_prev2: true, saved: true });
        let (mut x, mut x0_prev, mut x0_prev2, mut saved) = ([1.0], [0.75], [-3.0], [5.0]);
        let states = ImageStates { x: &mut x, x0_prev: &mut x0_prev, x0_prev2: &mut x0_prev2, saved: &mut saved };
        table.step_states(0, states, &[-0.5], &[], &[], &[]);
        // x0 = 2.5; x_next = 0.5 + 0.625 - 0.0625 - 0.375 - 6 - 5.
        assert_eq!((x0_prev, x0_prev2), ([2.5], [0.75]));
        assert_eq!(x, [0.5 + 0.625 - 0.0625 - 0.375 - 6.0 - 5.0]);
        assert_eq!(saved, [1.5 - 6.25 + 2.625 - 2.25 + 2.5]);
    }

    #[test]
    fn only_what_is_read_counts_as_history() {
        let table = |row| StepTable { rows: vec![ROW, row], ..StepTable::default() }.history();
        assert_eq!(table(ROW), History::default());
        assert_eq!(table(StepRow { keep: Keep { x: 1.0, ..Keep::default() }, ..ROW }), History::default());
        assert_eq!(table(StepRow { r: 1.0, ..ROW }), History { x0_prev2: false, saved: true });
        assert_eq!(table(StepRow { q: 1.0, ..ROW }), History { x0_prev2: true, saved: false });
    }
}
