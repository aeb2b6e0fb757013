//! All of these tests once more, in the simulator's checking builds. Each takes a process of its own.

use std::process::Command;

/// Runs this binary again, without the tests that start it.
fn run_again(variant: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    if std::env::var_os("WARPDIFF_SIM").is_some() || std::env::var_os("WARPDIFF_TEST_DEVICE").is_some() {
        // This run is a checking one already, or on a GPU.
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "checked::"])
        .args(arguments)
        .env("WARPDIFF_SIM", variant)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text.lines().rfind(|line| line.starts_with("test result:")).unwrap_or("no summary");
    println!("{variant}: {summary}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variant}: {}\n{text}\n{errors}", output.status);
    let passed = summary.split_whitespace().nth(3).and_then(|n| n.parse::<usize>().ok());
    assert!(passed.is_some_and(|n| n > 30), "{summary}");
}

#[test]
fn no_operation_races() {
    run_again("race", &[], &[]);
}

#[test]
fn no_operation_leaves_its_buffers() {
    let library = Command::new("g++").arg("-print-file-name=libasan.so").output().unwrap().stdout;
    let library = String::from_utf8(library).unwrap();
    run_again("asan", &["--test-threads=1"], &[("LD_PRELOAD", library.trim()), ("ASAN_OPTIONS", "detect_leaks=0")]);
}
