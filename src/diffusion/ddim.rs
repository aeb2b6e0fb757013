//! Step tables of DDIM (2010.02502, eq. 12 and 16), on training timesteps or a respaced chain.

use super::clip::Clip;
use super::config::{Compat, SamplerKind, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::parameterization::{PredictionType, eps_from_x0};
use super::posterior::Posterior;
use super::respacing::Respaced;
use super::schedule::Schedule;
use super::step_table::{StepRow, StepTable, x0_coefficients};
use super::timesteps::ddpm_timesteps;

impl StepTable {
    /// DDIM over the timesteps of `config`, whatever sampler it names. Learned variances are not read.
    ///
    /// A step goes to the next visited timestep, with [`Compat::Diffusers`] from t to t - floor(T / N) whatever the spacing
    /// (the same for leading spacing). The last step goes to alpha_bar = 1, or to that of timestep 0 unless
    /// `set_alpha_to_one`. The direction term uses the network's own eps; with `use_clipped_model_output` it uses the
    /// eps that the clipped x_0 implies.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn ddim(
        config: &SchedulerConfig,
        num_inference_steps: usize,
        eta: f64,
        use_clipped_model_output: bool,
    ) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::Ddim);
        let schedule = Schedule::new(&config.betas)?;
        let num_timesteps = schedule.num_timesteps();
        let timesteps = ddpm_timesteps(config.spacing(), num_timesteps, num_inference_steps, config.steps_offset)?;
        let stride = num_timesteps / num_inference_steps;
        let final_alpha_bar = if config.set_alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        let step = DdimStep::new(config.prediction_type, eta, use_clipped_model_output)?;
        let rows = timesteps
            .iter()
            .enumerate()
            .map(|(i, &t)| {
                let next = match config.compat {
                    Compat::Paper | Compat::GuidedDiffusion => timesteps.get(i + 1).copied(),
                    Compat::Diffusers => t.checked_sub(stride),
                };
                let alpha_bar_next = next.map_or(final_alpha_bar, |s| schedule.alpha_bars[s]);
                let row = step.row(t, schedule.alpha_bars[t], alpha_bar_next)?;
                Ok(StepRow { timestep: t as f32, ..row })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ddim_table(rows, config.clip()))
    }

    /// Deterministic DDIM run backwards over the timesteps of `config`, whatever sampler it names: encodes a clean image into
    /// the latent that [`StepTable::ddim`] with eta 0 takes back to it.
    ///
    /// The step that asks the network at t starts from the level of the timestep visited before, with
    /// [`Compat::Diffusers`] from that of t - floor(T / N), and ends at the level of t. The first starts at alpha_bar = 1, or at
    /// that of timestep 0 unless `set_alpha_to_one`.
    ///
    /// # Errors
    /// As [`StepTable::build`]; a sample prediction where the first step starts at alpha_bar = 1, which leaves eps open.
    pub fn ddim_inverse(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::DdimInverse);
        let schedule = Schedule::new(&config.betas)?;
        let num_timesteps = schedule.num_timesteps();
        let mut timesteps = ddpm_timesteps(config.spacing(), num_timesteps, num_inference_steps, config.steps_offset)?;
        timesteps.reverse();
        let stride = num_timesteps / num_inference_steps;
        let initial = if config.set_alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        let step = DdimStep::new(config.prediction_type, 0.0, false)?;
        let mut before = None;
        let mut rows = Vec::with_capacity(timesteps.len());
        for &t in &timesteps {
            let from = match config.compat {
                Compat::Paper | Compat::GuidedDiffusion => before,
                Compat::Diffusers => t.checked_sub(stride),
            };
            let alpha_bar = from.map_or(initial, |s| schedule.alpha_bars[s]);
            if alpha_bar == 1.0 && config.prediction_type == PredictionType::Sample {
                return Err(DiffusionError::SampleAtCleanLevel);
            }
            rows.push(StepRow { timestep: t as f32, ..step.row(t, alpha_bar, schedule.alpha_bars[t])? });
            before = Some(t);
        }
        Ok(ddim_table(rows, config.clip()))
    }

    /// DDIM over a respaced chain, as guided-diffusion samples: every step goes to the next kept timestep and uses the
    /// eps that the clipped x_0 implies.
    ///
    /// # Errors
    /// eta outside 0..=1, or eps prediction at an alpha_bar of 0.
    pub fn respaced_ddim(
        chain: &Respaced,
        prediction_type: PredictionType,
        clip: Clip,
        eta: f64,
        rescale_timesteps: bool,
    ) -> Result<Self> {
        let schedule = &chain.schedule;
        let step = DdimStep::new(prediction_type, eta, true)?;
        let rows = (0..schedule.num_timesteps())
            .rev()
            .map(|i| {
                let row = step.row(i, schedule.alpha_bars[i], schedule.alpha_bars_prev[i])?;
                Ok(StepRow { timestep: chain.network_timestep(i, rescale_timesteps) as f32, ..row })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ddim_table(rows, clip))
    }

    /// Deterministic DDIM run backwards over a respaced chain: encodes a clean image into its latent.
    ///
    /// Step i takes x at the chain's index i to the level of index i + 1; the last step to alpha_bar = 0.
    ///
    /// # Errors
    /// Eps prediction at an alpha_bar of 0.
    pub fn respaced_ddim_reverse(
        chain: &Respaced,
        prediction_type: PredictionType,
        clip: Clip,
        rescale_timesteps: bool,
    ) -> Result<Self> {
        let alpha_bars = &chain.schedule.alpha_bars;
        let step = DdimStep::new(prediction_type, 0.0, true)?;
        let next = alpha_bars.iter().skip(1).copied().chain([0.0]);
        let rows = alpha_bars
            .iter()
            .zip(next)
            .enumerate()
            .map(|(i, (&alpha_bar, alpha_bar_next))| {
                let row = step.row(i, alpha_bar, alpha_bar_next)?;
                Ok(StepRow { timestep: chain.network_timestep(i, rescale_timesteps) as f32, ..row })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ddim_table(rows, clip))
    }
}

/// What all steps of a DDIM run share.
struct DdimStep {
    prediction_type: PredictionType,
    eta: f64,
    use_clipped_model_output: bool,
}

impl DdimStep {
    fn new(prediction_type: PredictionType, eta: f64, use_clipped_model_output: bool) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(DiffusionError::Eta(eta));
        }
        Ok(Self { prediction_type, eta, use_clipped_model_output })
    }

    /// x_next = sqrt(alpha_bar_next) x0 + direction * eps + std * z with direction^2 = 1 - alpha_bar_next - std^2.
    fn row(&self, t: usize, alpha_bar: f64, alpha_bar_next: f64) -> Result<StepRow> {
        let x0 = x0_coefficients(self.prediction_type, alpha_bar, t)?;
        let std =
            if self.eta > 0.0 { self.eta * Posterior::between(alpha_bar, alpha_bar_next).variance.sqrt() } else { 0.0 };
        // At eta = 1 and the last step this is 0 up to rounding.
        let direction = (1.0 - alpha_bar_next - std * std).max(0.0).sqrt();
        let signal = alpha_bar_next.sqrt();
        let (a, b, e) = if self.use_clipped_model_output {
            let eps = eps_from_x0(alpha_bar);
            (direction * eps.first, signal + direction * eps.second, 0.0)
        } else {
            let eps = self.prediction_type.eps_from_model(alpha_bar);
            (direction * eps.first, signal, direction * eps.second)
        };
        // 2105.05233, algorithm 2: eps moves by -sqrt(1 - alpha_bar) * gradient, and x_0 with it, not clipped again.
        let noise = 1.0 - alpha_bar;
        let g = if alpha_bar > 0.0 { signal * noise / alpha_bar.sqrt() - direction * noise.sqrt() } else { 0.0 };
        Ok(StepRow { c_x0x: x0.first, c_x0m: x0.second, a, b, e, s: std, noise: std > 0.0, g, ..StepRow::default() })
    }
}

