//! Every sampler against the float64 trajectories of an independent implementation (`data/make_sampler_trajectories.py`
//! says how they were made), with noise, learned variances, clipping and thresholding.

use serde_json::Value;
use warpdiff::diffusion::{Compat, SamplerKind, SchedulerConfig, StepTable};

const PIXELS: usize = 12;

fn per_pixel(f: impl Fn(f64) -> f64) -> Vec<f64> {
    (0..PIXELS).map(|i| f(i as f64)).collect()
}

#[test]
fn every_sampler_reproduces_the_reference_trajectory() {
    let runs: Vec<Value> = serde_json::from_str(include_str!("data/sampler_trajectories.json")).unwrap();
    assert!(runs.len() >= 30);
    for run in &runs {
        let config =
            SchedulerConfig { compat: Compat::Diffusers, ..SchedulerConfig::from_value(&run["scheduler"]).unwrap() };
        let (steps, eta) = (run["steps"].as_u64().unwrap() as usize, run["eta"].as_f64().unwrap());
        let clipped = run["use_clipped_model_output"] == true;
        let table = match config.sampler {
            SamplerKind::Ddim => StepTable::ddim(&config, steps, eta, clipped),
            _ => StepTable::build(&config, steps, eta),
        }
        .unwrap();
        let timesteps: Vec<f32> =
            run["timesteps"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as f32).collect();
        assert_eq!(table.rows.iter().map(|row| row.timestep).collect::<Vec<_>>(), timesteps, "{run}");

        let mut x = per_pixel(|i| 1.5 * (1.3 * i + 0.4).sin());
        let mut x0_prev = vec![f64::NAN; PIXELS];
        for (step, row) in table.rows.iter().enumerate() {
            let t = f64::from(row.timestep);
            let model: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(i, x)| 0.7 * x * (t / 300.0).cos() - 0.3 * (3.0 * i as f64 + t / 100.0).sin())
                .collect();
            let mut v = per_pixel(|i| 0.9 * (i + t / 50.0).sin());
            if run["scheduler"]["variance_type"] == "learned" {
                v.iter_mut().for_each(|v| *v = v.abs());
            }
            let z = per_pixel(|i| 1.2 * (1.7 * i + 2.3 * step as f64).cos());
            table.step_image(step, &mut x, &model, &v, &mut x0_prev, &z);
        }
        for (i, golden) in run["x"].as_array().unwrap().iter().enumerate() {
            let golden = golden.as_f64().unwrap();
            let error = (x[i] - golden).abs();
            assert!(error <= 1e-9 * (1.0 + golden.abs()), "{run}\n[{i}]: {} vs {golden}", x[i]);
        }
    }
}
