//! The CUDA driver, on a GPU.
//!
//! Without one these tests print "skipped: no CUDA device" and why; with `WARPDIFF_REQUIRE_CUDA=1` they fail instead. What
//! happens without a GPU is tested everywhere.

mod common;

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Once};

use common::device;
use common::process::{command, warpdiff};
use warpdiff::backend::gpu::driver::cuda::Cuda;
use warpdiff::backend::gpu::driver::{DevicePtr, Driver, DriverError};
use warpdiff::backend::gpu::kernels;

/// A GPU, or a note that there is none.
fn gpu_or_skip(open: impl Fn() -> Result<Cuda, DriverError>) -> Option<Arc<dyn Driver>> {
    static NOTE: Once = Once::new();
    match open() {
        Ok(cuda) => Some(Arc::new(cuda)),
        Err(reason) => {
            let required = std::env::var("WARPDIFF_REQUIRE_CUDA").is_ok_and(|v| v == "1");
            assert!(!required, "WARPDIFF_REQUIRE_CUDA=1, but {reason}");
            NOTE.call_once(|| note(&format!("skipped: no CUDA device: {reason}")));
            None
        }
    }
}

/// Writes past the test harness, which would keep `eprintln!` to itself.
#[expect(clippy::explicit_write)]
fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}

fn gpu() -> Option<Arc<dyn Driver>> {
    gpu_or_skip(Cuda::open)
}

#[test]
fn what_is_missing_is_said_in_one_sentence() {
    let hidden = || {
        let mut command = command(&["verify", "tests/cases/p20_schedules", "--device", "cuda"]);
        // Where there are GPUs, the driver must not show them.
        command.env("CUDA_VISIBLE_DEVICES", "");
        command.output().unwrap()
    };
    let output = hidden();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.starts_with("error: device cuda is not available: "), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(message.contains("--device cpu") || message.contains("setup-cuda"), "{message}");
    assert!(output.stdout.is_empty());
    if let Err(reason) = Cuda::probe() {
        assert!(message.contains(&reason.to_string()), "{message}: {reason}");
    }
}

#[test]
fn info_tells_of_the_gpu_or_what_is_missing() {
    let report = warpdiff(&["info", "--json"]).expect_success().json();
    let cuda = &report["devices"]["cuda"];
    let text = warpdiff(&["info"]).expect_success().stdout;
    match Cuda::open() {
        Ok(device) => {
            assert_eq!(cuda["available"], true);
            assert_eq!(cuda["name"], device.limits().name);
            assert!(text.contains(&device.limits().name), "{text}");
        }
        Err(reason) => {
            assert_eq!(cuda["available"], false);
            assert_eq!(cuda["reason"], reason.to_string());
            assert!(text.contains(&reason.to_string()), "{text}");
        }
    }
}

#[test]
fn copies_arrive() {
    let Some(gpu) = gpu() else { return };
    device::copies_arrive(gpu.as_ref());
}

#[test]
fn replay_equals_eager_launches() {
    let Some(gpu) = gpu() else { return };
    device::replay_equals_eager_launches(gpu.as_ref());
}

#[test]
fn snapshots_hold_their_moment() {
    let Some(gpu) = gpu() else { return };
    device::snapshots_hold_their_moment(gpu.as_ref());
}

#[test]
fn launches_that_are_waited_for_give_the_same() {
    let Some(gpu) = gpu_or_skip(Cuda::open_synchronous) else { return };
    device::replay_equals_eager_launches(gpu.as_ref());
    device::many_runs_equal_single_runs(&gpu);
}

#[test]
fn refusals_are_errors() {
    let Some(gpu) = gpu() else { return };
    device::refusals_are_errors(gpu.as_ref());
}

#[test]
fn tensor_maps_are_encoded_or_refused() {
    let Some(gpu) = gpu() else { return };
    device::tensor_maps_are_encoded_or_refused(gpu.as_ref());
}

/// Opening a device never fails for the probe of shifted operands, and nothing is left of it.
#[test]
fn the_device_says_whether_operands_may_be_shifted() {
    let Some(gpu) = gpu() else { return };
    let limits = gpu.limits().clone();
    assert!(limits.compute_capability == (9, 0) || !limits.shifted_operands);
    gpu.synchronize().unwrap();
    assert_eq!(gpu.limits(), &limits);
    let report = warpdiff(&["info", "--json"]).expect_success().json();
    let expected =
        if limits.compute_capability == (9, 0) { limits.shifted_operands.into() } else { serde_json::Value::Null };
    assert_eq!(report["devices"]["cuda"]["shifted_wgmma_operands"], expected);
}

#[test]
fn times_are_measured() {
    let Some(gpu) = gpu() else { return };
    device::times_are_measured(gpu.as_ref());
}

#[test]
fn many_runs_equal_single_runs() {
    let Some(gpu) = gpu() else { return };
    device::many_runs_equal_single_runs(&gpu);
}

/// Every kernel loads, and takes as many bytes of arguments as the build recorded.
#[test]
fn all_kernels_load() {
    let Some(gpu) = gpu() else { return };
    let mut loaded = 0;
    for image in kernels::images() {
        for kernel in image.kernels {
            let record = kernels::record().iter().find(|r| r.name == *kernel);
            let record = record.unwrap_or_else(|| panic!("{kernel} is not in the record"));
            assert_eq!(gpu.load(kernel).unwrap().args_bytes, record.param_bytes as usize, "{kernel}");
            loaded += 1;
        }
    }
    assert!(loaded > 0);
}

#[test]
fn memory_that_is_not_there_is_an_error_with_sizes() {
    let Some(gpu) = gpu() else { return };
    let asked = 1 << 50;
    match gpu.allocate(asked) {
        Err(DriverError::OutOfMemory { asked: a, free }) => {
            assert_eq!(a, asked);
            assert!(free > 0 && free <= gpu.limits().memory_bytes, "{free}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_may_be_used_from_another_thread() {
    let Some(gpu) = gpu() else { return };
    std::thread::spawn(move || device::replay_equals_eager_launches(gpu.as_ref())).join().unwrap();
}

/// A kernel that fails ruins the context of its process, so it fails in one of its own.
#[test]
fn a_fault_names_its_kernel() {
    const CHILD: &str = "WARPDIFF_TEST_FAULT";
    let Some(gpu) = gpu_or_skip(Cuda::open_synchronous) else { return };
    if std::env::var_os(CHILD).is_some() {
        let error = device::write_to(gpu.as_ref(), DevicePtr(16)).unwrap_err().to_string();
        assert!(error.contains("silu_f32"), "{error}");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let output = Command::new(test).args(["--exact", "a_fault_names_its_kernel"]).env(CHILD, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
