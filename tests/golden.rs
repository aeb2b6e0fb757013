//! The golden cases: every check passes on every backend, and a damaged model passes none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Precision, cpu::Cpu};
use warpdiff::io::{HostTensor, TensorData, TensorFile, TensorView, safetensors_write};
use warpdiff::reference::Reference;
use warpdiff::verify::{CheckReport, Status, find_cases, verify_case};

/// Checks of `tests/cases`.
const CHECKS: usize = 175 + 164 - 155;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

fn run_all(folder: &Path, backend: &dyn Backend) -> usize {
    let cases = find_cases(folder).unwrap();
    let reports: Vec<CheckReport> = cases.iter().flat_map(|case| verify_case(case, backend).unwrap()).collect();
    let failed: Vec<&CheckReport> = reports.iter().filter(|r| r.status != Status::Pass).collect();
    assert!(failed.is_empty(), "{}: {failed:#?}", backend.name());
    reports.len()
}

#[test]
fn every_check_passes_on_the_cpu() {
    assert_eq!(run_all(&cases(), &Cpu::new(Some(2)).unwrap()), CHECKS);
}

#[test]
fn every_check_passes_on_the_reference() {
    assert_eq!(run_all(&cases(), &Reference::default()), CHECKS);
}

#[test]
fn every_check_passes_on_the_cuda_kernels() {
    assert_eq!(run_all(&cases(), &kernels(Precision::F32)), CHECKS);
}

/// Checks of `tests/cases_adm`.
const ADM_CHECKS: usize = 17 + 9 + 14;

fn adm_cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases_adm")
}

#[test]
fn every_check_of_guided_diffusion_passes_on_the_cpu_and_on_the_reference() {
    for backend in [&Cpu::new(Some(2)).unwrap() as &dyn Backend, &Reference::default()] {
        assert_eq!(run_all(&adm_cases(), backend), ADM_CHECKS);
    }
}

/// A case with some of its checks.
fn with_checks(case: &str, ids: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&adm_cases().join(case), folder.path());
    edit_case(folder.path(), |case| {
        let checks = case["checks"].as_array_mut().unwrap();
        checks.retain(|check| ids.contains(&check["id"].as_str().unwrap()));
        assert_eq!(checks.len(), ids.len());
    });
    folder
}

fn edit_case(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("case.json");
    let mut case: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut case);
    fs::write(path, case.to_string()).unwrap();
}

/// Classifiers with their gradient, both ways to be guided by one, low-resolution conditions, and a training loss.
#[test]
fn checks_of_guided_diffusion_pass_on_the_cuda_kernels() {
    let guided = ["fwd4", "cls0", "cls2", "guided_ddpm_s1", "guided_ddim_s4", "loss_mse_learned"];
    for (case, ids) in [("a02_guided_neworder", &guided[..]), ("a05_superres", &["fwd3", "ddim20", "loss_mse_learned"])]
    {
        let folder = with_checks(case, ids);
        assert_eq!(run_all(folder.path(), &kernels(Precision::F32)), ids.len());
    }
}

#[test]
fn networks_of_guided_diffusion_stay_within_the_bf16_tolerances() {
    for backend in [&Reference::new(Precision::Bf16) as &dyn Backend, &kernels(Precision::Bf16)] {
        for case in ["a02_guided_neworder", "a05_superres"] {
            let folder = with_checks(case, &["fwd0", "fwd3"]);
            assert_eq!(run_all(folder.path(), backend), 2);
        }
    }
}

/// What flags say is seen in the result: the order of attention weights, the schedule, and the classifier's scale.
#[test]
fn a_wrong_flag_fails_the_checks() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let fails = |folder: &Path, words: &str| {
        for report in verify_case(folder, &cpu).unwrap() {
            assert_eq!(report.status, Status::Fail, "{words}: {report:?}");
        }
    };
    for (flag, value) in [("use_new_attention_order", false), ("use_scale_shift_norm", false)] {
        let folder = with_checks("a02_guided_neworder", &["fwd1", "ddpm_15"]);
        let path = folder.path().join("model/flags.json");
        let mut flags: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        flags[flag] = value.into();
        fs::write(path, flags.to_string()).unwrap();
        fails(folder.path(), flag);
    }
    let folder = with_checks("a02_guided_neworder", &["guided_ddpm_s1", "guided_ddim_s4"]);
    edit_case(folder.path(), |case| {
        for check in case["checks"].as_array_mut().unwrap() {
            check["guidance"]["classifier_scale"] = 1.5.into();
        }
    });
    fails(folder.path(), "classifier_scale");
}

/// The CUDA kernels in the simulator.
fn kernels(precision: Precision) -> Gpu {
    Gpu::new(Arc::new(Sim::new(Options::default())), precision)
}

/// The recorded bf16 tolerances, of which whatever rounds must stay clear and f32 must be far.
#[test]
fn rounding_to_bf16_stays_within_the_recorded_tolerances() {
    for backend in [&Reference::new(Precision::Bf16) as &dyn Backend, &kernels(Precision::Bf16)] {
        rounds_within_the_tolerances(backend);
    }
}

