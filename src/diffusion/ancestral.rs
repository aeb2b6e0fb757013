//! Step tables of ancestral sampling (2006.11239, algorithm 2), on training timesteps or a respaced chain.

use super::clip::Clip;
use super::config::{SamplerKind, SchedulerConfig};
use super::error::Result;
use super::parameterization::PredictionType;
use super::posterior::Posterior;
use super::respacing::Respaced;
use super::schedule::Schedule;
use super::step_table::{LearnedVariance, StepRow, StepTable, x0_coefficients};
use super::timesteps::ddpm_timesteps;
use super::variance::{MIN_VARIANCE, VarianceType};

impl StepTable {
    /// DDPM over the timesteps of `config`, whatever sampler it names.
    ///
    /// Each step goes to the next visited timestep, the last one to alpha_bar = 1. Noise is added wherever t > 0: with
    /// a `steps_offset` also in the last step.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn ddpm(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::Ddpm);
        let schedule = Schedule::new(&config.betas)?;
        let timesteps =
            ddpm_timesteps(config.spacing(), schedule.num_timesteps(), num_inference_steps, config.steps_offset)?;
        let next = timesteps[1..].iter().map(|&s| schedule.alpha_bars[s]);
        let rows = timesteps
            .iter()
            .zip(next.chain([1.0]))
            .map(|(&t, alpha_bar_next)| {
                let row = row(config.prediction_type, config.variance_type, t, schedule.alpha_bars[t], alpha_bar_next)?;
                Ok(StepRow { timestep: t as f32, ..row })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ancestral_table(rows, config.variance_type, config.clip()))
    }

