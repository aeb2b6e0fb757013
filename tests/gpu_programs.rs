//! Whole networks and loops on the CUDA kernels, in the simulator: the same results as the CPU and the reference.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::models::{load_random, noise, oblong, random_weights, save, scheduler, tiny, wide};
use common::training::{objective, training_steps};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::gpu::driver::{
    DeviceLimits, DevicePtr, Driver, DriverError, LoadedKernel, Recording, TensorMap, TensorMapSpec,
};
use warpdiff::backend::gpu::launch::Launch;
use warpdiff::backend::{Backend, BackendError, Precision, cpu::Cpu};
use warpdiff::compare::compare_operations;
use warpdiff::compare::program::{Workload, record};
use warpdiff::compare::rule::Errors;
use warpdiff::diffusion::SamplerKind;
use warpdiff::io::ImageBatch;
use warpdiff::model::ModelFolder;
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::reference::Reference;
use warpdiff::sample::{LabelChoice, SampleOptions, Sampler};
use warpdiff::unet::UNetConfig;

fn sim(precision: Precision) -> Gpu {
    Gpu::new(Arc::new(Sim::new(Options::default())), precision)
}

/// Model output for `n` images; image i is the same in any batch.
fn forward(config: &UNetConfig, n: usize, backend: &dyn Backend) -> Vec<f64> {
    let (h, w) = config.height_width().unwrap();
    let batch = Batch { n, h, w };
    let program = ForwardProgram::new(config, batch, false).unwrap();
    let mut exe = backend.compile(program.plan.clone()).unwrap();
    load_random(exe.as_mut(), 3);
    exe.write_f32(program.x, &noise(batch.numel(config.in_channels), 5)).unwrap();
    exe.write_f32(program.t, &(0..n).map(|i| [7.0, 31.0, 2.0][i % 3]).collect::<Vec<_>>()).unwrap();
    exe.write_u32(program.class.unwrap(), &(0..n).map(|i| i as u32 % 3).collect::<Vec<_>>()).unwrap();
    exe.run().unwrap();
    exe.read_f64(program.out).unwrap()
}

#[test]
fn networks_match_the_reference_in_f32() {
    for config in [tiny(), wide(), oblong()] {
        let expected = forward(&config, 2, &Reference::default());
        let e = Errors::between(&forward(&config, 2, &sim(Precision::F32)), &expected);
        println!("{:?}: {e:?}", config.sample_size);
        assert!(e.worst < 1e-5 && e.norm < 1e-5, "{e:?}");
    }
}

/// A network's errors add up, in the kernels as in the reference that rounds.
#[test]
fn networks_in_bf16_are_as_close_as_rounding_allows() {
    for config in [tiny(), wide(), oblong()] {
        let expected = forward(&config, 2, &Reference::default());
        let yardstick = Errors::between(&forward(&config, 2, &Reference::new(Precision::Bf16)), &expected);
        let e = Errors::between(&forward(&config, 2, &sim(Precision::Bf16)), &expected);
        println!("{:?}: {e:?}, rounding alone {yardstick:?}", config.sample_size);
        assert!(e.norm <= 2.0 * yardstick.norm && e.worst <= 2.0 * yardstick.worst, "{e:?} {yardstick:?}");
    }
}

#[test]
fn an_image_has_the_same_bits_in_any_batch() {
    for precision in [Precision::F32, Precision::Bf16] {
        for config in [tiny(), wide(), oblong()] {
            let (alone, together) = (forward(&config, 1, &sim(precision)), forward(&config, 3, &sim(precision)));
            let differing = alone.iter().zip(&together).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 0, "{precision} {:?}: of {}", config.sample_size, alone.len());
        }
    }
}

#[test]
fn twenty_training_steps_have_the_losses_of_the_cpu() {
    let cpu = training_steps(&tiny(), 20, &Cpu::new(Some(2)).unwrap());
    let gpu = training_steps(&tiny(), 20, &sim(Precision::F32));
    for (step, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
        println!("step {step}: {c} {g}");
        assert!((c - g).abs() <= 1e-5 * c.abs(), "step {step}: {c} on the CPU, {g} on the kernels");
    }
    assert!(cpu.windows(2).any(|w| w[0] != w[1]));
}

#[test]
fn training_in_bf16_follows_the_reference_that_rounds() {
    let exact = training_steps(&tiny(), 10, &Reference::default());
    let rounded = training_steps(&tiny(), 10, &Reference::new(Precision::Bf16));
    let gpu = training_steps(&tiny(), 10, &sim(Precision::Bf16));
    let off = |losses: &[f64]| losses.iter().zip(&exact).map(|(a, e)| ((a - e) / e).abs()).fold(0.0, f64::max);
    println!("rounding {:e}, kernels {:e}", off(&rounded), off(&gpu));
    assert!(off(&gpu) <= 2.0 * off(&rounded).max(1e-3));
}

