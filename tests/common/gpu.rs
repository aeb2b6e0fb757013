//! Operations on the CUDA kernels, judged by the tolerance rule.

use std::sync::Arc;

use super::{Built, Case, build};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::Driver;
use warpdiff::backend::gpu::driver::sim::{Async, Options, Schedule, Sim, Variant};
use warpdiff::backend::{Backend, Precision};
use warpdiff::compare::rule::{Errors, Limits};
use warpdiff::graph::ValueId;
use warpdiff::reference::Reference;

/// The simulator under three schedules; with `WARPDIFF_SIM=race` or `asan` one of its checking builds.
pub fn devices() -> Vec<Arc<dyn Driver>> {
    let variant = match std::env::var("WARPDIFF_SIM").as_deref() {
        Ok("race") => Some(Variant::Race),
        Ok("asan") => Some(Variant::Asan),
        Ok(other) => panic!("WARPDIFF_SIM is {other:?}, neither race nor asan"),
        Err(_) => None,
    };
    if let Some(variant) = variant {
        return vec![Arc::new(Sim::open(variant, Options::default()).unwrap())];
    }
    let schedules = [
        (Schedule::Fifo, Async::Eager),
        (Schedule::Lifo, Async::Late),
        (Schedule::RandomPriority, Async::Random),
    ];
    let sim = |(schedule, asynchronous)| {
        Arc::new(Sim::new(Options { schedule, asynchronous, seed: 7, threads: 0 })) as Arc<dyn Driver>
    };
    schedules.map(sim).into()
}

/// The results of a case: its outputs, then the gradients that there are.
fn results(built: &Built) -> Vec<ValueId> {
    built.outputs.iter().copied().chain(built.gradients.iter().copied().flatten()).collect()
}

fn run(case: &Case, backend: &dyn Backend, gradients: bool, seed: u64) -> (Built, Vec<Vec<f64>>) {
    let mut built = build(case, backend, gradients, seed);
    built.exe.run().unwrap();
    let values = results(&built).iter().map(|&v| built.exe.read_f64(v)).collect();
    (built, values)
}

/// Checks an operation, with its gradients where `gradients` is set, in one precision on every device.
///
/// Operands are numbers that bf16 holds, so that both references and the kernels start from the same ones. All devices
/// must agree in every bit: a result may not depend on the order in which threads run.
pub fn check(case: &Case, precision: Precision, gradients: bool, seed: u64) {
    let (built, expected) = run(case, &Reference::default(), gradients, seed);
    let rounded = match precision {
        Precision::F32 => None,
        Precision::Bf16 => Some(run(case, &Reference::new(Precision::Bf16), gradients, seed).1),
    };
    let mut first: Option<Vec<Vec<f64>>> = None;
    for driver in devices() {
        let (_, actual) = run(case, &Gpu::new(driver, precision), gradients, seed);
        for (i, value) in results(&built).into_iter().enumerate() {
            let yardstick = rounded.as_ref().map(|r| Errors::between(&r[i], &expected[i]));
            let gradient = i >= built.outputs.len();
            let limits = Limits::new(built.exe.plan().graph().value(value).dtype, gradient, yardstick);
            let errors = Errors::between(&actual[i], &expected[i]);
            assert!(limits.allow(&errors), "{} in {precision}, result {i}: {errors:?}, {limits:?}", case.name);
        }
        let first = first.get_or_insert_with(|| actual.clone());
        let same = first.iter().flatten().zip(actual.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{} in {precision}: the result depends on the schedule", case.name);
    }
}

/// [`check`] in both precisions.
pub fn check_both(case: &Case, gradients: bool, seed: u64) {
    for precision in [Precision::F32, Precision::Bf16] {
        check(case, precision, gradients, seed);
    }
}
