//! Planted bugs: each must be reported, with text that names it and its place; correct kernels must pass the checks.

use crate::ffi::*;
use crate::hopper::{Pipeline, store_args};
use crate::primitives::random_bf16;

fn race() -> Simulator {
    open(env!("WARPDIFF_SIM_RACE"))
}

fn assert_report(result: Result<(), String>, parts: &[&str]) {
    let report = result.expect_err("the bug went unnoticed");
    for part in parts {
        assert!(report.contains(part), "no '{part}' in: {report}");
    }
}

fn threads(block: u32) -> Shape {
    Shape { grid: 1, block, shared: 0 }
}

const PLAIN: Config = Config { threads: 1, schedule: FIFO, async_mode: EAGER, seed: 1 };

/// The linked simulator once, and every configuration on the race detector's: looking lines up in it is faster.
fn everywhere() -> Vec<(Simulator, Config)> {
    let checked = configs().into_iter().map(|config| (race(), config));
    [(linked(), PLAIN)].into_iter().chain(checked).collect()
}

#[test]
fn missing_barrier() {
    let expected = |x: &[f32]| 2.0 * x.iter().sum::<f32>() + 256.0;
    let values: Vec<f32> = (0..256).map(|i| i as f32).collect();
    // A schedule that starves a warp changes the result.
    let sim = linked();
    let x = sim.upload(&values);
    let wrong = |config| {
        let y = sim.poisoned::<f32>(256);
        sim.run("bug_missing_barrier", threads(256), &ArrayArgs { x: x.at(), y: y.at(), count: 0 }, config).unwrap();
        y.values().iter().any(|v| *v != expected(&values))
    };
    assert!(wrong(Config { schedule: LIFO, ..PLAIN }));
    assert!((0..20).any(|seed| wrong(Config::new(RANDOM, EAGER, seed))));
    // The race detector needs no luck.
    let sim = race();
    let (x, y) = (sim.upload(&values), sim.poisoned::<f32>(256));
    let args = ArrayArgs { x: x.at(), y: y.at(), count: 0 };
    let result = sim.run("bug_missing_barrier", threads(256), &args, PLAIN);
    assert_report(result, &["RACE on a __shared__ variable", "not ordered after", "kernels/sim/tests/bugs.cu:"]);
}

#[test]
fn race_on_global_memory() {
    let sim = race();
    let y = sim.poisoned::<u32>(32);
    let result = sim.run("bug_global_race", threads(64), &ArrayArgs { x: NULL, y: y.at(), count: 0 }, PLAIN);
    assert_report(result, &["RACE on global memory", "a write by thread", "bugs.cu:"]);
}

#[test]
fn stage_released_early() {
    // Late wgmma reads what the next copy has already overwritten.
    let sim = linked();
    let wrong = (0..20).any(|seed| {
        let pipeline = Pipeline::new(&sim);
        let run = pipeline.run(&sim, "bug_early_release", Config::new(RANDOM, 2, seed));
        run.is_err() || pipeline.error() > 1e-3
    });
    assert!(wrong);
    let sim = race();
    let result = Pipeline::new(&sim).run(&sim, "bug_early_release", PLAIN);
    assert_report(
        result,
        &["RACE on shared_memory+", "a write by a TMA load", "a read by wgmma of warpgroup", "pipeline.cu:"],
    );
}

#[test]
fn producer_that_does_not_wait_for_empty_stages() {
    let sim = race();
    assert!(Pipeline::new(&sim).run(&sim, "bug_missing_empty_wait", PLAIN).is_err());
}

#[test]
fn operands_written_by_threads() {
    for sim in [linked(), race()] {
        let c = sim.poisoned::<f32>(64 * 8);
        let shape = Shape { grid: 1, block: 128, shared: 4096 };
        sim.run("test_hand_written_operands", shape, &c.at(), PLAIN).unwrap();
        assert!(c.values().iter().all(|v| *v == 16.0));
    }
    let sim = race();
    let c = sim.poisoned::<f32>(64 * 8);
    let result = sim.run("bug_operands_without_barrier", Shape { grid: 1, block: 128, shared: 4096 }, &c.at(), PLAIN);
    assert_report(
        result,
        &["RACE on shared_memory+", "a read by wgmma of warpgroup 0", "a write by thread", "pipeline.cu:"],
    );
}

#[test]
fn missing_proxy_fence() {
    let sim = race();
    let target = sim.upload(&vec![0u16; 72 * 70]);
    let shape = Shape { grid: 1, block: 128, shared: 8192 };
    let args = store_args(&sim, target.at());
    sim.run("test_tma_store", shape, &args, PLAIN).unwrap();
    let result = sim.run("bug_missing_proxy_fence", shape, &args, PLAIN);
    assert_report(result, &["a TMA store reads what thread", "without a fence_proxy_async", "hopper.cu:"]);
}

