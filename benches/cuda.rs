//! Speed of networks and single operations on a GPU, in device time. `cargo bench --bench cuda`; says so where there is no
//! GPU.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{batch, noise};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::Driver;
use warpdiff::backend::gpu::driver::cuda::Cuda;
use warpdiff::backend::{Backend, Precision};
use warpdiff::bench::race;
use warpdiff::program::ForwardProgram;
use warpdiff::unet::{UNetConfig, presets};

fn forward(c: &mut Criterion, driver: &Arc<dyn Driver>, name: &str, config: &UNetConfig, n: usize) {
    let batch = batch(config, n);
    for precision in [Precision::F32, Precision::Bf16] {
        let program = ForwardProgram::new(config, batch, false).expect("the configuration makes a network");
        let mut exe = Gpu::new(Arc::clone(driver), precision).compile(program.plan).expect("the plan fits");
        common::write_weights(exe.as_mut());
        exe.write_f32(program.x, &noise(batch.numel(config.in_channels), 3)).expect("lengths agree");
        exe.write_f32(program.t, &vec![500.0; n]).expect("lengths agree");
        let mut group = c.benchmark_group("cuda forward");
        group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("{name}/{n}/{precision}"), |b| {
            b.iter_custom(|times| exe.run_timed(times as usize).expect("the device does not fail"));
        });
    }
}

/// The device, or nothing where there is none.
fn device() -> Option<Arc<dyn Driver>> {
    match Cuda::open() {
        Ok(cuda) => Some(Arc::new(cuda)),
        Err(reason) => {
            eprintln!("skipped: no CUDA device: {reason}");
            None
        }
    }
}

fn networks(c: &mut Criterion) {
    let Some(driver) = device() else { return };
    forward(c, &driver, "digits-small", &presets::digits_small(), 64);
    for n in [1, 16, 128] {
        forward(c, &driver, "ddpm-cifar10-32", &presets::ddpm_cifar10_32(), n);
    }
}

/// Everything but products, on operands that together exceed twice the L2 cache.
fn single_operations(c: &mut Criterion) {
    let Some(driver) = device() else { return };
    let l2 = Cuda::probe().map_or(0, |info| info.l2_bytes as usize);
    let copies = |bytes| race::copies(bytes, l2, 4 << 30);
    let gpu = Gpu::new(driver, Precision::Bf16);
    common::single_operations(c, "cuda operations", &gpu, &presets::ddpm_cifar10_32(), 128, &copies);
}

criterion_group!(benches, networks, single_operations);
criterion_main!(benches);
