//! Speed of the CPU backend, whole networks first, then the kernels that decide it. `cargo bench`, or
//! `cargo bench -- conv` for a part.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpdiff::backend::cpu::conv::{self, ConvShape, PackedConv, Pass};
use warpdiff::backend::cpu::gemm::{Epilogue, Gemm, Matrix, Operand, PackedMatrix, Threads, gemm};
use warpdiff::backend::{Backend, Executable, Store, cpu::Cpu};
use warpdiff::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use warpdiff::graph::{AdamW, DType, Graph, GroupNorm, Op, ParamId, Plan};
use warpdiff::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::{UNetConfig, initial_weights};

/// The network of `google/ddpm-cifar10-32`.
const DDPM_CIFAR10: &str = r#"{"_class_name": "UNet2DModel", "sample_size": 32, "in_channels": 3, "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_eps": 1e-6, "attention_head_dim": null, "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1}"#;

/// The network of `bench unet --preset digits-small`.
const DIGITS_SMALL: &str = r#"{"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1,
    "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}"#;

/// Random numbers, so that no kernel runs on zeros.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Sequence::new(seed, Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}

fn network(json: &str, n: usize) -> (UNetConfig, Batch) {
    let config = UNetConfig::from_json(json).expect("the configuration is valid");
    let (h, w) = config.height_width().expect("the configuration has a size");
    (config, Batch { n, h, w })
}

fn with_weights(plan: Plan) -> Box<dyn Executable> {
    let mut exe = Cpu::new(None).expect("threads start").compile(plan).expect("the plan fits");
    let params = exe.plan().graph().params().to_vec();
    for i in 0..params.len() {
        exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1)).expect("lengths agree");
    }
    exe
}

fn forward(c: &mut Criterion) {
    for (name, json, n, samples) in [
        ("digits-small/1", DIGITS_SMALL, 1, 50),
        ("digits-small/16", DIGITS_SMALL, 16, 50),
        ("ddpm-cifar10-32/1", DDPM_CIFAR10, 1, 10),
    ] {
        let (config, batch) = network(json, n);
        let program = ForwardProgram::new(&config, batch, false).expect("the configuration makes a network");
        let mut exe = with_weights(program.plan);
        exe.write_f32(program.x, &noise(batch.numel(config.in_channels), 3)).expect("lengths agree");
        exe.write_f32(program.t, &vec![500.0; n]).expect("lengths agree");
        let mut group = c.benchmark_group("forward");
        group.sample_size(samples).throughput(Throughput::Elements(n as u64));
        group.bench_function(name, |b| b.iter(|| exe.run().expect("the CPU does not fail")));
    }
}

/// Noising, forward, loss, backward, clipping, AdamW and EMA.
fn training_step(c: &mut Criterion) {
    let (config, batch) = network(DIGITS_SMALL, 64);
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
    let program = TrainingProgram::new(&config, batch, &options).expect("the configuration makes a network");
    let mut exe = with_weights(program.plan);
    let x0: Vec<f32> = noise(batch.numel(1), 3).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    exe.write_f32(program.x0, &x0).expect("lengths agree");
    exe.write_u32(program.example_index, &(0..64).collect::<Vec<_>>()).expect("lengths agree");
    exe.write_u32(program.key, &[1, 0]).expect("lengths agree");
    exe.write_f32(program.hyper, &[2e-4, 0.1, 0.001, 0.9999]).expect("lengths agree");
    let mut group = c.benchmark_group("training step");
    group.sample_size(10).throughput(Throughput::Elements(64));
    group.bench_function("digits-small/64", |b| b.iter(|| exe.run().expect("the CPU does not fail")));
}

fn matrix_product(c: &mut Criterion) {
    const SIZE: usize = 512;
    let (a, b) = (noise(SIZE * SIZE, 1), noise(SIZE * SIZE, 2));
    let mut storage = vec![0.0; PackedMatrix::len(SIZE, SIZE)];
    let packed = PackedMatrix::pack(Matrix::row_major(&b, SIZE), SIZE, SIZE, &mut storage, Threads::Pool);
    let (g, mut out) = (Gemm::new(SIZE, SIZE, SIZE), vec![0.0; SIZE * SIZE]);
    let mut workspace = vec![0.0; g.workspace(true, rayon::current_num_threads())];
    let mut group = c.benchmark_group("gemm");
    group.throughput(Throughput::Elements(2 * (SIZE as u64).pow(3)));
    group.bench_function("512^3, B packed", |bencher| {
        bencher.iter(|| {
            let a = Matrix::row_major(black_box(&a), SIZE);
            gemm(&g, a, Operand::Packed(packed), &mut out, &Epilogue::NONE, Threads::Pool, &mut workspace);
        });
    });
}

