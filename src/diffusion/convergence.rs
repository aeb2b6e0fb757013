//! Samplers on data of which the best model is known: x_0 ~ N(MU, S^2).
//!
//! With V = alpha^2 S^2 + sigma^2 the best eps is linear in x_t and the probability-flow ODE keeps (x_t - alpha MU) / sqrt(V)
//! constant, so that a deterministic solver's error is known to the last digit. What a random sampler produces is linear in its
//! start and in every draw, so that its mean and variance follow from one run a draw.

use super::step_table::ImageStates;
use super::{
    Algorithm, BetaConfig, Churn, Compat, FinalSigmas, SamplerKind, Schedule, SchedulerConfig, SigmaOptions,
    SigmaSpacing, SolverType, StepRow, StepTable, UniPcType,
};

const MU: f64 = 0.4;
const S: f64 = 0.5;

/// alpha and sigma.
type Level = (f64, f64);

fn variance((alpha, sigma): Level) -> f64 {
    alpha * alpha * S * S + sigma * sigma
}

/// The level at which a row reads an eps prediction as x_0.
fn level(row: &StepRow) -> Level {
    let alpha = 1.0 / row.c_x0x;
    (alpha, -row.c_x0m * alpha)
}

/// The level of training timestep 0.
fn last_level(config: &SchedulerConfig) -> Level {
    let alpha_bar = Schedule::new(&config.betas).unwrap().alpha_bars[0];
    (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
}

/// x after all steps with the best model; `z` is the draw of each step.
fn run(table: &StepTable, x: f64, z: &dyn Fn(usize) -> f64) -> f64 {
    let history = table.history();
    let (mut x, mut x0_prev, mut x0_prev2, mut saved) = ([x], [f64::NAN], [f64::NAN], [f64::NAN]);
    for (i, row) in table.rows.iter().enumerate() {
        let (alpha, sigma) = level(row);
        let model = [sigma * (x[0] - alpha * MU) / variance((alpha, sigma))];
        let states = ImageStates {
            x: &mut x,
            x0_prev: &mut x0_prev,
            x0_prev2: if history.x0_prev2 { &mut x0_prev2 } else { &mut [] },
            saved: if history.saved { &mut saved } else { &mut [] },
        };
        table.step_states(i, states, &model, &[], &[z(i)], &[]);
    }
    x[0]
}

/// Noise levels evenly in lambda that end at training timestep 0.
fn config(sampler: SamplerKind, order: u8) -> SchedulerConfig {
    let mut config = SchedulerConfig {
        betas: BetaConfig::linear(1000),
        clip_sample: false,
        sigmas: SigmaOptions { spacing: SigmaSpacing::Exponential, ..SigmaOptions::default() },
        ..SchedulerConfig::new(sampler)
    };
    config.dpm_solver.final_sigmas_type = FinalSigmas::SigmaMin;
    config.dpm_solver.lower_order_final = false;
    config.dpm_solver.solver_order = order;
    config
}

/// The error after so many steps of some length; one of length 0 follows.
fn error(config: &SchedulerConfig, steps: usize) -> f64 {
    let mut table = StepTable::build(config, steps + 1, 0.0).unwrap();
    if config.sampler == SamplerKind::Heun {
        // It always goes on to the clean image.
        table.rows.pop();
    }
    let (start, end) = (level(&table.rows[0]), last_level(config));
    let exact = end.0 * MU + (variance(end) / variance(start)).sqrt() * (0.8 - start.0 * MU);
    (run(&table, 0.8, &|_| 0.0) - exact).abs()
}

/// log2 of how much smaller the error is with twice the steps.
fn order(config: &SchedulerConfig) -> f64 {
    (error(config, 96) / error(config, 192)).log2()
}

#[track_caller]
fn assert_order(config: &SchedulerConfig, expected: f64) {
    let measured = order(config);
    let sampler = config.sampler;
    assert!((measured - expected).abs() < 0.3, "{sampler}: order {measured:.2} instead of {expected}");
}

#[test]
fn multistep_solvers_have_their_order() {
    for solver_type in [SolverType::Midpoint, SolverType::Heun] {
        for order in [1, 2] {
            let mut config = config(SamplerKind::DpmSolverPp, order);
            config.dpm_solver.solver_type = solver_type;
            assert_order(&config, f64::from(order));
        }
    }
    // x_0 no longer changes at either end of these runs, so that the leading errors of third order cancel along the way.
    let measured = order(&config(SamplerKind::DpmSolverPp, 3));
    assert!((2.7..4.3).contains(&measured), "order {measured:.2}");
}

#[test]
fn what_diffusers_does_for_order_3_has_order_2() {
    let config = SchedulerConfig { compat: Compat::Diffusers, ..config(SamplerKind::DpmSolverPp, 3) };
    assert_order(&config, 2.0);
}

#[test]
fn singlestep_solvers_have_their_order() {
    for (order, solver_type) in
        [(1, SolverType::Midpoint), (2, SolverType::Midpoint), (2, SolverType::Heun), (3, SolverType::Heun)]
    {
        let mut config = config(SamplerKind::DpmSolverSinglestep, order);
        config.dpm_solver.solver_type = solver_type;
        assert_order(&config, f64::from(order));
    }
}

/// The corrector adds one to the predictor's order.
#[test]
fn unipc_has_its_order() {
    for solver_type in [UniPcType::Bh1, UniPcType::Bh2] {
        for order in [1, 2] {
            let mut config = config(SamplerKind::UniPc, order);
            config.unipc.solver_type = solver_type;
            assert_order(&config, f64::from(order) + 1.0);
            config.unipc.disable_corrector = (0..200).collect();
            assert_order(&config, f64::from(order));
        }
    }
}

#[test]
fn euler_is_of_first_and_heun_of_second_order() {
    assert_order(&config(SamplerKind::Euler, 2), 1.0);
    assert_order(&config(SamplerKind::Heun, 2), 2.0);
}

/// Mean and variance of what a table makes of the exact marginal at its start, against the exact ones at `end`.
#[track_caller]
fn assert_moments(table: &StepTable, end: Level, tolerance: f64) {
    let start = level(&table.rows[0]);
    let quiet = |x: f64| run(table, x, &|_| 0.0);
    let mean = quiet(start.0 * MU);
    let from_start = variance(start) * (quiet(1.0) - quiet(0.0)).powi(2);
    let draws = (0..table.rows.len()).filter(|&i| table.rows[i].noise);
    let from_noise: f64 =
        draws.map(|i| (run(table, start.0 * MU, &|step| f64::from(u8::from(step == i))) - mean).powi(2)).sum();
    assert!((mean - end.0 * MU).abs() < tolerance, "mean {mean} instead of {}", end.0 * MU);
    let (found, exact) = (from_start + from_noise, variance(end));
    assert!((found / exact - 1.0).abs() < tolerance, "variance {found} instead of {exact}");
    assert!(from_noise > 0.5 * exact, "most of it is drawn");
}

#[test]
fn random_samplers_keep_mean_and_variance() {
    let clean = (1.0, 0.0);
    for order in [1, 2, 3] {
        let mut sde = config(SamplerKind::DpmSolverPp, order);
        sde.dpm_solver.algorithm = Algorithm::SdeX0;
        let tolerance = [0.1, 0.02, 0.02][usize::from(order) - 1];
        assert_moments(&StepTable::build(&sde, 150, 0.0).unwrap(), last_level(&sde), tolerance);
    }
    let ancestral = config(SamplerKind::EulerAncestral, 2);
    assert_moments(&StepTable::build(&ancestral, 800, 0.0).unwrap(), clean, 0.03);
    for (sampler, eta) in [(SamplerKind::Ddpm, 0.0), (SamplerKind::Ddim, 1.0)] {
        let full = config(sampler, 2);
        assert_moments(&StepTable::build(&full, 1000, eta).unwrap(), clean, 0.03);
    }
}

#[test]
fn churn_keeps_mean_and_variance_if_the_network_sees_its_noise() {
    let mut churned = config(SamplerKind::Euler, 2);
    churned.churn = Some(Churn { s_churn: 10.0, s_tmin: 0.0, s_tmax: 1e9, s_noise: 1.0 });
    let table = StepTable::build(&churned, 1000, 0.0).unwrap();
    assert_moments(&table, last_level(&churned), 0.03);
}

#[test]
fn inversion_and_ddim_are_inverse_up_to_their_order() {
    let mut inverse = config(SamplerKind::DdimInverse, 2);
    inverse.set_alpha_to_one = false;
    let there_and_back = |steps: usize| {
        let latent = run(&StepTable::build(&inverse, steps, 0.0).unwrap(), 0.8, &|_| 0.0);
        let ddim = inverse.with_sampler(SamplerKind::Ddim);
        (run(&StepTable::build(&ddim, steps, 0.0).unwrap(), latent, &|_| 0.0) - 0.8).abs()
    };
    let (coarse, fine) = (there_and_back(100), there_and_back(500));
    assert!(fine < 0.3 * coarse && fine < 5e-3, "{coarse} {fine}");
}

/// Linspace of 7 steps over 1000 timesteps: 166 or 167 apart, where diffusers counts 142.
#[test]
fn ddim_goes_where_the_network_looks_next_unless_diffusers_counts() {
    let table = |compat| {
        let config = SchedulerConfig {
            compat,
            timestep_spacing: Some(super::TimestepSpacing::Linspace),
            ..config(SamplerKind::Ddim, 2)
        };
        StepTable::build(&config, 7, 0.0).unwrap()
    };
    let alpha_bars = Schedule::new(&BetaConfig::linear(1000)).unwrap().alpha_bars;
    // Without noise in x and model, x_next = sqrt(alpha_bar_next) x_0.
    let reached = |table: &StepTable| (table.rows[0].b).powi(2);
    let second = table(Compat::Paper).rows[1].timestep as usize;
    assert!((reached(&table(Compat::Paper)) - alpha_bars[second]).abs() < 1e-15);
    assert!((reached(&table(Compat::Diffusers)) - alpha_bars[999 - 142]).abs() < 1e-15);
}
