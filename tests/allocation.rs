//! Replaying a program takes no memory. One test, since the count is of the whole process.

mod common;

use std::sync::Arc;

use common::memory::{Counting, allocations};
use common::models::{load_random, noise, scheduler, wide};
use warpdiff::backend::{Backend, Executable, cpu::Cpu};
use warpdiff::diffusion::{
    LossWeighting, Objective, PredictionType, Schedule, StepTable, TrainingObjective, VarianceType,
};
use warpdiff::graph::{AdamW, NoiseSource, Plan};
use warpdiff::program::{
    Batch, ForwardProgram, SamplingOptions, SamplingProgram, TrainingInputs, TrainingOptions, TrainingProgram,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn compiled(plan: &Plan, threads: usize) -> Box<dyn Executable> {
    let mut exe = Cpu::new(Some(threads)).unwrap().compile(plan.clone()).unwrap();
    load_random(exe.as_mut(), 1);
    exe
}

/// Runs that are counted. rayon's queue of jobs from outside its pool takes a block for every 63 of them, and a run is one job.
const RUNS: usize = 200;
const RAYON_BLOCKS: usize = RUNS / 63 + 1;

#[track_caller]
fn check(what: &str, exe: &mut dyn Executable, mut before: impl FnMut(&mut dyn Executable)) {
    before(exe);
    exe.run().unwrap();
    let count = allocations(|| {
        for _ in 0..RUNS {
            before(exe);
            exe.run().unwrap();
        }
    });
    println!("{what}: {count} allocations in {RUNS} runs");
    assert!(count <= RAYON_BLOCKS, "{what}: {count} allocations in {RUNS} runs");
}

#[test]
fn replaying_allocates_nothing() {
    let config = wide();
    let batch = Batch { n: 2, h: 16, w: 16 };
    let image = noise(batch.numel(3), 1);
    for threads in [1, 2] {
        let program = ForwardProgram::new(&config, batch, false).unwrap();
        let mut exe = compiled(&program.plan, threads);
        check("forward", exe.as_mut(), |exe| {
            exe.write_f32(program.x, &image).unwrap();
            exe.write_f32(program.t, &[3.0, 5.0]).unwrap();
        });

        let table = Arc::new(StepTable::build(&scheduler(&config, 50), 10, 0.0).unwrap());
        let options =
            SamplingOptions { guidance: Some(2.0.into()), ..SamplingOptions::new(table, NoiseSource::Philox) };
        let program = SamplingProgram::new(&config, batch, &options).unwrap();
        let mut exe = compiled(&program.plan, threads);
        check("sampling", exe.as_mut(), |exe| {
            exe.write_f32(program.x, &image).unwrap();
            exe.write_u32(program.step, &[4]).unwrap();
        });

        let schedule = Schedule::new(&scheduler(&config, 50).betas).unwrap();
        let (epsilon, fixed) = (PredictionType::Epsilon, VarianceType::FixedSmall);
        let objective = TrainingObjective::new(schedule, epsilon, fixed, Objective::Simple, LossWeighting::None, 256);
        let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
        let options = TrainingOptions {
            objective: Arc::new(objective),
            optimizer: Some(optimizer),
            inputs: TrainingInputs::Drawn,
        };
        let program = TrainingProgram::new(&config, batch, &options).unwrap();
        let mut exe = compiled(&program.plan, threads);
        check("training", exe.as_mut(), |exe| {
            exe.write_f32(program.x0, &image).unwrap();
            exe.write_u32(program.example_index, &[3, 4]).unwrap();
            exe.write_f32(program.hyper, &[1e-6, 0.1, 0.1, 0.99]).unwrap();
        });
    }
}
