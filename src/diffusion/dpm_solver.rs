//! Step tables of DPM-Solver++ and DPM-Solver multistep, order 1 to 3, of the ODE and of the SDE (2211.01095, algorithm 2
//! and section 5; 2206.00927).
//!
//! All of them integrate the linear part of the process exactly and extrapolate D, which is x_0 or eps, as a polynomial in
//! lambda: x_next = a x_t + w0 D0 + w1 D1 + w2 D2 + s z, D1 and D2 being h D' and h^2 D'' by divided differences.

use super::config::{Algorithm, Compat, FinalSigmas, SamplerKind, SchedulerConfig, SolverType};
use super::error::{DiffusionError, Result};
use super::levels::{NoiseLevel, solver_visits};
use super::parameterization::{Linear2, PredictionType};
use super::step_table::{StepRow, StepTable};

/// Below this many steps `lower_order_final` lowers the order of the last ones.
const FEW_STEPS: usize = 15;

impl StepTable {
    /// DPM-Solver multistep over the noise levels of `config`, whatever sampler it names. The clamp on x_0 and learned
    /// variances are not read.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn dpm_solver_pp(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::DpmSolverPp);
        check(&config)?;
        let options = config.dpm_solver;
        let visits = solver_visits(&config, num_inference_steps)?;
        let (steps, levels) = (visits.times.len(), &visits.levels);
        let few = options.lower_order_final && steps < FEW_STEPS;
        let first_order_end = options.euler_at_final || options.final_sigmas_type == FinalSigmas::Zero || few;
        let rows = visits.times.iter().enumerate().map(|(i, &t)| {
            let left = steps - i;
            let limit = match left {
                1 if first_order_end => 1,
                2 if few => 2,
                _ => 3,
            };
            let most = limit.min(usize::from(options.solver_order));
            let before = [1, 2].map(|k| levels.get(i.wrapping_sub(k)));
            let row = update(&config, most.min(i + 1), before, &levels[i], &levels[i + 1]);
            let d = prediction(options.algorithm.on_eps(), config.prediction_type, &levels[i]);
            StepRow { timestep: t as f32, c_x0x: d.first, c_x0m: d.second, ..row }
        });
        Ok(Self { rows: rows.collect(), clip: config.clip(), init_noise_sigma: 1.0, ..Self::default() })
    }
}

/// Refuses options that exclude one another.
pub(super) fn check(config: &SchedulerConfig) -> Result<()> {
    let (algorithm, options) = (config.dpm_solver.algorithm, &config.dpm_solver);
    let refuse = |text: &str| Err(DiffusionError::Options(text.to_owned()));
    if !(1..=3).contains(&options.solver_order) {
        return refuse("solver_order must be 1, 2 or 3");
    }
    if algorithm.on_eps() && options.final_sigmas_type == FinalSigmas::Zero {
        return refuse(
            "algorithm_type dpmsolver extrapolates eps and cannot end at sigma = 0: set final_sigmas_type to sigma_min, or \
             algorithm_type to dpmsolver++",
        );
    }
    if algorithm.on_eps() && config.thresholding {
        return refuse("thresholding limits x_0, and algorithm_type dpmsolver has none: use dpmsolver++");
    }
    if algorithm == Algorithm::SdeEps && (options.solver_order == 3 || config.sampler != SamplerKind::DpmSolverPp) {
        return refuse("algorithm_type sde-dpmsolver has order 1 and 2, multistep only: use sde-dpmsolver++");
    }
    Ok(())
}

/// D as a combination of (x_t, model output).
pub(super) fn prediction(on_eps: bool, prediction: PredictionType, level: &NoiseLevel) -> Linear2 {
    if on_eps { level.eps(prediction) } else { level.x0(prediction) }
}

/// The factors of a step over h; see the [module](self).
pub(super) struct Weights {
    pub a: f64,
    pub w0: f64,
    /// For a second-order rule of this type.
    pub w1: f64,
    /// The exact integral of a linear D.
    pub w1_exact: f64,
    /// The exact integral of a quadratic D.
    pub w2: f64,
    pub s: f64,
}

