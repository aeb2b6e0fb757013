//! `warpdiff bench unet`, `sample-loop`, `all` and `compare` from end to end.
#![cfg(feature = "sim")]

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::process::{Place, Run, warpdiff};
use serde_json::{Value, json};
use warpdiff::graph::cost;
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::unet::presets;

fn bench(arguments: &[&str]) -> Run {
    warpdiff(&[&["bench"], arguments].concat())
}

fn read(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn close(a: &Value, b: f64) -> bool {
    (a.as_f64().unwrap() / b - 1.0).abs() < 1e-9
}

#[test]
fn a_network_is_a_line_with_the_floors_of_its_operations() {
    let place = Place::new();
    let out = place.arg("unet.json");
    let network = ["unet", "--preset", "digits-small", "--batch", "2", "--seconds", "0.01", "--json", &out];
    let roofs = ["--roof-tflops", "1", "--roof-gbs", "1000000"];
    let run = bench(&[&network[..], &roofs].concat()).expect_success();
    assert!(run.stdout.contains("% roof") && run.stdout.contains("infer"), "{}", run.stdout);
    let report = read(&out);
    let row = &report["results"][0];
    assert_eq!((&report["schema"], &report["kind"], &report["finished"]), (&2.into(), &"unet".into(), &true.into()));
    assert_eq!((&row["name"], &row["pass"], &row["batch"]), (&"digits-small".into(), &"evaluation".into(), &2.into()));
    let program = ForwardProgram::new(&presets::digits_small(), Batch { n: 2, h: 8, w: 8 }, false).unwrap();
    assert_eq!(row["flops"], cost::total_flops(program.plan.graph()));
    // Bytes cost next to nothing here, so the floor is that of the operations; the others add little.
    let floor = row["floor"]["us"].as_f64().unwrap() / (row["flops"].as_f64().unwrap() / 1e6);
    assert!((1.0..1.05).contains(&floor), "{floor}");
    let ms = row["ms"].as_f64().unwrap();
    assert!(close(&row["img_s"], 2.0 / ms * 1e3) && row["runs"].as_u64().unwrap() >= 3, "{row}");
    assert!(row["planned_bytes"].as_u64().unwrap() > 0 && row["peak_rss_bytes"].as_u64().unwrap() > 0);
    bench(&[&network[..], &["--train", "--device", "sim"]].concat()).expect_success();
    let row = &read(&out)["results"][0];
    assert_eq!((&row["pass"], &row["train"], &row["floor"]), (&"training".into(), &true.into(), &Value::Null));
}

#[test]
fn a_loop_is_measured_on_every_device_in_groups() {
    let place = Place::new();
    let out = place.arg("loop.json");
    for (device, precision) in [("cpu", "f32"), ("ref", "f32"), ("sim", "bf16")] {
        let on = ["--device", device, "--precision", precision, "--json", &out, "--seconds", "0.001"];
        let what = ["sample-loop", "--preset", "digits-small", "--batch", "2", "--steps", "3", "--sampler", "dpm++"];
        let run = bench(&[&what[..], &on, &["--group", "1,3"]].concat()).expect_success();
        assert!(run.stdout.contains("evaluations/s"), "{}", run.stdout);
        let report = read(&out);
        let rows = report["results"].as_array().unwrap();
        let names: Vec<&Value> = rows.iter().map(|row| &row["name"]).collect();
        assert_eq!(names, ["dpm++.3.by1", "dpm++.3"]);
        for row in rows {
            let ms = row["ms"]["median"].as_f64().unwrap();
            assert!(close(&row["us"]["median"], ms / 3.0 * 1e3), "{row}");
            assert!(close(&row["img_s"], 2.0 / ms * 1e3) && close(&row["evaluations_s"], 6.0 / ms * 1e3), "{row}");
            assert!(row["loops"].as_u64().unwrap() >= 3 && row["family"] == "sample-loop");
        }
    }
    bench(&["sample-loop", "--steps", "0"]).expect_error(2, &["--steps"]);
}

#[test]
fn everything_fits_one_report_that_compares_with_itself() {
    let place = Place::new();
    let out = place.arg("all.json");
    let all = ["all", "--preset", "digits-small", "--batch", "2,1", "--seconds", "0.001", "--json", &out];
    bench(&all).expect_success();
    let report = read(&out);
    assert_eq!((&report["finished"], &report["kind"]), (&true.into(), &"all".into()));
    let rows = report["results"].as_array().unwrap();
    let families: BTreeSet<&str> = rows.iter().map(|row| row["family"].as_str().unwrap()).collect();
    let expected = [
        "attention",
        "conv",
        "elementwise",
        "embedding",
        "gemm",
        "noise",
        "norm",
        "optim",
        "sample-loop",
        "sampler-step",
        "unet",
    ];
    assert_eq!(families, BTreeSet::from(expected));
    assert_eq!(["unet", "unet", "sample-loop"], [0, 1, 2].map(|i| rows[i]["family"].as_str().unwrap()));
    assert!(rows.iter().all(|row| row["us"]["median"].as_f64().unwrap() > 0.0 && row["error"].is_null()));
    let same = bench(&["compare", &out, &out, "--fail-on-regression"]).expect_success();
    assert!(same.stdout.contains("0 slower, 0 faster"), "{}", same.stdout);
    bench(&[&all[..], &["--budget", "0"]].concat()).expect_success();
    let report = read(&out);
    assert_eq!((&report["finished"], report["results"].as_array().unwrap().len()), (&false.into(), 0));
    assert_eq!(report["planned"], rows.len());
    bench(&[&all[..], &["--peers"]].concat()).expect_error(1, &["--device cuda"]);
}

/// A report with lines of these medians, each with quartiles 1 % around it.
fn report(place: &Place, name: &str, device: &str, lines: &[(&str, f64)]) -> String {
    let row = |&(shape, us): &(&str, f64)| {
        let us = json!({"median": us, "lower_quartile": 0.99 * us, "upper_quartile": 1.01 * us, "samples": 40});
        json!({"family": "norm", "network": "n", "name": shape, "pass": "forward", "batch": 16, "us": us})
    };
    let rows: Vec<Value> = lines.iter().map(row).collect();
    let text = json!({
        "schema": 2, "kind": "norm", "network": "n", "device": {"name": device}, "precision": "bf16", "commit": "abc",
        "date": "2026-01-01T00:00:00Z", "results": rows,
    });
    let path = place.arg(name);
    fs::write(&path, text.to_string()).unwrap();
    path
}

#[test]
fn regressions_beyond_the_noise_are_named() {
    let place = Place::new();
    let before = report(&place, "a.json", "gpu", &[("x", 10.0), ("y", 20.0), ("z", 30.0), ("gone", 1.0)]);
    let after = report(&place, "b.json", "gpu", &[("z", 30.5), ("x", 12.5), ("y", 16.0), ("new", 1.0)]);
    let out = place.arg("change.json");
    let run = bench(&["compare", &before, &after, "--json", &out]).expect_success();
    for part in [
        "norm batch 16 x forward",
        "+25.0%  slower",
        "-20.0%  faster",
        "1 slower, 1 faster, 1 within 3 %",
        "1 lines are only in the first, 1 only in the second",
        // (1.25 * 0.8 * 1.01667)^(1/3)
        "norm: 3 lines, on average +0.6% time",
    ] {
        assert!(run.stdout.contains(part), "{part} in {}", run.stdout);
    }
    assert!(!run.stdout.contains(" z forward"), "{}", run.stdout);
    let written = read(&out);
    let verdicts: Vec<&Value> =
        written["comparison"]["changes"].as_array().unwrap().iter().map(|c| &c["verdict"]).collect();
    assert_eq!(verdicts, ["slower", "same", "faster"]);
    let failing = bench(&["compare", &before, &after, "--fail-on-regression"]);
    assert_eq!(failing.code, 1, "{}", failing.stderr);
    bench(&["compare", &before, &after, "--fail-on-regression", "--threshold", "30"]).expect_success();
    bench(&["compare", &after, &after, "--fail-on-regression"]).expect_success();
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Place::new();
    let ours = report(&place, "a.json", "gpu", &[("x", 10.0)]);
    let other = report(&place, "b.json", "another gpu", &[("x", 9.0)]);
    bench(&["compare", &ours, &other]).expect_error(1, &["a.json", "another gpu", "--any-device"]);
    bench(&["compare", &ours, &other, "--any-device"]).expect_success();
    let nothing = report(&place, "c.json", "gpu", &[("y", 10.0)]);
    bench(&["compare", &ours, &nothing]).expect_error(1, &["no line in common"]);
    bench(&["compare", &ours, &place.arg("missing.json")]).expect_error(1, &["cannot read", "missing.json"]);
    let text = fs::read_to_string(&ours).unwrap();
    for (from, to, words) in [
        (r#""schema":2"#, r#""schema":9"#, ["schema 9", "1 to 2"]),
        (r#""schema":2"#, r#""scheme":2"#, ["no report", "schema"]),
        ("bf16", "f32", ["bf16", "one precision"]),
    ] {
        fs::write(&other, text.replace(from, to)).unwrap();
        bench(&["compare", &ours, &other]).expect_error(1, &[&["b.json"][..], &words].concat());
    }
    bench(&["compare", &ours, &ours, "--threshold=-1"]).expect_error(1, &["--threshold -1"]);
}