fn ddim_table(rows: Vec<StepRow>, clip: Clip) -> StepTable {
    StepTable { rows, clip, init_noise_sigma: 1.0, ..StepTable::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    fn config(num_timesteps: usize) -> SchedulerConfig {
        SchedulerConfig {
            betas: BetaConfig::linear(num_timesteps),
            clip_sample: false,
            ..SchedulerConfig::new(SamplerKind::Ddim)
        }
    }

    /// (mean, std) of x_next for fixed inputs.
    fn outcome(row: &StepRow, x_t: f64, model: f64) -> (f64, f64) {
        (row.a * x_t + row.b * row.x0(x_t, model) + row.e * model, row.s)
    }

    #[test]
    fn eta_one_on_the_full_chain_is_ddpm_with_the_small_variance() {
        for prediction_type in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
            let config = SchedulerConfig { prediction_type, ..config(80) };
            let ddpm = StepTable::ddpm(&config, 80).unwrap();
            for clipped in [false, true] {
                let ddim = StepTable::ddim(&config, 80, 1.0, clipped).unwrap();
                for (i, (x, y)) in ddim.rows.iter().zip(&ddpm.rows).enumerate() {
                    let (x_outcome, y_outcome) = (outcome(x, 0.8, -0.3), outcome(y, 0.8, -0.3));
                    assert!((x_outcome.0 - y_outcome.0).abs() < 1e-9, "row {i}");
                    assert_eq!((x.timestep, x.noise), (y.timestep, y.noise), "row {i}");
                    // The last step adds no noise; DDPM's floor on the variance is not used there.
                    assert!(!y.noise || (x_outcome.1 - y_outcome.1).abs() < 1e-12, "row {i}");
                }
            }
        }
    }

    #[test]
    fn the_true_eps_leads_back_along_the_forward_marginals() {
        let table = StepTable::ddim(&config(100), 10, 0.0, false).unwrap();
        let schedule = Schedule::new(&config(100).betas).unwrap();
        let (x0, eps) = (0.3, 1.1);
        let marginal = |alpha_bar: f64| alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * eps;
        let mut x = marginal(schedule.alpha_bars[90]);
        for (i, row) in table.rows.iter().enumerate() {
            x = outcome(row, x, eps).0;
            let next = if i < 9 { schedule.alpha_bars[80 - 10 * i] } else { 1.0 };
            assert!((x - marginal(next)).abs() < 1e-12, "row {i}");
        }
    }

    #[test]
    fn the_last_step_ends_where_set_alpha_to_one_says() {
        let mut config = config(100);
        config.set_alpha_to_one = false;
        let table = StepTable::ddim(&config, 5, 0.7, false).unwrap();
        let last = table.rows[4];
        assert_eq!((last.timestep, last.s, last.noise), (0.0, 0.0, false));
        assert!((last.b - (1.0 - 1e-4_f64).sqrt()).abs() < 1e-15);
        assert!((last.e - 1e-2).abs() < 1e-12);
    }

    #[test]
    fn clipping_changes_the_direction_only_if_asked() {
        let row = |clipped| StepTable::ddim(&config(100), 10, 0.0, clipped).unwrap().rows[2];
        let (plain, corrected) = (row(false), row(true));
        assert_eq!(corrected.e, 0.0);
        // A clipped x_0 of 1 implies eps = (x_t - sqrt(alpha_bar)) / sqrt(1 - alpha_bar).
        let schedule = Schedule::new(&config(100).betas).unwrap();
        let (now, next) = (schedule.alpha_bars[70], schedule.alpha_bars[60]);
        let eps = (2.0 - now.sqrt()) / (1.0 - now).sqrt();
        let expected = next.sqrt() + (1.0 - next).sqrt() * eps;
        assert!((corrected.a * 2.0 + corrected.b - expected).abs() < 1e-12);
        assert!((plain.a * 2.0 + plain.b + plain.e * eps - expected).abs() < 1e-12);
    }

    #[test]
    fn reverse_then_forward_returns_the_image_for_a_constant_eps() {
        let base = Schedule::new(&BetaConfig::cosine(50)).unwrap();
        let chain = Respaced::new(&base, "ddim10").unwrap();
        let kind = PredictionType::Epsilon;
        let reverse = StepTable::respaced_ddim_reverse(&chain, kind, Clip::None, false).unwrap();
        let forward = StepTable::respaced_ddim(&chain, kind, Clip::None, 0.0, false).unwrap();
        let (start, eps) = (0.42, -0.9);
        let first = &reverse.rows[0];
        assert_eq!((first.timestep, reverse.rows[9].timestep), (0.0, 45.0));
        let mut x = chain.schedule.alpha_bars[0].sqrt() * start + (1.0 - chain.schedule.alpha_bars[0]).sqrt() * eps;
        for row in &reverse.rows[..9] {
            x = outcome(row, x, eps).0;
        }
        for row in &forward.rows {
            x = outcome(row, x, eps).0;
        }
        assert!((x - start).abs() < 1e-9, "{x}");
    }

    #[test]
    fn eta_outside_its_range_is_refused() {
        for eta in [-0.1, 1.5, f64::NAN] {
            assert!(matches!(StepTable::ddim(&config(10), 2, eta, false), Err(DiffusionError::Eta(_))));
        }
        let ddpm = SchedulerConfig::new(SamplerKind::Ddpm);
        assert!(matches!(StepTable::build(&ddpm, 10, 0.5), Err(DiffusionError::EtaWithoutDdim { .. })));
    }
}
