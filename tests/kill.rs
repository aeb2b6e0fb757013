//! A training run that is killed again and again ends with the bits of one that was left alone.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::models::unconditional;
use common::process::{Place, command, warpdiff};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const KILLS: u64 = 20;
/// Steps that each killed process would do.
const STEPS: u64 = 3;

#[test]
fn a_killed_run_can_be_sampled_and_goes_on() {
    let place = Place::new();
    let config = place.config(&unconditional());
    let (whole, killed, picture) = (place.arg("whole"), place.arg("killed"), place.arg("picture.png"));
    let start = |out: &str, steps: u64| -> Vec<String> {
        let base = ["train", "digits", "--quiet", "--threads", "1", "--out", out, "--steps", &steps.to_string()];
        let new = ["--config", &config, "--batch", "4", "--timesteps", "8", "--checkpoint-every", "1"];
        let resume = ["--resume"];
        let there = fs::exists(out).unwrap();
        base.iter().chain(if there { &resume[..] } else { &new }).map(|s| s.to_string()).collect()
    };
    let begin = Instant::now();
    warpdiff(&start(&whole, STEPS)).expect_success();
    let span = begin.elapsed();

    let mut rng = StdRng::seed_from_u64(20);
    let (mut cut_off, mut saved) = (0, Vec::new());
    for round in 1..=KILLS {
        let mut child = command(&start(&killed, STEPS * round)).spawn().unwrap();
        std::thread::sleep(span.mul_f64(rng.random_range(0.0..1.1)));
        child.kill().unwrap();
        cut_off += usize::from(child.wait().unwrap().code().is_none());
        if !fs::exists(&killed).unwrap() {
            continue;
        }
        let args = ["sample", &killed, "--num", "1", "--sampler", "ddim", "--steps", "1", "--out", &picture, "--quiet"];
        warpdiff(&args).expect_success();
        let info = warpdiff(&["info", &killed, "--json"]).expect_success().json();
        saved.push(info["model"]["steps"].as_u64().unwrap());
    }
    println!("{cut_off} of {KILLS} runs were cut off; steps after each: {saved:?}; a run takes {span:?}");
    assert!(cut_off >= 10, "only {cut_off} kills met a running program");
    assert!(saved.is_sorted(), "a kill lost a checkpoint: {saved:?}");

    let last = STEPS * (KILLS + 1);
    warpdiff(&start(&whole, last)).expect_success();
    warpdiff(&start(&killed, last)).expect_success();
    for name in ["training/weights", "training/moment1", "training/moment2", "unet/diffusion_pytorch_model"] {
        let read = |folder: &str| fs::read(format!("{folder}/{name}.safetensors")).unwrap();
        assert!(read(&whole) == read(&killed), "{name}");
    }
    // What the killed writers had begun is gone.
    let mut names: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "killed", "picture.png", "whole"]);
    assert!(begin.elapsed() < Duration::from_secs(300));
}
