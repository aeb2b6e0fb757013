//! Speed of whole networks on a GPU, in device time. `cargo bench --bench cuda`; says so where there is no GPU.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::Driver;
use warpdiff::backend::gpu::driver::cuda::Cuda;
use warpdiff::backend::{Backend, Precision, Store};
use warpdiff::graph::ParamId;
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::{UNetConfig, initial_weights, presets};

/// Random numbers, so that no kernel runs on zeros.
fn noise(len: usize) -> Vec<f32> {
    let mut x = vec![0.0; len];
    Sequence::new(3, Stream::InitialNoise, 0, 0).fill_normal(&mut x);
    x
}

fn forward(c: &mut Criterion, driver: &Arc<dyn Driver>, name: &str, config: &UNetConfig, n: usize) {
    let (h, w) = config.height_width().expect("the configuration has a size");
    let batch = Batch { n, h, w };
    for precision in [Precision::F32, Precision::Bf16] {
        let program = ForwardProgram::new(config, batch, false).expect("the configuration makes a network");
        let mut exe = Gpu::new(Arc::clone(driver), precision).compile(program.plan).expect("the plan fits");
        let params = exe.plan().graph().params().to_vec();
        for i in 0..params.len() {
            exe.write_param(Store::Params, ParamId::new(i), &initial_weights(&params, i, 1)).expect("lengths agree");
        }
        exe.write_f32(program.x, &noise(batch.numel(config.in_channels))).expect("lengths agree");
        exe.write_f32(program.t, &vec![500.0; n]).expect("lengths agree");
        let mut group = c.benchmark_group("cuda forward");
        group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("{name}/{n}/{precision}"), |b| {
            b.iter_custom(|times| exe.run_timed(times as usize).expect("the device does not fail"));
        });
    }
}

fn networks(c: &mut Criterion) {
    let driver: Arc<dyn Driver> = match Cuda::open() {
        Ok(cuda) => Arc::new(cuda),
        Err(reason) => return eprintln!("skipped: no CUDA device: {reason}"),
    };
    forward(c, &driver, "digits-small", &presets::digits_small(), 64);
    for n in [1, 16, 128] {
        forward(c, &driver, "ddpm-cifar10-32", &presets::ddpm_cifar10_32(), n);
    }
}

criterion_group!(benches, networks);
criterion_main!(benches);
