//! The samplers against published results that need no random numbers: the ten-step loops of the diffusers test suite
//! on an analytic model, model(x, t) = x t / (t + 1), started from a ramp of 768 values.

use warpdiff::diffusion::{FinalSigmas, PredictionType, SamplerKind, SchedulerConfig, StepTable};

const IMAGES: usize = 4;
const PIXELS: usize = 3 * 8 * 8;

/// Final samples of `steps` deterministic steps.
fn run(config: &SchedulerConfig, steps: usize) -> Vec<f64> {
    let table = StepTable::build(config, steps, 0.0).unwrap();
    let mut samples = Vec::new();
    for image in 0..IMAGES {
        let mut x: Vec<f64> = (0..PIXELS).map(|i| (i * IMAGES + image) as f64 / (IMAGES * PIXELS) as f64).collect();
        let mut x0_prev = vec![f64::NAN; PIXELS];
        for (step, row) in table.rows.iter().enumerate() {
            let t = f64::from(row.timestep);
            let model: Vec<f64> = x.iter().map(|x| x * t / (t + 1.0)).collect();
            table.step_image(step, &mut x, &model, &[], &mut x0_prev, &[]);
        }
        samples.extend(x);
    }
    samples
}

fn abs_sum(samples: &[f64]) -> f64 {
    samples.iter().map(|x| x.abs()).sum()
}

#[track_caller]
fn assert_published(value: f64, published: f64) {
    // Published with four decimals, from float32 arithmetic: 2e-6 is 16 roundings.
    assert!((value - published).abs() <= 0.5e-4 + 2e-6 * published, "{value} is not {published}");
}

#[test]
fn ddim() {
    let config = SchedulerConfig::new(SamplerKind::Ddim);
    assert_published(abs_sum(&run(&config, 10)), 172.0067);
    let v = SchedulerConfig { prediction_type: PredictionType::VPrediction, ..config.clone() };
    assert_published(abs_sum(&run(&v, 10)), 52.5302);
    let mut noisy_start = config;
    noisy_start.betas.beta_start = 0.01;
    assert_published(abs_sum(&run(&noisy_start, 10)), 149.8295);
    noisy_start.set_alpha_to_one = false;
    assert_published(abs_sum(&run(&noisy_start, 10)), 149.0784);
}

#[test]
fn dpm_solver_pp() {
    let mut config = SchedulerConfig::new(SamplerKind::DpmSolverPp);
    config.dpm_solver.final_sigmas_type = FinalSigmas::SigmaMin;
    config.dpm_solver.lower_order_final = false;
    let mean = |config: &SchedulerConfig| abs_sum(&run(config, 10)) / (IMAGES * PIXELS) as f64;
    assert_published(mean(&config), 0.3301);
    let v = SchedulerConfig { prediction_type: PredictionType::VPrediction, ..config.clone() };
    assert_published(mean(&v), 0.2251);
    let thresholded =
        SchedulerConfig { thresholding: true, dynamic_thresholding_ratio: 0.87, sample_max_value: 0.5, ..config };
    assert_published(mean(&thresholded), 1.1364);
}