#[test]
fn correct_kernels_have_no_races() {
    let sim = race();
    for config in configs() {
        let pipeline = Pipeline::new(&sim);
        pipeline.run(&sim, "test_pipeline", config).unwrap();
        assert!(pipeline.error() < 5e-5);

        let x = sim.upload(&vec![1.0f32; 256]);
        let y = sim.poisoned::<f32>(256);
        let args = ArrayArgs { x: x.at(), y: y.at(), count: 0 };
        sim.run("test_block_sum_f32", threads(256), &args, config).unwrap();
        let counters = sim.upload(&[0u32; 36]);
        sim.run("test_warp", threads(64), &ArrayArgs { x: NULL, y: counters.at(), count: 0 }, config).unwrap();
        for kernel in ["test_mma_x4", "test_mma_transposed"] {
            let (a, b) = (sim.upload(&random_bf16(4096, 1)), sim.upload(&random_bf16(4096, 2)));
            let c = sim.poisoned::<f32>(4096);
            sim.run(kernel, threads(128), &MatrixArgs { a: a.at(), b: b.at(), c: c.at() }, config).unwrap();
        }
    }
}

#[test]
fn write_past_dynamic_shared_memory() {
    let sim = linked();
    let shape = Shape { grid: 1, block: 64, shared: 1000 };
    let run = |count| sim.run("bug_dynamic_shared_overrun", shape, &ArrayArgs { x: NULL, y: NULL, count }, PLAIN);
    run(936).unwrap();
    // Just behind the end: the canary. Further: the guard page, with the line.
    assert_report(
        run(937),
        &["bug_dynamic_shared_overrun", "past the end of dynamic shared memory", "byte 1000 of 1000"],
    );
    assert_report(run(1500), &["invalid write", "tests/bugs.cu:"]);
}

#[test]
fn write_past_global_memory() {
    let sim = linked();
    let y = sim.poisoned::<f32>(64);
    let run = |count| sim.run("bug_global_overrun", threads(64), &ArrayArgs { x: NULL, y: y.at(), count }, PLAIN);
    run(0).unwrap();
    assert_report(
        run(1),
        &[
            "bug_global_overrun",
            "thread (63,0,0)",
            "invalid write",
            "byte 256 of an allocation of 256",
            "tests/bugs.cu:",
        ],
    );
    // The simulator goes on after a fault.
    run(0).unwrap();
}

#[test]
fn divergent_barrier() {
    let result = linked().run("bug_divergent_barrier", threads(64), &ArrayArgs { x: NULL, y: NULL, count: 0 }, PLAIN);
    assert_report(
        result,
        &[
            "DEADLOCK",
            "threads 0-31: __syncthreads at kernels/sim/tests/bugs.cu:",
            "threads 32-63: named barrier at kernels/",
        ],
    );
}

#[test]
fn mbarrier_deadlock() {
    for (sim, config) in everywhere() {
        let result = Pipeline::new(&sim).run(&sim, "bug_mbarrier_deadlock", config);
        assert_report(
            result,
            &["DEADLOCK", "threads 0-0: mbarrier at shared_memory+", "1 of 2 arrivals", "pipeline.cu:", "exited"],
        );
    }
}

#[test]
fn missing_copy_wait() {
    let late = Config { async_mode: LATE, ..PLAIN };
    for (sim, config) in everywhere().into_iter().chain([(linked(), late)]) {
        let (a, b) = (sim.upload(&random_bf16(4096, 1)), sim.upload(&random_bf16(4096, 2)));
        let c = sim.poisoned::<f32>(4096);
        let args = MatrixArgs { a: a.at(), b: b.at(), c: c.at() };
        let result = sim.run("bug_missing_copy_wait", threads(128), &args, config);
        assert_report(result, &["cp.async copies in flight", "thread 0 never waited", "matrices.cu:"]);
        if config.async_mode == LATE {
            assert!(c.values().iter().all(|v| v.is_nan()), "what has not arrived is NaN");
        }
    }
}

#[test]
fn divergent_warp_collective() {
    for (sim, config) in everywhere() {
        let y = sim.poisoned::<f32>(64);
        let args = ArrayArgs { x: NULL, y: y.at(), count: 0 };
        let result = sim.run("bug_divergent_collective", threads(64), &args, config);
        assert_report(result, &["divergent warp collective", "shuffle", "__syncwarp", "tests/bugs.cu:"]);
    }
}

#[test]
fn impossible_launches_are_refused() {
    let sim = linked();
    let args = ArrayArgs { x: NULL, y: NULL, count: 0 };
    assert_report(sim.run("bench_sync", threads(1025), &args, PLAIN), &["bench_sync", "1025 threads", "1 to 1024"]);
    assert_report(sim.run("bench_sync", threads(0), &args, PLAIN), &["0 threads"]);
    assert_report(sim.run("bench_sync", Shape { shared: 300_000, ..threads(32) }, &args, PLAIN), &["300000 bytes"]);
    assert_report(sim.run("bench_sync", threads(32), &NULL, PLAIN), &["8 bytes of arguments", "takes 24"]);
}