fn options(model: &ModelFolder, kind: SamplerKind, batch: usize) -> SampleOptions {
    SampleOptions {
        scheduler: model.scheduler.with_sampler(kind),
        steps: 4,
        eta: if kind == SamplerKind::Ddim { 0.5 } else { 0.0 },
        seed: 5,
        labels: LabelChoice::Balanced,
        guidance: 2.0,
        guidance_rescale: 0.4,
        batch,
    }
}

fn draw(model: &ModelFolder, kind: SamplerKind, count: usize, batch: usize, on: &dyn Backend) -> Vec<f32> {
    let mut sampler = Sampler::new(model, options(model, kind, batch), on).unwrap();
    let ranges = (0..count).step_by(batch).map(|first| first..count.min(first + batch));
    ranges.flat_map(|range| sampler.run(range, &mut |_, _| true).unwrap()).collect()
}

#[test]
fn a_seed_gives_the_images_of_the_cpu_for_any_batch_split() {
    let cpu = Cpu::new(Some(2)).unwrap();
    for config in [tiny(), oblong()] {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &config, 50);
        let model = ModelFolder::open(folder.path()).unwrap();
        for kind in [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::DpmSolverPp] {
            let expected = draw(&model, kind, 3, 3, &cpu);
            let drawn = [1, 2, 3].map(|batch| draw(&model, kind, 3, batch, &sim(Precision::F32)));
            assert!(drawn.iter().all(|d| *d == drawn[0]), "{kind}: the batch split changes the bits");
            let worst = drawn[0].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{kind}: {worst:e}");
            assert!(worst < 2e-5, "{kind}: {worst:e}");
        }
    }
}

#[test]
fn pictures_are_the_bytes_of_the_images() {
    let backends: [&dyn Backend; 5] = [
        &Cpu::new(Some(2)).unwrap(),
        &Reference::default(),
        &Reference::new(Precision::Bf16),
        &sim(Precision::F32),
        &sim(Precision::Bf16),
    ];
    for config in [tiny(), oblong()] {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), &config, 50);
        let model = ModelFolder::open(folder.path()).unwrap();
        for backend in backends {
            for kind in [SamplerKind::Ddpm, SamplerKind::DpmSolverPp] {
                let mut sampler = Sampler::new(&model, options(&model, kind, 3), backend).unwrap();
                let [c, h, w] = sampler.image_shape();
                let mut frames = Vec::new();
                let images = sampler.run(4..6, &mut |_, pictures| {
                    frames.push(pictures().unwrap());
                    true
                });
                let expected = ImageBatch::new(&images.unwrap(), c, h, w).to_bytes().into_owned();
                let levels: HashSet<u8> = expected.iter().copied().collect();
                assert!(levels.len() > 16, "{kind}: {levels:?}");
                let name = format!("{kind} on {} in {}", backend.name(), backend.precision());
                assert_eq!(frames.len(), 4, "{name}");
                assert_eq!(frames[3], expected, "{name}");
                assert_ne!(frames[0], expected, "{name}");
                assert_eq!(sampler.draw_pictures(4..6, &mut |_| true).unwrap(), expected, "{name}");
            }
        }
    }
}

fn failures(b: &dyn Backend, config: &UNetConfig, train: bool) -> Vec<(String, String)> {
    let (h, w) = config.height_width().unwrap();
    let objective = train.then(|| objective(&scheduler(config, 50)));
    let workload = Workload { batch: Batch { n: 1, h, w }, seed: 1, objective };
    let weights = random_weights(&common::models::params(config), 3);
    let recorded = record(config, &weights, &workload, &Reference::default()).unwrap();
    let mut failed = Vec::new();
    let mut compared = 0;
    compare_operations(recorded.exe.as_ref(), &recorded.integers, &Reference::default(), b, |report| {
        compared += 1;
        if !report.passed {
            println!("{report:?}");
            failed.push((report.op.to_string(), report.scope));
        }
    })
    .unwrap();
    assert!(compared > 40, "{compared} results were compared");
    failed
}

#[test]
fn every_operation_of_a_training_step_keeps_the_rule() {
    for precision in [Precision::F32, Precision::Bf16] {
        for config in [tiny(), oblong()] {
            assert_eq!(failures(&sim(precision), &config, true), [], "{precision}");
        }
    }
}

/// A device on which one kernel is another one, that fails when it is read, or that has little memory.
struct Damaged {
    sim: Sim,
    fails: bool,
    kernel: &'static str,
    replacement: &'static str,
    /// Bytes that may still be allocated.
    room: AtomicUsize,
}

impl Damaged {
    /// Nothing is damaged yet.
    fn new() -> Self {
        let sim = Sim::new(Options::default());
        Self { sim, fails: false, kernel: "", replacement: "", room: usize::MAX.into() }
    }

    fn gpu(self) -> Gpu {
        Gpu::new(Arc::new(self), Precision::F32)
    }
}

