//! Step tables of DPM-Solver++ multistep of order 1 and 2 with data prediction (2211.01095, algorithm 2).

use super::config::{FinalSigmas, SamplerKind, SchedulerConfig, SolverType};
use super::error::Result;
use super::schedule::{Schedule, half_log_snr};
use super::step_table::{StepRow, StepTable, x0_coefficients};
use super::timesteps::dpm_solver_timesteps;

/// alpha_bar that stands for 0 at the last timestep of a zero-terminal-SNR schedule, where lambda would be -inf.
const ZERO_SNR_ALPHA_BAR: f64 = 1.0 / (1u64 << 24) as f64;

/// Below this many steps `lower_order_final` makes the last one first order.
const FEW_STEPS: usize = 15;

impl StepTable {
    /// DPM-Solver++ over the timesteps of `config`, whatever sampler it names. The clamp on x_0 and learned variances
    /// are not read.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn dpm_solver_pp(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::DpmSolverPp);
        let options = config.dpm_solver;
        let mut alpha_bars = Schedule::new(&config.betas)?.alpha_bars;
        if config.betas.rescale_zero_terminal_snr
            && let Some(last) = alpha_bars.last_mut()
        {
            *last = ZERO_SNR_ALPHA_BAR;
        }
        let timesteps = dpm_solver_timesteps(
            config.spacing(),
            &alpha_bars,
            num_inference_steps,
            config.steps_offset,
            options.lambda_min_clipped,
        )?;
        let end = match options.final_sigmas_type {
            FinalSigmas::Zero => NoiseLevel::CLEAN,
            FinalSigmas::SigmaMin => NoiseLevel::new(alpha_bars[0]),
        };
        let levels: Vec<NoiseLevel> = timesteps.iter().map(|&t| NoiseLevel::new(alpha_bars[t])).chain([end]).collect();
        let first_order_end = options.euler_at_final
            || options.final_sigmas_type == FinalSigmas::Zero
            || (options.lower_order_final && timesteps.len() < FEW_STEPS);

        let rows = timesteps
            .iter()
            .enumerate()
            .map(|(i, &t)| {
                let is_last = i + 1 == timesteps.len();
                let second_order = options.solver_order >= 2 && i > 0 && !(is_last && first_order_end);
                let before = if second_order { levels.get(i - 1) } else { None };
                let update = update(before, &levels[i], &levels[i + 1], options.solver_type);
                let x0 = x0_coefficients(config.prediction_type, alpha_bars[t], t)?;
                Ok(StepRow { timestep: t as f32, c_x0x: x0.first, c_x0m: x0.second, ..update })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { rows, clip: config.clip(), learned_variance: None, init_noise_sigma: 1.0 })
    }
}

/// alpha, sigma and lambda = ln(alpha / sigma) of 2211.01095.
struct NoiseLevel {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

impl NoiseLevel {
    const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0, lambda: f64::INFINITY };

    fn new(alpha_bar: f64) -> Self {
        Self { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt(), lambda: half_log_snr(alpha_bar) }
    }
}