fn rounds_within_the_tolerances(backend: &dyn Backend) {
    let (mut passed, mut rounded) = (0, 0);
    for case in find_cases(&cases()).unwrap() {
        for r in verify_case(&case, backend).unwrap() {
            match r.status {
                Status::Pass => {
                    assert_eq!(r.kind, "forward");
                    passed += 1;
                    // An f64 result would be a thousand times closer.
                    rounded += usize::from(r.error.unwrap() > 5e-4);
                }
                Status::Skip => assert_eq!(r.reason, "has no tolerance for bf16"),
                Status::Fail => panic!("{r:?}"),
            }
        }
    }
    println!("{passed} forward checks");
    assert!(passed > 20 && rounded == passed, "{rounded} of {passed}");
}

#[test]
fn every_check_of_the_named_folder_passes() {
    match std::env::var_os("WARPDIFF_CASES") {
        Some(folder) => println!("{} checks", run_all(Path::new(&folder), &Cpu::new(Some(2)).unwrap())),
        None => println!("not run: WARPDIFF_CASES is not set"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::write(&target, fs::read(&path).unwrap()).unwrap() }
    }
}

/// Rewrites a safetensors file with one tensor changed.
fn change(path: &Path, tensor: &str, f: impl Fn(&mut f32)) {
    let file = TensorFile::open(path).unwrap();
    let mut tensors: Vec<(String, HostTensor)> =
        file.names().map(|name| (name.to_string(), file.get(name).unwrap())).collect();
    let (_, changed) = tensors.iter_mut().find(|(name, _)| name == tensor).unwrap();
    let TensorData::F32(data) = &mut changed.data else { panic!("{tensor} is not f32") };
    data.iter_mut().for_each(f);
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
    safetensors_write::write(path, &views, &[]).unwrap();
}

fn damaged(case: &str, file: &str, tensor: &str, f: impl Fn(&mut f32)) -> Vec<CheckReport> {
    let folder = tempfile::tempdir().unwrap();
    copy(&cases().join(case), folder.path());
    change(&folder.path().join(file), tensor, f);
    verify_case(folder.path(), &Cpu::new(Some(1)).unwrap()).unwrap()
}

const WEIGHTS: &str = "model/diffusion_pytorch_model.safetensors";

#[test]
fn one_damaged_tensor_fails_every_check_of_the_model() {
    for case in ["p01_plain_1x8x8", "p06_odd_nonsquare"] {
        let reports = damaged(case, WEIGHTS, "conv_in.weight", |v| *v *= 1.01);
        let mut model_checks = 0;
        for r in &reports {
            let needs_model = r.kind != "vlb";
            model_checks += usize::from(needs_model);
            let expected = if needs_model { Status::Fail } else { Status::Pass };
            assert_eq!(r.status, expected, "{r:?}");
            assert_eq!(r.reason.is_empty(), !needs_model, "{r:?}");
        }
        assert!(model_checks >= 9, "{case}: {model_checks}");
    }
}

#[test]
fn weights_that_are_not_finite_fail_every_check_of_the_model() {
    for r in damaged("p01_plain_1x8x8", WEIGHTS, "conv_out.bias", |v| *v = f32::NAN) {
        assert!(r.status == Status::Fail || r.kind == "vlb", "{r:?}");
    }
}

/// Weights that are finite but overflow on the way, so that the compared values are NaN or infinite.
#[test]
fn results_that_are_not_finite_fail() {
    for r in damaged("p01_plain_1x8x8", WEIGHTS, "conv_in.weight", |v| *v = if *v > 0.0 { 3e38 } else { -3e38 }) {
        assert!(r.status == Status::Fail || r.kind == "vlb", "{r:?}");
        assert!(!r.error.is_some_and(f64::is_nan), "{r:?}");
    }
}

#[test]
fn golden_values_that_are_not_finite_fail() {
    let golden = "golden.safetensors";
    let names: Vec<String> = TensorFile::open(&cases().join("p01_plain_1x8x8").join(golden))
        .unwrap()
        .names()
        .filter(|n| n.ends_with(".x_0") || n.ends_with(".vb_exact") || n.ends_with(".betas"))
        .map(String::from)
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    for tensor in names {
        let reports = damaged("p01_plain_1x8x8", golden, &tensor, |v| *v = f32::NAN);
        let failed: Vec<&CheckReport> = reports.iter().filter(|r| r.status == Status::Fail).collect();
        assert_eq!(failed.len(), 1, "{tensor}: {failed:?}");
        assert_eq!(failed[0].error, Some(f64::INFINITY), "{tensor}: {failed:?}");
    }
}

/// A tolerance of 0 asks for equality; it must not switch the check off.
#[test]
fn a_tolerance_of_zero_passes_nothing_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    copy(&cases().join("p01_plain_1x8x8"), folder.path());
    let path = folder.path().join("case.json");
    let mut case: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for check in case["checks"].as_array_mut().unwrap() {
        for key in ["tol_rel_fp32", "tol_loss_rel", "tol_worst_lr_units"] {
            if check.get(key).is_some() {
                check[key] = 0.0.into();
            }
        }
    }
    fs::write(&path, case.to_string()).unwrap();
    for r in verify_case(folder.path(), &Cpu::new(Some(1)).unwrap()).unwrap() {
        assert_eq!(r.status, Status::Fail, "{r:?}");
    }
}
