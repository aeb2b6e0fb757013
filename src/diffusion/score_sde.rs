//! Ancestral sampling of the variance-exploding SDE with a Langevin corrector (2011.13456, algorithms 2 and 4).
//!
//! The network gives the score, `model = grad log p(x)`, at a noise level sigma that it also receives as time. Each level
//! has some corrector steps and one predictor step, every one of which asks the network:
//!
//! ```text
//! corrector   x = x + tau model + sqrt(2 tau) z,   tau = 2 (snr |z| / |model|)^2
//! predictor   x = x + d^2 model + d z,             d^2 = sigma^2 - sigma_next^2, the last sigma_next is 0
//! ```
//!
//! The last predictor step returns its mean. Data lie in [0, 1].

use super::config::{Compat, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::step_table::{StepRow, StepTable};

/// Options of the sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreSdeOptions {
    /// Signal-to-noise ratio of a corrector step.
    pub snr: f64,
    /// Lowest noise level.
    pub sigma_min: f64,
    /// Highest noise level, at which sampling starts.
    pub sigma_max: f64,
    /// The time at which it ends, of 0..=1.
    pub sampling_eps: f64,
    /// Corrector steps at each level.
    pub correct_steps: usize,
}

impl Default for ScoreSdeOptions {
    fn default() -> Self {
        Self { snr: 0.15, sigma_min: 0.01, sigma_max: 1348.0, sampling_eps: 1e-5, correct_steps: 1 }
    }
}

/// What the norms of a corrector step are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormScope {
    /// One image: its result does not depend on the batch.
    #[default]
    Image,
    /// The mean of the norms of all images, as the published code and diffusers take it.
    Batch,
}

/// The values of a pixel in the data that a model was trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataRange {
    /// [-1, 1].
    #[default]
    Signed,
    /// [0, 1].
    Unit,
}

impl DataRange {
    /// Takes values of this range to [-1, 1].
    pub fn to_signed(self, values: &mut [f32]) {
        match self {
            Self::Signed => {}
            Self::Unit => values.iter_mut().for_each(|v| *v = 2.0 * *v - 1.0),
        }
    }
}

impl StepRow {
    /// A corrector's row with the step that follows from the norms of z and of the model's output; any other row as it is.
    pub fn with_norms(self, z: f64, model: f64) -> Self {
        if self.snr == 0.0 {
            return self;
        }
        let tau = 2.0 * (self.snr * z / model).powi(2);
        Self { e: tau, s: (2.0 * tau).sqrt(), ..self }
    }
}

/// The Euclidean norm.
pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

impl StepTable {
    /// The rows of `num_inference_steps` levels: [`ScoreSdeOptions::correct_steps`] corrector rows and a predictor row each.
    ///
    /// # Errors
    /// Fewer than two levels, or a level below 0.
    pub fn score_sde(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let o = &config.score_sde;
        if num_inference_steps < 2 {
            return Err(DiffusionError::Options(
                "the VE sampler needs at least 2 steps, between sigma_max and 0".into(),
            ));
        }
        let last = (num_inference_steps - 1) as f64;
        let level = |time: f64| o.sigma_min * (o.sigma_max / o.sigma_min).powf(time);
        let mut rows = Vec::with_capacity(num_inference_steps * (1 + o.correct_steps));
        for k in 0..num_inference_steps {
            // The network looks at times from 1 to sampling_eps, the steps are taken between levels from 1 to 0.
            let looked_at = level(1.0 - k as f64 / last * (1.0 - o.sampling_eps));
            let left = last - k as f64;
            let next = if left == 0.0 { 0.0 } else { level((left - 1.0) / last) };
            let variance = level(left / last).powi(2) - next.powi(2);
            let row = StepRow {
                timestep: looked_at as f32,
                c_x0x: 1.0,
                c_x0m: looked_at.powi(2),
                a: 1.0,
                ..StepRow::default()
            };
            rows.extend(std::iter::repeat_n(StepRow { snr: o.snr, noise: true, ..row }, o.correct_steps));
            rows.push(StepRow { e: variance, s: variance.sqrt(), noise: left > 0.0, ..row });
        }
        Ok(Self {
            rows,
            init_noise_sigma: o.sigma_max,
            norms: if config.compat == Compat::Diffusers { NormScope::Batch } else { NormScope::Image },
            range: DataRange::Unit,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::SamplerKind;
    use super::*;

    #[test]
    fn levels_fall_geometrically_and_variances_add_up() {
        let mut config = SchedulerConfig::new(SamplerKind::ScoreSde);
        config.score_sde = ScoreSdeOptions { sigma_min: 0.1, sigma_max: 10.0, sampling_eps: 0.0, ..Default::default() };
        config.score_sde.correct_steps = 2;
        let table = StepTable::score_sde(&config, 5).unwrap();
        assert_eq!(table.rows.len(), 15);
        let predictors: Vec<StepRow> = table.rows.iter().copied().filter(|row| row.snr == 0.0).collect();
        for (row, expected) in predictors.iter().zip([10.0, 10f64.powf(0.5), 1.0, 10f64.powf(-0.5), 0.1]) {
            assert!((f64::from(row.timestep) - expected).abs() < 1e-6 * expected);
        }
        let total: f64 = predictors.iter().map(|row| row.e).sum();
        assert!((total - 100.0).abs() < 1e-10, "{total}");
        assert!(predictors[..4].iter().all(|row| row.noise) && !predictors[4].noise);
        assert!(StepTable::score_sde(&config, 1).is_err());
    }

    /// With the exact score of data at one point, the predictor's mean is the exact one: all of it after the last step.
    #[test]
    fn the_predictor_is_exact_for_a_point() {
        let mut config = SchedulerConfig::new(SamplerKind::ScoreSde);
        config.score_sde = ScoreSdeOptions { sampling_eps: 0.0, correct_steps: 0, ..Default::default() };
        let table = StepTable::score_sde(&config, 7).unwrap();
        let mut x = 300.0;
        for row in &table.rows {
            let sigma = row.c_x0m.sqrt();
            let score = (0.25 - x) / sigma.powi(2);
            x = row.a * x + row.e * score;
        }
        assert!((x - 0.25).abs() < 1e-9, "{x}");
    }

    #[test]
    fn a_corrector_step_is_as_long_as_its_noise_says() {
        let row = StepRow { snr: 0.16, a: 1.0, noise: true, ..StepRow::default() }.with_norms(3.0, 1.5);
        assert!((row.e - 2.0 * 0.32f64.powi(2)).abs() < 1e-15 && (row.s - (2.0 * row.e).sqrt()).abs() < 1e-15);
        let other = StepRow { e: 5.0, s: 6.0, ..StepRow::default() };
        assert_eq!(other.with_norms(3.0, 1.5), other);
    }
}
