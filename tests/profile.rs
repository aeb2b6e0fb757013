//! `warpdiff profile` from end to end, and its page in a browser where one is installed.
#![cfg(feature = "sim")]

mod common;

use std::fs;
use std::process::Command;

use common::process::{Place, Run, warpdiff};
use serde_json::Value;

fn profile(arguments: &[&str]) -> Run {
    warpdiff(&[&["profile", "--preset", "digits-small", "--runs", "3"], arguments].concat())
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn sum(lines: &Value, key: &str) -> f64 {
    lines.as_array().unwrap().iter().map(|line| line[key].as_f64().unwrap()).sum()
}

#[test]
fn every_step_is_there_on_every_device() {
    let place = Place::new();
    let [out, trace] = ["out.json", "trace.json"].map(|name| place.arg(name));
    for (device, precision, train) in [("cpu", "f32", true), ("ref", "f32", false), ("sim", "bf16", false)] {
        let on =
            ["--device", device, "--precision", precision, "--batch", "2", "--json", &out, "--chrome-trace", &trace];
        let run = profile(&[&on[..], if train { &["--train"] } else { &[] }].concat()).expect_success();
        for part in ["conv2d", "slowest: ", "images/s"] {
            assert!(run.stdout.contains(part), "{part} in {}", run.stdout);
        }
        let report = json(&out);
        let steps = &report["profile"]["steps"];
        let (us, whole) = (sum(steps, "us"), report["profile"]["steps_us"].as_f64().unwrap());
        assert!(us > 0.0 && (us / whole - 1.0).abs() < 1e-9);
        assert!((sum(&report["operations"], "us") / us - 1.0).abs() < 1e-9);
        assert!((sum(&report["operations"], "percent") - 100.0).abs() < 1e-6);
        assert!((sum(&report["operations"], "flops") - sum(steps, "flops")).abs() < 0.5);
        let kernels = report["kernels"].as_array().unwrap();
        assert_eq!(kernels.is_empty(), device != "sim");
        assert_eq!(steps[0]["kernel"].is_null(), device != "sim");
        let optimised = steps.as_array().unwrap().iter().any(|s| s["operation"] == "adamw");
        assert_eq!(optimised, train);
        let events = json(&trace)["traceEvents"].as_array().unwrap().len();
        assert_eq!(events, steps.as_array().unwrap().len() + 1);
        // No roof is claimed for these devices.
        assert!(report["operations"][0]["floor_us"].is_null());
    }
}

#[test]
fn nsight_is_told_which_launch() {
    let sim = ["--device", "sim", "--batch", "1"];
    let slowest = profile(&[&sim[..], &["--ncu"]].concat()).expect_success().stdout;
    assert!(slowest.contains("ncu --set full --graph-profiling node --kernel-name "), "{slowest}");
    assert!(slowest.trim_end().ends_with("--device sim --batch 1"), "{slowest}");
    let named = profile(&[&sim[..], &["--ncu", "time_embedding_f32"]].concat()).expect_success().stdout;
    // The only launch of the second run.
    assert!(named.contains("--kernel-name time_embedding_f32 --launch-skip 1 --launch-count 1"), "{named}");
    profile(&[&sim[..], &["--ncu", "nonsense"]].concat()).expect_error(1, &["nonsense", "time_embedding_f32"]);
    profile(&["--ncu", "--batch", "1"]).expect_error(1, &["--device cuda"]);
}

fn browser() -> Option<&'static str> {
    let runs = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    ["chromium", "chromium-browser", "google-chrome", "chrome"].into_iter().find(runs)
}

/// What a reader does: sorts, filters, zooms, picks an operation, looks at the steps. The page says what it then shows.
const READER: &str = include_str!("data/profile_reader.js");

#[test]
fn a_reader_finds_the_way_around_the_page() {
    let place = Place::new();
    let [out, page] = ["out.json", "page.html"].map(|name| place.arg(name));
    let roofs = ["--roof-tflops", "0.5", "--roof-gbs", "20", "--batch", "2", "--json", &out, "--html", &page];
    let run = profile(&roofs).expect_success();
    assert!(run.stdout.contains("most to gain: ") && run.stdout.contains("% of roof"), "{}", run.stdout);
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("digits-small, evaluation at batch 2"));
    let Some(browser) = browser() else {
        println!("skipped: no Chromium; the page was written and not opened");
        return;
    };
    fs::write(&page, text.replace("</body>", &format!("<script>{READER}</script></body>"))).unwrap();
    let profile_folder = format!("--user-data-dir={}", place.arg("browser"));
    let shown = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=5000",
            &profile_folder,
            "--dump-dom",
        ])
        .arg(format!("file://{page}"))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&shown.stdout);
    let (_, seen) = dom.split_once("<pre id=\"seen\">").expect("the page's script ended early");
    let (seen, _) = seen.split_once("</pre>").unwrap();
    let seen: Value =
        serde_json::from_str(&seen.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")).unwrap();
    assert!(seen["error"].is_null(), "{seen}");
    let report = json(&out);
    let operations = report["operations"].as_array().unwrap();
    let steps = report["profile"]["steps"].as_array().unwrap();
    let with_work = operations.iter().filter(|o| o["flops"] != 0).count();
    assert_eq!(seen["points"], with_work);
    assert_eq!((&seen["roofs"], &seen["next"]), (&1.into(), &5.into()));
    assert!(seen["bars"].as_u64().unwrap() as usize > steps.len() / 2);
    assert!(seen["zoomed"].as_u64() < seen["bars"].as_u64());
    assert_eq!((&seen["dim"], &seen["steps"]), (&true.into(), &steps.len().into()));
    let names = |key: &str| seen[key].as_array().unwrap().iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    assert_eq!(names("slowest_first")[0], operations[0]["name"]);
    assert_eq!(names("slowest_first").len(), operations.len());
    assert_eq!(names("fastest_first")[0], operations[operations.len() - 1]["name"]);
    let filtered = seen["filtered"].as_array().unwrap();
    assert!(!filtered.is_empty() && filtered.iter().all(|name| name == "attention"), "{seen}");
}
