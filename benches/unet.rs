//! Speed of the CPU backend, whole networks first, then the kernels that decide it. `cargo bench`, or
//! `cargo bench -- conv` for a part.

mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use common::{batch, noise};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpdiff::backend::cpu::conv::{self, ConvShape, PackedConv, Pass};
use warpdiff::backend::cpu::gemm::{Epilogue, Gemm, Matrix, Operand, PackedMatrix, Threads, gemm};
use warpdiff::backend::{Backend, Executable, cpu::Cpu};
use warpdiff::data::{Dataset, Digits};
use warpdiff::graph::Plan;
use warpdiff::program::ForwardProgram;
use warpdiff::train::{Batches, Examples, TrainOptions};
use warpdiff::unet::presets;

fn with_weights(plan: Plan) -> Box<dyn Executable> {
    let mut exe = Cpu::new(None).expect("threads start").compile(plan).expect("the plan fits");
    common::write_weights(exe.as_mut());
    exe
}

fn forward(c: &mut Criterion) {
    for (name, config, n, samples) in [
        ("digits-small/1", presets::digits_small(), 1, 50),
        ("digits-small/16", presets::digits_small(), 16, 50),
        ("ddpm-cifar10-32/1", presets::ddpm_cifar10_32(), 1, 10),
    ] {
        let batch = batch(&config, n);
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
    let config = presets::digits_small();
    let batch = batch(&config, 64);
    let program = common::training(&config, 64);
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

/// Everything but products, as the CIFAR-10 network has it.
fn single_operations(c: &mut Criterion) {
    let cpu = Cpu::new(None).expect("threads start");
    common::single_operations(c, "operations", &cpu, &presets::ddpm_cifar10_32(), 4, &|_| 1);
}

/// The examples of a step, as the loader's thread makes them while the step before is computed.
fn loader(c: &mut Criterion) {
    let digits: Arc<dyn Dataset> = Arc::new(Digits::load().expect("the set is embedded"));
    let options = TrainOptions { batch_size: 256, flip: true, ..TrainOptions::default() };
    let batches = Batches::new(digits, &options, &presets::digits_small()).expect("the set fits the network");
    let (mut examples, mut step) = (Examples::default(), 0);
    let mut group = c.benchmark_group("loader");
    group.throughput(Throughput::Elements(256));
    group.bench_function("digits/256", |b| {
        b.iter(|| {
            batches.fill(black_box(step), &mut examples).expect("the set is in memory");
            step += 1;
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = forward, training_step, matrix_product, convolutions, single_operations, loader
}
criterion_main!(benches);
