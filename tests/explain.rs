//! `warpdiff explain`: what it says, and how it refuses. None of it needs a GPU.

mod common;

use std::fs;

use common::models::wide;
use common::process::{Place, Run, warpdiff};

fn explain(args: &[&str]) -> Run {
    warpdiff(&[&["explain"], args].concat())
}

#[test]
fn a_convolution_has_three_passes_with_sorted_candidates() {
    let report = explain(&["conv", "n256h32w32c128k128", "--json"]).expect_success().json();
    assert_eq!(report["problem"], "conv n256h32w32c128k128r3s1p1");
    assert_eq!(report["predicted"], true);
    let passes = report["passes"].as_array().unwrap();
    let names: Vec<_> = passes.iter().map(|p| p["pass"].as_str().unwrap()).collect();
    assert_eq!(names, ["fprop", "dgrad", "wgrad"]);
    for pass in passes {
        // 2 * 256 * 32 * 32 * 128 * 128 * 9 operations at 790 TFLOP/s.
        assert_eq!(pass["flops"], 77_309_411_328.0);
        let floor = pass["floor_us"].as_f64().unwrap();
        assert!((floor - 97.86).abs() < 0.01, "{floor}");
        let candidates = pass["candidates"].as_array().unwrap();
        let times: Vec<f64> = candidates.iter().map(|c| c["predicted"]["us"].as_f64().unwrap()).collect();
        assert!(times.len() > 3 && times.is_sorted(), "{times:?}");
        assert_eq!(pass["candidate"], candidates[0]["candidate"]);
        assert!(times[0] > floor, "{times:?}");
        assert!(pass["kernel"].as_str().unwrap().starts_with("conv_hopper_"));
    }
    assert_eq!(passes[0]["candidate"], "128x128.halo.8x16x1.whole.2+7");
    assert_eq!(passes[0]["cut"]["items"], 2048);
}

#[test]
fn the_text_names_the_choice_its_reason_and_that_it_is_a_prediction() {
    let text = explain(&["conv", "n1h8w8c256k256"]).expect_success().stdout;
    for part in
        ["predicted, not measured", "* 64x64.halo.8x8x1.split", "4 segments of 9 steps", "next best", "% of floor"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let chosen = text.lines().filter(|l| l.starts_with('*')).count();
    assert_eq!(chosen, 3, "{text}");
}

#[test]
fn other_architectures_and_channels_run_on_mma() {
    let old = explain(&["gemm", "m65536n768k256", "--device", "sm_80"]).expect_success().stdout;
    assert!(old.contains("conv_fprop_large_bf16") && old.contains("compute capability 9.0"), "{old}");
    let image = explain(&["conv", "n256h32w32c3k128"]).expect_success().stdout;
    assert!(image.contains("multiples of 8") && image.contains("conv_fprop_gather_bf16"), "{image}");
    let float = explain(&["conv", "n256h32w32c128k128", "--precision", "f32"]).expect_success().stdout;
    assert!(float.contains("conv_fprop_small_f32"), "{float}");
    let taps = explain(&["conv", "n256h32w32c128k128", "--no-shifted-operands"]).expect_success().stdout;
    assert!(taps.contains("* 128x128.taps") && !taps.contains("halo"), "{taps}");
}

#[test]
fn the_nodes_of_a_network_add_up() {
    for (train, batch) in [(false, "1"), (true, "4")] {
        let mut args = vec!["--preset", "ddpm-cifar10-32", "--batch", batch, "--json"];
        args.extend(train.then_some("--train"));
        let report = explain(&args).expect_success().json();
        let nodes = report["nodes"].as_array().unwrap();
        let sum =
            |key: &str| -> f64 { nodes.iter().map(|n| n[key].as_f64().unwrap() * n["count"].as_f64().unwrap()).sum() };
        let us = report["us"].as_f64().unwrap();
        assert!((sum("us") / us - 1.0).abs() < 1e-9);
        let share: f64 = nodes.iter().map(|n| n["percent"].as_f64().unwrap()).sum();
        assert!((share - 100.0).abs() < 1e-6);
        let images_s = report["images_per_second"].as_f64().unwrap();
        assert!((images_s * us / 1e6 - batch.parse::<f64>().unwrap()).abs() < 1e-6);
        let wgrads = nodes.iter().filter(|n| n["operation"].as_str().unwrap().contains("wgrad")).count();
        assert_eq!(wgrads > 0, train);
    }
}

#[test]
fn a_model_folder_is_explained_too() {
    let place = Place::new();
    let model = place.model("model", &wide());
    let text = explain(&[&model, "--batch", "3"]).expect_success().stdout;
    assert!(text.contains("3 images of 16x16") && text.contains("predicted, not measured"), "{text}");
}

#[test]
fn a_measured_table_overrides_the_model() {
    let place = Place::new();
    let table = place.arg("table.json");
    let entry = |candidate: &str| format!(r#"{{"NVIDIA H200": {{"fprop n256h32w32c128k128": "{candidate}"}}}}"#);
    fs::write(&table, entry("128x64.taps.16x8x1.whole.4+4")).unwrap();
    let args = ["conv", "n256h32w32c128k128", "--tuning", &table];
    let text = explain(&args).expect_success().stdout;
    assert!(text.contains("128x64.taps.16x8x1.whole.4+4: 4096 items") && text.contains("measured ("), "{text}");
    let other = explain(&[&args[..], &["--gpu", "NVIDIA H100"]].concat()).expect_success().stdout;
    assert!(!other.contains("measured ("), "{other}");
    fs::write(&table, entry("128x64.taps.16x9x1.whole.4+4")).unwrap();
    explain(&args).expect_error(1, &["table.json", "fprop n256h32w32c128k128", "144 pixels"]);
}

#[test]
fn wrong_arguments_are_refused() {
    explain(&[]).expect_error(1, &["nothing to explain", "--preset"]);
    let usage = |args: &[&str], words: &[&str]| {
        let run = explain(args);
        assert_eq!(run.code, 2, "{}", run.stderr);
        words.iter().for_each(|word| assert!(run.stderr.contains(word), "{word}: {}", run.stderr));
    };
    usage(&["conv", "n256h32"], &["w is missing", "n256h32w32c128k128r3s1p1"]);
    usage(&["conv", "n1h2w2c8k8r5p0"], &["does not fit"]);
    usage(&["gemm", "m5n3k2b2"], &["5 rows", "m65536n768k256b256"]);
    usage(&["--preset", "ddpm-cifar10-32", "--batch", "0"], &["--batch"]);
    explain(&["/no/such/model"]).expect_error(1, &["/no/such/model"]);
}
