//! What the benchmarks of all devices measure.

use std::sync::Arc;

use criterion::{Criterion, Throughput};
use warpdiff::backend::{Backend, Executable, Precision, Store};
use warpdiff::bench::operation::operations;
use warpdiff::bench::program::Noise;
use warpdiff::bench::samplers::VARIANTS;
use warpdiff::bench::{Family, Work};
use warpdiff::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use warpdiff::graph::{AdamW, ParamId};
use warpdiff::program::{Batch, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::{UNetConfig, initial_weights};

/// Random numbers, so that no kernel runs on zeros.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Sequence::new(seed, Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}

pub fn batch(config: &UNetConfig, n: usize) -> Batch {
    let (h, w) = config.height_width().expect("the configuration has a size");
    Batch { n, h, w }
}

pub fn write_weights(exe: &mut dyn Executable) {
    let params = exe.plan().graph().params().to_vec();
    for i in 0..params.len() {
        exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1)).expect("lengths agree");
    }
}

/// Noising, forward, loss, backward, clipping, AdamW and EMA.
pub fn training(config: &UNetConfig, n: usize) -> TrainingProgram {
    let objective = TrainingObjective::new(
        Schedule::new(&BetaConfig::linear(1000)).expect("the schedule is valid"),
        PredictionType::Epsilon,
        VarianceType::FixedLarge,
        Objective::Simple,
        LossWeighting::None,
        17,
    );
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
    let options =
        TrainingOptions { objective: Arc::new(objective), optimizer: Some(optimizer), inputs: TrainingInputs::Drawn };
    TrainingProgram::new(config, batch(config, n), &options).expect("the configuration makes a network")
}

/// Of each family of operations and each pass the one that moves most bytes in a training step, and every sampler's update.
/// A measurement runs as many copies as `copies` says for the bytes of one.
pub fn single_operations(
    c: &mut Criterion,
    title: &str,
    backend: &dyn Backend,
    config: &UNetConfig,
    n: usize,
    copies: &dyn Fn(usize) -> usize,
) {
    let program = training(config, n);
    let graph = program.plan.graph();
    let bytes = |work: &Work| work.amount(backend.precision()).expect("the operands fit").bytes;
    let mut chosen: Vec<Work> = Vec::new();
    for family in [Family::Noise, Family::Norm, Family::Attention, Family::Optim] {
        for work in operations(graph, family).into_iter().map(|(operation, _)| Work::Operation(operation)) {
            let same = |known: &Work| (known.family(), known.pass()) == (work.family(), work.pass());
            match chosen.iter_mut().find(|known| same(known)) {
                Some(known) if bytes(known) < bytes(&work) => *known = work,
                Some(_) => {}
                None => chosen.push(work),
            }
        }
    }
    let samplers =
        VARIANTS.iter().map(|v| v.operation(batch(config, n), config.in_channels).expect("the table is valid"));
    chosen.extend(samplers.map(Work::Operation));
    let numbers = Noise::new(20);
    let mut group = c.benchmark_group(title);
    group.sample_size(20);
    for work in chosen {
        let program = work.program(copies(bytes(&work) as usize).min(work.most_copies())).expect("the operands fit");
        let mut exe = backend.compile(program.plan.clone()).expect("the plan fits");
        program.fill(exe.as_mut(), &numbers).expect("lengths agree");
        group.throughput(Throughput::Bytes(bytes(&work) * program.copies() as u64));
        let precision = if backend.precision() == Precision::Bf16 { "bf16" } else { "f32" };
        group.bench_function(format!("{} {} {}/{precision}", work.family(), work.pass(), work.name()), |b| {
            b.iter_custom(|times| exe.run_timed(times as usize).expect("the device does not fail"));
        });
    }
}