/// One geometry for each algorithm, at the sizes of the CIFAR-10 network; all three passes. Elements are FLOPs.
fn convolutions(c: &mut Criterion) {
    for (name, shape) in [
        ("winograd4 32x32 128->128", ConvShape::same(1, 32, 32, 128, 128, 3)),
        ("winograd2 8x8 256->256", ConvShape::same(1, 8, 8, 256, 256, 3)),
        ("direct 4x4 256->256", ConvShape::same(1, 4, 4, 256, 256, 3)),
        ("gemm 16x16 256->256 1x1", ConvShape::same(1, 16, 16, 256, 256, 1)),
    ] {
        let threads = rayon::current_num_threads();
        let (x, w, dy) = (noise(shape.x_len(), 1), noise(shape.weight_len(), 2), noise(shape.y_len(), 3));
        let mut group = c.benchmark_group("conv");
        group.sample_size(30).measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(shape.flops() as u64));

        let mut storage = vec![0.0; PackedConv::len(&shape, Pass::Fprop)];
        let packed = PackedConv::pack(&shape, Pass::Fprop, &w, &mut storage);
        let mut workspace = vec![0.0; conv::fprop_workspace(&shape, threads)];
        let mut y = vec![0.0; shape.y_len()];
        group.bench_function(format!("{name} fprop"), |b| {
            b.iter(|| conv::fprop(&shape, black_box(&x), &packed, &Epilogue::NONE, &mut y, &mut workspace));
        });

        let mut storage = vec![0.0; PackedConv::len(&shape, Pass::Dgrad)];
        let packed = PackedConv::pack(&shape, Pass::Dgrad, &w, &mut storage);
        let mut workspace = vec![0.0; conv::dgrad_workspace(&shape, threads)];
        let mut dx = vec![0.0; shape.x_len()];
        group.bench_function(format!("{name} dgrad"), |b| {
            b.iter(|| conv::dgrad(&shape, black_box(&dy), &packed, None, &mut dx, &mut workspace));
        });

        let mut workspace = vec![0.0; conv::wgrad_workspace(&shape, threads)];
        let (mut dw, mut db) = (vec![0.0; shape.weight_len()], vec![0.0; shape.k]);
        group.bench_function(format!("{name} wgrad"), |b| {
            b.iter(|| conv::wgrad(&shape, black_box(&x), &dy, &mut dw, Some(&mut db), &mut workspace));
        });
    }
}

/// A plan of one operation on random operands of the given shapes.
fn single(op: Op, shapes: &[&[usize]]) -> Box<dyn Executable> {
    let mut graph = Graph::new();
    let inputs: Vec<_> =
        shapes.iter().enumerate().map(|(i, &shape)| graph.input(&format!("x{i}"), shape, DType::Act)).collect();
    let outputs = graph.push(op, &inputs).expect("the operands fit");
    graph.keep(outputs[0]);
    let mut exe = Cpu::new(None).expect("threads start").compile(Plan::new(graph)).expect("the plan fits");
    for (i, (&input, shape)) in inputs.iter().zip(shapes).enumerate() {
        exe.write_f32(input, &noise(shape.iter().product(), i as u64)).expect("lengths agree");
    }
    exe
}

fn norm_and_attention(c: &mut Criterion) {
    let norm = GroupNorm { groups: 32, eps: 1e-6, silu: true, modulated: false };
    let mut exe = single(Op::GroupNorm(norm), &[&[4, 32, 32, 128], &[128], &[128]]);
    let mut group = c.benchmark_group("group norm");
    group.throughput(Throughput::Bytes(2 * 4 * 4 * 32 * 32 * 128));
    group.bench_function("silu, 4x32x32x128", |b| b.iter(|| exe.run().expect("the CPU does not fail")));
    group.finish();

    let mut exe = single(Op::Attention { heads: 1 }, &[&[4, 16, 16, 3 * 256]]);
    let mut group = c.benchmark_group("attention");
    // Scores and their sum over the values: elements are FLOPs.
    group.throughput(Throughput::Elements(4 * 4 * 256 * 256 * 256));
    group.bench_function("4 x 256 tokens, 1 head of 256", |b| b.iter(|| exe.run().expect("the CPU does not fail")));
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = forward, training_step, matrix_product, convolutions, norm_and_attention
}
criterion_main!(benches);
