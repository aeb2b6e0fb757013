//! Operations on the CUDA kernels, judged by the tolerance rule.

use std::sync::{Arc, OnceLock};

use super::{Case, cases, compare_on};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::Driver;
use warpdiff::backend::gpu::driver::cuda::Cuda;
use warpdiff::backend::gpu::driver::sim::{Async, Options, Schedule, Sim, Variant};
use warpdiff::backend::{Backend, Precision};

/// The simulator under three schedules; with `WARPDIFF_SIM=race` or `asan` one of its checking builds, with
/// `WARPDIFF_TEST_DEVICE=cuda` the GPU.
pub fn devices() -> Vec<Arc<dyn Driver>> {
    devices_with(Options::default())
}

/// Options of a chip before Hopper.
fn before_hopper() -> Options {
    Options { capability: (8, 0), ..Options::default() }
}

/// As [`devices`]; simulators claim the features of `options`, a GPU is what it is.
fn devices_with(options: Options) -> Vec<Arc<dyn Driver>> {
    match std::env::var("WARPDIFF_TEST_DEVICE").as_deref() {
        Ok("cuda") => return vec![gpu()],
        Ok(other) if other != "sim" => panic!("WARPDIFF_TEST_DEVICE is {other:?}, neither sim nor cuda"),
        _ => {}
    }
    let variant = match std::env::var("WARPDIFF_SIM").as_deref() {
        Ok("race") => Some(Variant::Race),
        Ok("asan") => Some(Variant::Asan),
        Ok(other) => panic!("WARPDIFF_SIM is {other:?}, neither race nor asan"),
        Err(_) => None,
    };
    if let Some(variant) = variant {
        return vec![Arc::new(Sim::open(variant, options).unwrap())];
    }
    let schedules =
        [(Schedule::Fifo, Async::Eager), (Schedule::Lifo, Async::Late), (Schedule::RandomPriority, Async::Random)];
    let sim = |(schedule, asynchronous)| {
        Arc::new(Sim::new(Options { schedule, asynchronous, seed: 7, ..options })) as Arc<dyn Driver>
    };
    schedules.map(sim).into()
}

/// The first of them.
pub fn device() -> Arc<dyn Driver> {
    devices().swap_remove(0)
}

/// The GPU, opened once: making its context takes longer than most tests.
fn gpu() -> Arc<dyn Driver> {
    static GPU: OnceLock<Arc<Cuda>> = OnceLock::new();
    GPU.get_or_init(|| Arc::new(Cuda::open().unwrap())).clone()
}

/// Checks an operation, with its gradients where `gradients` is set, in one precision on every device.
pub fn check(case: &Case, precision: Precision, gradients: bool, seed: u64) {
    check_on(devices(), case, precision, gradients, seed);
}

/// [`check`] of an operation alone, with the kernels of Hopper and with those of the chips before it, where the device can be
/// either.
pub fn check_generations(case: &Case, precision: Precision, seed: u64) {
    let all = devices();
    // Each by itself: their orders of sums differ.
    if precision == Precision::Bf16 && all[0].name() == "sim" {
        check_on(devices_with(before_hopper()), case, precision, false, seed);
    }
    check_on(all, case, precision, false, seed);
}

/// [`check`] of an operation alone with the kernels of chips before Hopper, where the device can be one.
pub fn check_before_hopper(case: &Case, precision: Precision, seed: u64) {
    check_on(devices_with(before_hopper()), case, precision, false, seed);
}

/// [`check_before_hopper`] with the gradients.
pub fn check_gradients_before_hopper(case: &Case, precision: Precision, seed: u64) {
    check_on(devices_with(before_hopper()), case, precision, true, seed);
}

/// [`check`] of an operation alone with the kernels of Hopper: as they run there, and on few multiprocessors, so that each
/// block has several work items, where wgmma operands begin only with the swizzle.
pub fn check_hopper(case: &Case, seed: u64) {
    check_on(hopper_devices(), case, Precision::Bf16, false, seed);
}

/// [`check_hopper`] with the gradients.
pub fn check_hopper_gradients(case: &Case, seed: u64) {
    check_on(hopper_devices(), case, Precision::Bf16, true, seed);
}

fn hopper_devices() -> Vec<Arc<dyn Driver>> {
    let mut all = devices();
    if all[0].name() == "sim" {
        all.extend(devices_with(Options { shifted_operands: false, multiprocessors: 3, ..Options::default() }));
    }
    all
}

fn check_on(devices: Vec<Arc<dyn Driver>>, case: &Case, precision: Precision, gradients: bool, seed: u64) {
    let gpus: Vec<Gpu> = devices.into_iter().map(|driver| Gpu::new(driver, precision)).collect();
    let backends: Vec<&dyn Backend> = gpus.iter().map(|gpu| gpu as &dyn Backend).collect();
    let compared = compare_on(case, &backends, gradients, seed).unwrap();
    assert!(compared > usize::from(gradients), "{}: {compared} results compared", case.id);
}

/// [`check`] in both precisions for every shared case of the families, of which there must be at least `count`.
pub fn check_families(families: &[&str], count: usize) {
    let of_family = |(case, _): &(Case, bool)| families.contains(&case.family());
    let cases: Vec<(Case, bool)> = cases::all().into_iter().filter(of_family).collect();
    assert!(cases.len() >= count, "{families:?}: {} cases", cases.len());
    for (i, (case, gradients)) in cases.iter().enumerate() {
        check(case, Precision::F32, *gradients, i as u64);
        check(case, Precision::Bf16, *gradients, i as u64);
    }
}
