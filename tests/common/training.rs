//! Training steps of small models on any backend.

use std::sync::Arc;

use super::models::{load_random, noise, scheduler};
use warpdiff::backend::{Backend, Store};
use warpdiff::diffusion::{LossWeighting, Objective, PredictionType, Schedule, SchedulerConfig, TrainingObjective};
use warpdiff::graph::{AdamW, ParamId};
use warpdiff::program::{Batch, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::unet::UNetConfig;

/// L_simple, or L_hybrid for learned variances.
pub fn objective(scheduler: &SchedulerConfig) -> Arc<TrainingObjective> {
    let schedule = Schedule::new(&scheduler.betas).unwrap();
    let learned = scheduler.variance_type.is_learned();
    let objective = if learned { Objective::hybrid(schedule.num_timesteps()) } else { Objective::Simple };
    let (epsilon, variance) = (PredictionType::Epsilon, scheduler.variance_type);
    Arc::new(TrainingObjective::new(schedule, epsilon, variance, objective, LossWeighting::None, 256))
}

/// Mean losses of the first `steps` updates with batches of two fresh images.
pub fn training_steps(config: &UNetConfig, steps: u64, backend: &dyn Backend) -> Vec<f64> {
    let (h, w) = config.height_width().unwrap();
    let batch = Batch { n: 2, h, w };
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
    let objective = objective(&scheduler(config, 50));
    let options = TrainingOptions { objective, optimizer: Some(optimizer), inputs: TrainingInputs::Drawn };
    let program = TrainingProgram::new(config, batch, &options).unwrap();
    let mut exe = backend.compile(program.plan.clone()).unwrap();
    load_random(exe.as_mut(), 3);
    for i in 0..exe.plan().graph().params().len() {
        let mut weights = vec![0.0; exe.plan().graph().params()[i].numel()];
        exe.read_param(Store::Params, ParamId::new(i), &mut weights).unwrap();
        exe.write_param(Store::Ema, ParamId::new(i), &weights).unwrap();
    }
    exe.write_u32(program.key, &[1, 2]).unwrap();
    let step = |k: u64| {
        let n = k as u32 - 1;
        exe.write_f32(program.x0, &noise(batch.numel(config.in_channels), k)).unwrap();
        exe.write_u32(program.example_index, &[2 * n, 2 * n + 1]).unwrap();
        exe.write_u32(program.class.unwrap(), &[n % 3, (n + 1) % 3]).unwrap();
        let corrections = [0.9f64, 0.999].map(|beta| (1.0 - beta.powi(k as i32)) as f32);
        exe.write_f32(program.hyper, &[1e-3, corrections[0], corrections[1], 0.99]).unwrap();
        exe.run().unwrap();
        exe.read_f64(program.losses).unwrap().chunks(3).map(|l| l[0]).sum::<f64>() / 2.0
    };
    (1..=steps).map(step).collect()
}