/// The update from level `now` to `next`; of second order if the level `before` is given.
fn update(before: Option<&NoiseLevel>, now: &NoiseLevel, next: &NoiseLevel, solver_type: SolverType) -> StepRow {
    let h = next.lambda - now.lambda;
    let growth = (-h).exp_m1();
    let weight = -next.alpha * growth;
    let first_order = StepRow { a: next.sigma / now.sigma, b: weight, ..StepRow::default() };
    match before {
        // A final level equal to the current one leaves x as it is; its derivative term would be 0 / 0.
        Some(before) if h > 0.0 => {
            let r0 = (now.lambda - before.lambda) / h;
            let derivative_weight = match solver_type {
                SolverType::Midpoint => 0.5 * weight,
                SolverType::Heun => next.alpha * (growth / h + 1.0),
            };
            // The derivative is (x0 - x0_prev) / r0.
            StepRow { b: weight + derivative_weight / r0, p: -derivative_weight / r0, ..first_order }
        }
        _ => first_order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaConfig, Clip, DpmSolverOptions, PredictionType, TimestepSpacing};

    fn config(options: DpmSolverOptions) -> SchedulerConfig {
        SchedulerConfig {
            betas: BetaConfig::linear(1000),
            dpm_solver: options,
            ..SchedulerConfig::new(SamplerKind::DpmSolverPp)
        }
    }

    #[test]
    fn first_order_is_deterministic_ddim() {
        // DDIM strides by floor(T / N); trailing spacing with N dividing T visits exactly those timesteps.
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let config = SchedulerConfig {
                prediction_type,
                clip_sample: false,
                timestep_spacing: Some(TimestepSpacing::Trailing),
                ..config(DpmSolverOptions { solver_order: 1, ..Default::default() })
            };
            let dpm = StepTable::dpm_solver_pp(&config, 25).unwrap();
            let ddim = StepTable::ddim(&config, 25, 0.0, false).unwrap();
            assert_eq!(dpm.clip, Clip::None);
            for (x, y) in dpm.rows.iter().zip(&ddim.rows) {
                assert_eq!((x.timestep, x.p, x.noise), (y.timestep, 0.0, false));
                let outcome = |r: &StepRow| r.a * 0.9 + r.b * r.x0(0.9, 0.2) + r.e * 0.2;
                assert!((outcome(x) - outcome(y)).abs() < 1e-9, "t {}", x.timestep);
            }
        }
    }

    #[test]
    fn second_order_is_exact_for_an_x0_linear_in_lambda_up_to_its_rule() {
        // For x0(lambda) = u + w lambda the exact solution of the probability-flow ODE is
        // x_next = sigma' / sigma x + alpha' [ (1 - e^-h) (u + w lambda') - w (1 - e^-h - h e^-h) ] with lambda' the
        // end point; Heun's weights integrate the linear term exactly.
        let (u, w, x) = (0.2, -0.13, 0.7);
        let levels = [0.2, 0.35, 0.6].map(NoiseLevel::new);
        let row = update(Some(&levels[0]), &levels[1], &levels[2], SolverType::Heun);
        let x0 = |level: &NoiseLevel| u + w * level.lambda;
        let solved = row.a * x + row.b * x0(&levels[1]) + row.p * x0(&levels[0]);
        // Independent: integrate alpha' * exp(lambda - lambda') x0(lambda) over the step with Simpson's rule.
        let (from, to) = (levels[1].lambda, levels[2].lambda);
        let n = 2000;
        let f = |i: usize| {
            let lambda = from + (to - from) * i as f64 / n as f64;
            (lambda - to).exp() * (u + w * lambda)
        };
        let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        let integral = (f(0) + inner + f(n)) * (to - from) / n as f64 / 3.0;
        let exact = levels[2].sigma / levels[1].sigma * x + levels[2].alpha * integral;
        assert!((solved - exact).abs() < 1e-12, "{solved} vs {exact}");
        // Midpoint agrees with it to third order in h.
        let midpoint = update(Some(&levels[0]), &levels[1], &levels[2], SolverType::Midpoint);
        let approximate = midpoint.a * x + midpoint.b * x0(&levels[1]) + midpoint.p * x0(&levels[0]);
        let h = to - from;
        assert!((approximate - exact).abs() < w.abs() * h.powi(3) / 6.0);
    }

    #[test]
    fn orders_follow_the_final_step_options() {
        let orders = |options: DpmSolverOptions, steps: usize| -> Vec<bool> {
            let table = StepTable::dpm_solver_pp(&config(options), steps).unwrap();
            table.rows.iter().map(|row| row.p != 0.0).collect()
        };
        let sigma_min = DpmSolverOptions { final_sigmas_type: FinalSigmas::SigmaMin, ..Default::default() };
        let many = orders(sigma_min, 16);
        assert!(!many[0] && many[1..].iter().all(|&second| second));
        assert!(!orders(sigma_min, 14)[13], "few steps end with first order");
        let no_lower = DpmSolverOptions { lower_order_final: false, ..sigma_min };
        assert!(orders(no_lower, 14)[13]);
        let euler = DpmSolverOptions { euler_at_final: true, ..no_lower };
        assert!(!orders(euler, 16)[15]);
        assert!(!orders(DpmSolverOptions::default(), 16)[15], "a clean end is always first order");
    }

    #[test]
    fn ending_at_the_current_level_changes_nothing() {
        let options = DpmSolverOptions {
            final_sigmas_type: FinalSigmas::SigmaMin,
            lower_order_final: false,
            solver_type: SolverType::Heun,
            ..Default::default()
        };
        let config = SchedulerConfig {
            betas: BetaConfig::linear(20),
            timestep_spacing: Some(TimestepSpacing::Trailing),
            ..config(options)
        };
        let last = StepTable::dpm_solver_pp(&config, 20).unwrap().rows[19];
        assert_eq!((last.timestep, last.a, last.b, last.p), (0.0, 1.0, 0.0, 0.0));
    }

    #[test]
    fn zero_terminal_snr_stays_finite() {
        let mut config = config(DpmSolverOptions::default());
        config.betas.rescale_zero_terminal_snr = true;
        let table = StepTable::dpm_solver_pp(&config, 12).unwrap();
        assert_eq!(table.rows[0].timestep, 999.0);
        assert!((table.rows[0].c_x0x - 4096.0).abs() < 1e-9);
        assert!(table.packed().iter().all(|v| v.is_finite()));
    }
}