impl Weights {
    pub fn new(config: &SchedulerConfig, now: &NoiseLevel, next: &NoiseLevel) -> Self {
        let h = next.lambda - now.lambda;
        let (a, w0, w1_exact, w2, s) = match config.dpm_solver.algorithm {
            Algorithm::OdeX0 => {
                let growth = (-h).exp_m1();
                (
                    next.sigma / now.sigma,
                    -next.alpha * growth,
                    next.alpha * (growth / h + 1.0),
                    -next.alpha * ((growth + h) / (h * h) - 0.5),
                    0.0,
                )
            }
            Algorithm::SdeX0 => {
                let growth = (-2.0 * h).exp_m1();
                let half = match config.compat {
                    Compat::Paper | Compat::GuidedDiffusion => 0.5,
                    // The sign of the last term is another one there.
                    Compat::Diffusers => -0.5,
                };
                (
                    next.sigma / now.sigma * (-h).exp(),
                    -next.alpha * growth,
                    next.alpha * (growth / (2.0 * h) + 1.0),
                    next.alpha * ((-growth - 2.0 * h) / (4.0 * h * h) + half),
                    next.sigma * (-growth).sqrt(),
                )
            }
            Algorithm::OdeEps | Algorithm::SdeEps => {
                let growth = h.exp_m1();
                let sde = config.dpm_solver.algorithm == Algorithm::SdeEps;
                let twice = if sde { 2.0 } else { 1.0 };
                (
                    next.alpha / now.alpha,
                    -twice * next.sigma * growth,
                    -twice * next.sigma * (growth / h - 1.0),
                    -twice * next.sigma * ((growth - h) / (h * h) - 0.5),
                    if sde { next.sigma * (2.0 * h).exp_m1().sqrt() } else { 0.0 },
                )
            }
        };
        let w1 = match config.dpm_solver.solver_type {
            SolverType::Midpoint => 0.5 * w0,
            SolverType::Heun => w1_exact,
        };
        Self { a, w0, w1, w1_exact, w2, s }
    }
}

/// The update from level `now` to `next` of an order up to `order`, `before` being the levels of the steps before.
fn update(
    config: &SchedulerConfig,
    order: usize,
    before: [Option<&NoiseLevel>; 2],
    now: &NoiseLevel,
    next: &NoiseLevel,
) -> StepRow {
    let h = next.lambda - now.lambda;
    let w = Weights::new(config, now, next);
    let first = StepRow { a: w.a, b: w.w0, s: w.s, noise: w.s > 0.0, ..StepRow::default() };
    // Levels that are equal leave no room for a derivative: it would be 0 / 0.
    let ratio = |later: &NoiseLevel, earlier: Option<&NoiseLevel>| {
        earlier.map(|earlier| (later.lambda - earlier.lambda) / h).filter(|r| h > 0.0 && *r > 0.0)
    };
    let r0 = ratio(now, before[0]).filter(|_| order >= 2);
    let r1 = before[0].and_then(|last| ratio(last, before[1])).filter(|_| order >= 3);
    match (r0, r1) {
        // D1 = (D - D_prev) / r0.
        (Some(r0), None) => StepRow { b: w.w0 + w.w1 / r0, p: -w.w1 / r0, ..first },
        (Some(r0), Some(r1)) => {
            // Divided differences u = (D - D_prev) / r0 and v = (D_prev - D_prev2) / r1:
            // D1 = u + r0 / (r0 + r1) (u - v), D2 = 2 / (r0 + r1) (u - v).
            let curvature = match config.compat {
                Compat::Paper | Compat::GuidedDiffusion => 2.0,
                // Half the second derivative, which leaves the method at order 2.
                Compat::Diffusers => 1.0,
            };
            let difference = (r0 * w.w1_exact + curvature * w.w2) / (r0 + r1);
            let (u, v) = (w.w1_exact + difference, -difference);
            StepRow { b: w.w0 + u / r0, p: v / r1 - u / r0, q: -v / r1, ..first }
        }
        (None, _) => first,
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
        let rule = |solver_type| {
            let config = config(DpmSolverOptions { solver_type, ..Default::default() });
            update(&config, 2, [Some(&levels[0]), None], &levels[1], &levels[2])
        };
        let row = rule(SolverType::Heun);
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
        let midpoint = rule(SolverType::Midpoint);
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

    /// D as a polynomial in lambda of degree 2: order 3 integrates it exactly, for every algorithm.
    #[test]
    fn order_3_is_exact_for_quadratic_predictions() {
        let levels = [0.12, 0.2, 0.35, 0.6].map(NoiseLevel::new);
        let (now, next) = (&levels[2], &levels[3]);
        for algorithm in [Algorithm::OdeX0, Algorithm::SdeX0, Algorithm::OdeEps] {
            let config = config(DpmSolverOptions { algorithm, solver_order: 3, ..Default::default() });
            let row = update(&config, 3, [Some(&levels[1]), Some(&levels[0])], now, next);
            for power in 0..=2 {
                let d = |lambda: f64| (lambda - 0.3).powi(power);
                let kernel = |lambda: f64| match algorithm {
                    Algorithm::OdeX0 => next.alpha * (lambda - next.lambda).exp(),
                    Algorithm::SdeX0 => 2.0 * next.alpha * (2.0 * (lambda - next.lambda)).exp(),
                    _ => -next.sigma * (next.lambda - lambda).exp(),
                };
                let n = 4000;
                let width = (next.lambda - now.lambda) / f64::from(n);
                let f = |i: i32| {
                    let lambda = now.lambda + width * f64::from(i);
                    kernel(lambda) * d(lambda)
                };
                let inner: f64 = (1..n).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
                let exact = (f(0) + inner + f(n)) * width / 3.0;
                let solved = row.b * d(now.lambda) + row.p * d(levels[1].lambda) + row.q * d(levels[0].lambda);
                assert!((solved - exact).abs() < 1e-11, "{algorithm:?} power {power}: {solved} vs {exact}");
            }
        }
    }
}