impl Driver for Damaged {
    fn name(&self) -> &'static str {
        "damaged"
    }
    fn limits(&self) -> &DeviceLimits {
        self.sim.limits()
    }
    fn load(&self, kernel: &str) -> Result<LoadedKernel, DriverError> {
        self.sim.load(if kernel == self.kernel { self.replacement } else { kernel })
    }
    fn allocate(&self, bytes: usize) -> Result<DevicePtr, DriverError> {
        let taken = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes));
        taken.map_err(|free| DriverError::OutOfMemory { asked: bytes, free })?;
        self.sim.allocate(bytes)
    }
    unsafe fn free(&self, at: DevicePtr, bytes: usize) {
        self.room.fetch_add(bytes, Ordering::Relaxed);
        unsafe { self.sim.free(at, bytes) }
    }
    unsafe fn fill(&self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), DriverError> {
        unsafe { self.sim.fill(at, value, bytes) }
    }
    unsafe fn upload(&self, to: DevicePtr, data: &[u8]) -> Result<(), DriverError> {
        unsafe { self.sim.upload(to, data) }
    }
    unsafe fn download(&self, from: DevicePtr, data: &mut [u8]) -> Result<(), DriverError> {
        if self.fails {
            return Err(DriverError::Call { call: "copy", reason: "the device fell off the bus".into() });
        }
        unsafe { self.sim.download(from, data) }
    }
    unsafe fn launch(&self, launch: &Launch) -> Result<(), DriverError> {
        unsafe { self.sim.launch(launch) }
    }
    unsafe fn record(&self, launches: Vec<Launch>, overlap: bool) -> Result<Box<dyn Recording>, DriverError> {
        unsafe { self.sim.record(launches, overlap) }
    }
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DriverError> {
        self.sim.tensor_map(spec)
    }
    fn synchronize(&self) -> Result<(), DriverError> {
        self.sim.synchronize()
    }
}

#[test]
fn compare_names_the_operation_of_a_damaged_kernel() {
    let config = tiny();
    let backend = Damaged { kernel: "silu_f32", replacement: "to_act_f32", ..Damaged::new() }.gpu();
    let failed = failures(&backend, &config, false);
    assert!(!failed.is_empty());
    assert!(failed.iter().all(|(op, _)| op == "silu"), "{failed:?}");
}

/// A missing kernel is a sentence, not a crash.
#[test]
fn a_kernel_that_the_build_lacks_is_named() {
    let backend = Damaged { kernel: "silu_f32", replacement: "no_such_kernel", ..Damaged::new() }.gpu();
    let (h, w) = tiny().height_width().unwrap();
    let program = ForwardProgram::new(&tiny(), Batch { n: 1, h, w }, false).unwrap();
    let Err(error) = backend.compile(program.plan) else { panic!("a plan without its kernel was accepted") };
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
}

/// A device that fails during a read is an error, never a number.
#[test]
fn a_device_that_cannot_be_read_is_an_error() {
    let backend = Damaged { fails: true, ..Damaged::new() }.gpu();
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &tiny(), 50);
    let model = ModelFolder::open(folder.path()).unwrap();
    let mut sampler = Sampler::new(&model, options(&model, SamplerKind::Ddim, 1), &backend).unwrap();
    let says = |error: String| assert!(error.contains("fell off the bus"), "{error}");
    says(sampler.run(0..1, &mut |_, _| true).unwrap_err().to_string());
    says(sampler.draw(0..1, &mut |_| true).unwrap_err().to_string());
    says(sampler.draw_pictures(0..1, &mut |_| true).unwrap_err().to_string());
    says(sampler.pictures(1).unwrap_err().to_string());
    let (h, w) = tiny().height_width().unwrap();
    let program = ForwardProgram::new(&tiny(), Batch { n: 1, h, w }, false).unwrap();
    let exe = backend.compile(program.plan).unwrap();
    says(exe.read_f64(program.out).unwrap_err().to_string());
}

/// A plan that does not fit says which batch would, and that batch does.
#[test]
fn a_device_that_is_too_small_names_the_batch_that_fits() {
    let config = tiny();
    let (h, w) = config.height_width().unwrap();
    let plan = |n| ForwardProgram::new(&config, Batch { n, h, w }, false).unwrap().plan;
    let room = sim(Precision::F32).compile(plan(5)).unwrap().memory_bytes();
    let small = Damaged { room: room.into(), ..Damaged::new() }.gpu();
    let Err(error) = small.compile(plan(64)) else { panic!("64 images fit where 5 do") };
    let text = error.to_string();
    let BackendError::DeviceMemory { asked, free, batch: Some(batch) } = error else { panic!("{text}") };
    assert!(asked > free && free <= room && (4..=5).contains(&batch), "{text}");
    assert!(text.contains(&format!("a batch of {batch} would fit")), "{text}");
    // Nothing of the failed attempt is left on the device.
    small.compile(plan(batch)).unwrap();
    let none = Damaged { room: 1000.into(), ..Damaged::new() }.gpu();
    let Err(BackendError::DeviceMemory { batch: None, .. }) = none.compile(plan(1)) else {
        panic!("no batch fits into 1000 bytes")
    };
}
