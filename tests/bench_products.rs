//! `warpdiff bench conv` and `bench gemm` from end to end, on devices that need no GPU.
#![cfg(feature = "sim")]

mod common;

use std::fs;

use common::process::{Place, Run, warpdiff};
use serde_json::Value;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Executable, Precision, gpu::Gpu};
use warpdiff::bench::program::{Noise, Program};
use warpdiff::bench::{Pass, Product};
use warpdiff::compare::rule::Errors;
use warpdiff::reference::Reference;

fn bench(arguments: &[&str]) -> Run {
    warpdiff(&[&["bench"], arguments, &["--seconds", "0.001"]].concat())
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Every line has a time, operations and bytes; nothing claims a roof or a peer.
fn check_lines(report: &Value, lines: usize) {
    let rows = report["results"].as_array().unwrap();
    assert_eq!(rows.len(), lines);
    for row in rows {
        let us = row["us"]["median"].as_f64().unwrap();
        assert!(us > 0.0 && row["us"]["samples"].as_u64().unwrap() >= 3, "{row}");
        let tflops = row["flops"].as_f64().unwrap() / us / 1e6;
        assert!((row["tflops"].as_f64().unwrap() / tflops - 1.0).abs() < 1e-9, "{row}");
        for absent in ["floor", "roof_percent", "peer", "ratio", "error", "network"] {
            assert!(row[absent].is_null(), "{absent} in {row}");
        }
    }
    assert_eq!(report["finished"], true);
    assert_eq!(report["schema"], 2);
    for key in ["protocol", "date", "precision", "device", "roof", "kind", "summary"] {
        assert!(!report[key].is_null(), "{key}");
    }
}

#[test]
fn shapes_are_measured_on_the_cpu_and_in_the_simulator() {
    let place = Place::new();
    for (device, precision) in [("cpu", "f32"), ("sim", "f32"), ("sim", "bf16")] {
        let out = place.arg(&format!("{device}-{precision}.json"));
        let on = ["--device", device, "--precision", precision, "--json", &out];
        let shapes = ["conv", "--shape", "n2h7w5c24k16r3s1p1", "--shape", "n1h8w8c16k8r3s2p0.0.1.1"];
        let run = bench(&[&shapes[..], &on].concat()).expect_success();
        assert!(run.stdout.contains("n1h8w8c16k8r3s2p0.0.1.1") && run.stdout.contains("wgrad"), "{}", run.stdout);
        let report = json(&out);
        check_lines(&report, 6);
        assert_eq!((&report["kind"], &report["precision"]), (&"conv".into(), &precision.into()));
        assert_eq!(report["results"][0]["flops"], 2 * 2 * 7 * 5 * 24 * 16 * 9);
        assert_eq!(report["results"][5]["name"], "n1h8w8c16k8r3s2p0.0.1.1");
        bench(&[&["gemm", "--shape", "m33n24k40b3", "--pass", "wgrad,fprop"][..], &on].concat()).expect_success();
        let report = json(&out);
        check_lines(&report, 2);
        assert_eq!(report["results"][0]["pass"], "wgrad");
    }
}

#[test]
fn a_network_is_measured_with_counts_and_floors_of_a_given_roof() {
    let place = Place::new();
    let out = place.arg("network.json");
    let roofs = ["--roof-tflops", "1", "--roof-gbs", "100"];
    let network = ["conv", "--preset", "digits-small", "--batch", "1,2", "--pass", "fprop", "--json", &out];
    let run = bench(&[&network[..], &roofs].concat()).expect_success();
    assert!(run.stdout.contains("conv batch 2, fprop: "), "{}", run.stdout);
    let report = json(&out);
    assert_eq!(report["network"], "digits-small");
    let rows = report["results"].as_array().unwrap();
    for row in rows {
        let [us, floor] = [&row["us"]["median"], &row["floor"]["us"]].map(|v| v.as_f64().unwrap());
        let bound = (row["flops"].as_f64().unwrap() / 1e6).max(row["bytes"].as_f64().unwrap() / 1e5);
        assert!((floor / bound - 1.0).abs() < 1e-9, "{row}");
        assert!((row["roof_percent"].as_f64().unwrap() / (100.0 * floor / us) - 1.0).abs() < 1e-9, "{row}");
    }
    let summary = report["summary"].as_array().unwrap();
    assert_eq!(summary.len(), 2);
    let sum: f64 = rows
        .iter()
        .filter(|r| r["batch"] == 2)
        .map(|r| r["us"]["median"].as_f64().unwrap() * r["count"].as_f64().unwrap())
        .sum();
    assert!((summary[1]["sum_us"].as_f64().unwrap() / sum - 1.0).abs() < 1e-9);
    assert!(rows.iter().any(|r| r["count"].as_u64().unwrap() > 1));
}

/// A table is written, keeps what it does not know, is read back, and changes no result.
#[test]
fn candidates_are_measured_into_a_table() {
    let place = Place::new();
    let out = place.arg("table.json");
    fs::write(&out, r#"{"another GPU": {"fprop n1h8w8c64k64": "64x64.taps.8x8x1.whole.2+8"}}"#).unwrap();
    let sim = ["--device", "sim", "--precision", "bf16"];
    let run =
        bench(&[&["conv", "--shape", "n1h9w9c40k64", "--shape", "n1h9w9c3k64", "--tune", &out][..], &sim].concat());
    let run = run.expect_success();
    for part in ["fprop n1h9w9c40k64r3s1p1: ", "the model's choice", "64x64.taps.", "predicted", "times as fast"] {
        assert!(run.stdout.contains(part), "{part} in {}", run.stdout);
    }
    assert!(run.stdout.contains("wgrad n1h9w9c3k64r3s1p1: not on the kernels of Hopper"), "{}", run.stdout);
    let table = json(&out);
    assert_eq!(table["another GPU"].as_object().unwrap().len(), 1);
    // What it says is what runs: a legal entry goes through, an illegal one is refused.
    let with = |candidate: &str| {
        fs::write(&out, format!(r#"{{"simulator": {{"fprop n1h9w9c40k64": "{candidate}"}}}}"#)).unwrap();
        bench(&[&["conv", "--shape", "n1h9w9c40k64", "--tuning", &out][..], &sim].concat())
    };
    with("128x128.taps.9x9x1.whole.3+3").expect_success();
    with("128x128.taps.9x99x1.whole.3+3").expect_error(1, &["table.json", "simulator", "fprop n1h9w9c40k64", "99"]);
}

#[test]
fn a_table_that_is_none_is_left_alone() {
    let place = Place::new();
    let out = place.arg("notes.txt");
    fs::write(&out, "my notes").unwrap();
    let tune = ["conv", "--shape", "n1h9w9c40k64", "--tune", &out];
    bench(&[&tune[..], &["--device", "sim", "--precision", "bf16"]].concat())
        .expect_error(1, &["notes.txt", "no table"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "my notes");
    bench(&tune).expect_error(1, &["--device cuda"]);
    let tuning = ["conv", "--shape", "n1h9w9c40k64", "--device", "sim", "--tuning", &out];
    bench(&tuning).expect_error(1, &["notes.txt", "line 1"]);
}

#[test]
fn a_budget_ends_a_run_with_what_it_has() {
    let place = Place::new();
    let out = place.arg("part.json");
    let run = bench(&["gemm", "--preset", "digits-small", "--budget", "0", "--json", &out]).expect_success();
    assert!(run.stdout.contains("the time was over"), "{}", run.stdout);
    let report = json(&out);
    assert_eq!((&report["finished"], report["results"].as_array().unwrap().len()), (&false.into(), 0));
    assert!(report["planned"].as_u64().unwrap() > 10);
}

#[test]
fn what_cannot_be_measured_is_named() {
    bench(&["conv", "--shape", "n2h7w5c24r3s1"]).expect_error(2, &["k is missing", "n256h32w32c128k128r3s1p1"]);
    bench(&["conv", "--shape", "n1h9w9c8k8r3s1p1", "--peer", "cudnn"])
        .expect_error(1, &["--device cuda", "--precision bf16"]);
    let gpu = ["--device", "cuda", "--precision", "bf16", "--peer-path", "/nowhere"];
    // With the libraries in the system's own folders there is nothing missing.
    // SAFETY: loading runs the library's initialisers, which is what it is for.
    let installed = |file: &str| unsafe { libloading::Library::new(file).is_ok() };
    if !installed("libcudnn.so.9") {
        let conv = ["conv", "--shape", "n1h9w9c8k8r3s1p1", "--peer", "cudnn"];
        bench(&[&conv[..], &gpu].concat())
            .expect_error(2, &["libcudnn.so.9 was not found", "pip install nvidia-cudnn-cu13"]);
    }
    if !installed("libcublasLt.so.13") && !installed("libcublasLt.so.12") {
        let gemm = ["gemm", "--shape", "m8n8k8", "--peer", "cublaslt"];
        bench(&[&gemm[..], &gpu].concat()).expect_error(2, &["libcublasLt.so.13 was not found", "LD_LIBRARY_PATH"]);
    }
}

/// What is measured is the product: each copy's result is that of the reference on the same operands.
#[test]
fn every_copy_computes_the_product() {
    let sim = Gpu::new(std::sync::Arc::new(Sim::new(Options { threads: 2, ..Options::default() })), Precision::F32);
    let noise = Noise::new(1);
    for product in [
        Product::Conv("n2h7w5c24k16r3s1p1".parse().unwrap()),
        Product::Conv("n1h9w9c15k3r3s2p0.0.1.1".parse().unwrap()),
        Product::Gemm("m33n24k15b3".parse().unwrap()),
    ] {
        for pass in Pass::ALL {
            let program = Program::new(&product, pass, 3).unwrap();
            let run = |backend: &dyn Backend| -> Box<dyn Executable> {
                let mut exe = backend.compile(program.plan.clone()).unwrap();
                program.fill(exe.as_mut(), &noise).unwrap();
                exe.run().unwrap();
                exe.finish().unwrap();
                exe
            };
            let (ours, exact) = (run(&sim), run(&Reference::default()));
            let results = |exe: &dyn Executable| [0, 1, 2].map(|copy| exe.read_f64(program.results(copy)[0]).unwrap());
            let (ours, exact) = (results(ours.as_ref()), results(exact.as_ref()));
            for (a, b) in ours.iter().zip(&exact) {
                assert_eq!(a.len(), product.operands(pass)[2]);
                assert!(Errors::between(a, b).worst < 1e-4, "{product} {pass:?}");
            }
            // Different numbers in each copy.
            assert!(Errors::between(&exact[0], &exact[1]).norm > 0.1);
        }
    }
}

#[test]
fn parts_and_repetitions_are_those_of_the_whole() {
    let sim = Gpu::new(std::sync::Arc::new(Sim::new(Options::default())), Precision::Bf16);
    let product = Product::Gemm("m1500n8k900".parse().unwrap());
    let noise = Noise::new(7);
    let program = Program::new(&product, Pass::Wgrad, 1).unwrap();
    for backend in [&sim as &dyn Backend, &Reference::new(Precision::Bf16)] {
        let mut exe = backend.compile(program.plan.clone()).unwrap();
        let x = exe.plan().graph().find("x0").unwrap();
        // 1 350 000 elements are more than the noise has.
        exe.write_repeated(x, noise.pattern(0, 1, 1_350_000)).unwrap();
        let mut part = vec![0.0; 10];
        exe.read_part(x, Noise::PERIOD - 3, &mut part).unwrap();
        let pattern = noise.pattern(0, 1, 1_350_000);
        let expected = [&pattern[Noise::PERIOD - 3..], &pattern[..7]].concat();
        for (a, b) in part.iter().zip(&expected) {
            assert!((a - b).abs() <= b.abs() / 256.0, "{a} {b}");
        }
        assert!(exe.read_part(x, 1_349_995, &mut part).is_err());
        assert!(exe.write_repeated(x, &[]).is_err());
    }
}
