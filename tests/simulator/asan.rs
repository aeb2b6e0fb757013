//! The address sanitizer's build. Its runtime must be loaded first, so the test runs this binary again with LD_PRELOAD.

use std::process::{Command, Output};

use crate::ffi::*;

const CASE: &str = "WARPDIFF_ASAN_CASE";

/// Runs one case in this process; only ever with the sanitizer preloaded.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let sim = open(env!("WARPDIFF_SIM_ASAN"));
    let config = Config { threads: 1, schedule: FIFO, async_mode: EAGER, seed: 1 };
    let y = sim.poisoned::<f32>(256);
    let x = sim.upload(&[1.0f32; 256]);
    let (kernel, block, count) = match case.as_str() {
        "correct" => ("test_block_sum_f32", 256, 0),
        "global" => ("bug_global_overrun", 64, 256 - 63),
        "dynamic" => ("bug_dynamic_shared_overrun", 64, 937),
        "static" => ("bug_static_shared_overrun", 64, 0),
        other => panic!("unknown case {other}"),
    };
    let args = ArrayArgs { x: x.at(), y: y.at(), count };
    sim.run(kernel, Shape { grid: 1, block, shared: 1000 }, &args, config).unwrap();
    println!("case {case} ended");
}

fn run(case: &str) -> Output {
    let library = Command::new("g++").arg("-print-file-name=libasan.so").output().expect("g++ built the simulator");
    let library = String::from_utf8(library.stdout).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "asan::child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .env("LD_PRELOAD", library.trim())
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .output()
        .unwrap()
}

fn assert_report(case: &str, parts: &[&str]) {
    let output = run(case);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{case} went unnoticed: {text}");
    for part in parts {
        assert!(text.contains(part), "{case}: no '{part}' in: {text}");
    }
}

#[test]
fn correct_kernels_pass() {
    let output = run("correct");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("case correct ended"), "{text}");
}

#[test]
fn overruns_are_reported_with_their_line() {
    assert_report("global", &["heap-buffer-overflow", "bugs.cu:"]);
    assert_report("dynamic", &["use-after-poison", "bugs.cu:"]);
    assert_report("static", &["out of bounds for type", "bugs.cu:"]);
}