    /// Ancestral sampling over a respaced chain, as guided-diffusion samples; `rescale_timesteps` scales what the
    /// network gets to 0..1000.
    ///
    /// # Errors
    /// Eps prediction at an alpha_bar of 0.
    pub fn respaced_ancestral(
        chain: &Respaced,
        prediction_type: PredictionType,
        variance_type: VarianceType,
        clip: Clip,
        rescale_timesteps: bool,
    ) -> Result<Self> {
        let schedule = &chain.schedule;
        let rows = (0..schedule.num_timesteps())
            .rev()
            .map(|i| {
                let (alpha_bar, alpha_bar_next) = (schedule.alpha_bars[i], schedule.alpha_bars_prev[i]);
                let row = row(prediction_type, variance_type, i, alpha_bar, alpha_bar_next)?;
                // The last step adds no noise, but a classifier's gradient has the variance of the bound as its factor.
                Ok(StepRow {
                    timestep: chain.network_timestep(i, rescale_timesteps) as f32,
                    log_min: schedule.posterior_log_variance_clipped[i],
                    g: match variance_type {
                        VarianceType::FixedSmall | VarianceType::FixedSmallLog => schedule.posterior_variance[i],
                        VarianceType::FixedLarge | VarianceType::FixedLargeLog => {
                            schedule.fixed_large_log_variance[i].exp()
                        }
                        VarianceType::Learned | VarianceType::LearnedRange => 0.0,
                    },
                    ..row
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ancestral_table(rows, variance_type, clip))
    }
}

/// The step from `alpha_bar` at timestep `t` to `alpha_bar_next`; the network's timestep is left to the caller.
fn row(
    prediction_type: PredictionType,
    variance_type: VarianceType,
    t: usize,
    alpha_bar: f64,
    alpha_bar_next: f64,
) -> Result<StepRow> {
    let x0 = x0_coefficients(prediction_type, alpha_bar, t)?;
    let posterior = Posterior::between(alpha_bar, alpha_bar_next);
    Ok(StepRow {
        c_x0x: x0.first,
        c_x0m: x0.second,
        a: posterior.xt_coef,
        b: posterior.x0_coef,
        s: variance_type.fixed_variance(&posterior).map_or(0.0, f64::sqrt),
        log_min: posterior.variance.max(MIN_VARIANCE).ln(),
        log_max: posterior.beta.ln(),
        noise: t > 0,
        // 2105.05233, algorithm 1: the mean moves by variance * gradient.
        g: variance_type.fixed_variance(&posterior).unwrap_or_default(),
        g_variance: if variance_type.is_learned() { 1.0 } else { 0.0 },
        ..StepRow::default()
    })
}

fn ancestral_table(rows: Vec<StepRow>, variance_type: VarianceType, clip: Clip) -> StepTable {
    StepTable {
        rows,
        clip,
        learned_variance: match variance_type {
            VarianceType::Learned => Some(LearnedVariance::Direct),
            VarianceType::LearnedRange => Some(LearnedVariance::LogRange),
            _ => None,
        },
        init_noise_sigma: 1.0,
        ..StepTable::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaConfig, TimestepSpacing};

    fn config(variance_type: VarianceType) -> SchedulerConfig {
        SchedulerConfig { betas: BetaConfig::linear(100), variance_type, ..SchedulerConfig::new(SamplerKind::Ddpm) }
    }

    #[test]
    fn full_chain_is_the_posterior_mean_in_its_eps_form() {
        // 2006.11239, eq. 11: mean = (x_t - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha).
        let config = config(VarianceType::FixedLarge);
        let schedule = Schedule::new(&config.betas).unwrap();
        let table = StepTable::ddpm(&config, 100).unwrap();
        for (row, t) in table.rows.iter().zip((0..100).rev()) {
            assert_eq!((row.timestep, row.noise), (t as f32, t > 0));
            let (beta, alpha_bar) = (schedule.betas[t], schedule.alpha_bars[t]);
            let (x_t, eps) = (0.7, -0.4);
            let mean = row.a * x_t + row.b * row.x0(x_t, eps);
            let expected = (x_t - beta / (1.0 - alpha_bar).sqrt() * eps) / (1.0 - beta).sqrt();
            assert!((mean - expected).abs() < 1e-12, "t {t}");
            assert!((row.s - beta.sqrt()).abs() < 1e-12);
        }
    }

    #[test]
    fn learned_range_spans_the_fixed_variances_and_offset_keeps_the_last_noise() {
        let mut learned = config(VarianceType::LearnedRange);
        learned.steps_offset = 1;
        let table = StepTable::ddpm(&learned, 7).unwrap();
        let fixed = |kind| {
            let config = SchedulerConfig { steps_offset: 1, ..config(kind) };
            StepTable::ddpm(&config, 7).unwrap()
        };
        let (small, large) = (fixed(VarianceType::FixedSmallLog), fixed(VarianceType::FixedLargeLog));
        assert!(table.rows[6].noise && table.rows[6].timestep == 1.0);
        for i in 0..7 {
            let std = |v| table.rows[i].noise_std(table.learned_variance, v);
            assert!((std(-1.0) / small.rows[i].s - 1.0).abs() < 1e-12);
            assert!((std(1.0) / large.rows[i].s - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_full_respaced_chain_is_the_plain_one() {
        let config = config(VarianceType::FixedSmall);
        let chain = Respaced::new(&Schedule::new(&config.betas).unwrap(), "").unwrap();
        let kind = PredictionType::Epsilon;
        let table =
            StepTable::respaced_ancestral(&chain, kind, VarianceType::FixedSmall, Clip::Range(1.0), false).unwrap();
        let plain = StepTable::ddpm(&config, 100).unwrap();
        for (i, (x, y)) in table.rows.iter().zip(&plain.rows).enumerate() {
            // Of the last step, log_min and g are those of the bound.
            let last = StepRow { log_min: x.log_min, g: x.g, ..*y };
            let y = if i + 1 < table.rows.len() { *y } else { last };
            for (x, y) in x.packed().iter().zip(y.packed()) {
                assert!((x - y).abs() <= 1e-6 * y.abs(), "row {i}: {x} vs {y}");
            }
        }
    }

    #[test]
    fn eps_prediction_is_refused_at_zero_snr_only() {
        let mut config = config(VarianceType::FixedSmall);
        config.betas.rescale_zero_terminal_snr = true;
        assert!(StepTable::ddpm(&config, 10).is_ok(), "leading spacing never visits the last timestep");
        config.timestep_spacing = Some(TimestepSpacing::Trailing);
        let error = StepTable::ddpm(&config, 10).unwrap_err().to_string();
        assert!(error.contains("timestep 99") && error.contains("v_prediction"), "{error}");
        config.prediction_type = PredictionType::VPrediction;
        let table = StepTable::ddpm(&config, 10).unwrap();
        assert!(table.packed().iter().all(|v| v.is_finite()));
    }
}
