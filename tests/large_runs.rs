//! Runs of `sample` that are cut off, resumed, split and joined end with the bytes of a run in one piece.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::models::{oblong, tiny, unconditional};
use common::process::{Place, command, warpdiff};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Names and bytes of an output, a file or a folder.
fn contents(path: &str) -> Vec<(String, Vec<u8>)> {
    if Path::new(path).is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let entry = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    let mut all: Vec<_> = fs::read_dir(path).unwrap().map(|e| entry(e.unwrap())).collect();
    all.sort();
    all
}

/// A run of about `num` / 8 batches, each of a few steps.
fn args(model: &str, num: usize, out: &str) -> Vec<String> {
    let num = num.to_string();
    let args = ["sample", model, "--num", &num, "--batch", "8", "--sampler", "ddim", "--steps", "8", "--eta", "1"];
    let more = ["--quiet", "--threads", "1", "--out", out];
    args.iter().chain(&more).map(|s| s.to_string()).collect()
}

fn with(mut args: Vec<String>, more: &[&str]) -> Vec<String> {
    args.extend(more.iter().map(|s| s.to_string()));
    args
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_a_whole_one() {
    let place = Place::new();
    let model = place.model("model", &tiny());
    let mut rng = StdRng::seed_from_u64(rand::random());
    for name in ["samples.npz", "samples.safetensors", "samples"] {
        let (whole, killed) = (place.arg(&format!("whole/{name}")), place.arg(&format!("killed/{name}")));
        // Long enough that several kills meet it, of which some come before the first save.
        let num = 2000;
        let begin = Instant::now();
        warpdiff(&args(&model, num, &whole)).expect_success();
        let span = begin.elapsed();
        let saved = || -> usize {
            let text = fs::read_to_string(format!("{killed}.partial/progress.json")).unwrap_or_default();
            serde_json::from_str(&text).map_or(0, |v: serde_json::Value| v["samples"].as_u64().unwrap() as usize)
        };
        let (mut kills, mut before) = (0, Vec::new());
        while !fs::exists(&killed).unwrap() {
            let mut child = command(&with(args(&model, num, &killed), &["--resume"])).spawn().unwrap();
            // The first two cannot come too late, whatever is drawn: together they leave a third of the run and more.
            let wait = match before.len() {
                0 | 1 => span.mul_f64(rng.random_range(0.05..0.3)),
                _ => Duration::from_millis(rng.random_range(200..2200)),
            };
            let until = Instant::now() + wait;
            while Instant::now() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            child.kill().unwrap();
            kills += usize::from(child.wait().unwrap().code().is_none());
            before.push(saved());
            assert!(before.len() < 60, "{name} never ends: {before:?}");
        }
        println!("{name}: {kills} kills of a run of {span:?}; saved at each: {before:?}");
        assert!(kills >= 2, "{name}: only {kills} kills met a running program");
        // The last one may have come between the name and the cleaning up.
        warpdiff(&with(args(&model, num, &killed), &["--resume"])).expect_success();
        assert!(contents(&whole) == contents(&killed), "{name} differs");
        assert_eq!(fs::read_dir(place.path("killed")).unwrap().count(), 1, "{name} left something behind");
        fs::remove_dir_all(place.path("killed")).unwrap();
    }
}

#[test]
fn an_interrupted_run_says_how_to_go_on() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    for name in ["a.npz", "a"] {
        let out = place.arg(name);
        let args = with(args(&model, 1_000_000, &out), &[]);
        let child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}: {text}");
        assert!(text.contains(&format!("{name}.partial; the same command with --resume goes on")), "{text}");
        assert!(!fs::exists(&out).unwrap());
        warpdiff(&args).expect_error(1, &[name, "of 1000000 samples", "--resume"]);
        let other = with(args.clone(), &["--resume", "--seed", "5", "--guidance", "1"]);
        warpdiff(&other).expect_error(1, &["seed: 0 there, 5 here"]);
        let other: Vec<String> =
            args.iter().map(|a| if a == "1000000" { "999999".into() } else { a.clone() }).collect();
        warpdiff(&with(other, &["--resume"])).expect_error(1, &["num: 1000000 there, 999999 here"]);
        fs::write(place.path("model/scheduler/x"), "").unwrap();
        let weights = place.path("model/unet/diffusion_pytorch_model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        let good = bytes.clone();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(&weights, bytes).unwrap();
        warpdiff(&with(args.clone(), &["--resume"])).expect_error(1, &["another run", "model: "]);
        fs::write(&weights, good).unwrap();
    }
}

#[test]
fn shards_hold_what_one_run_would_and_join_to_its_bytes() {
    let place = Place::new();
    for (config, names) in [(tiny(), &["s.npz", "s.safetensors", "s"][..]), (oblong(), &["o.npz", "o.safetensors"])] {
        let model = place.model("model", &config);
        for name in names {
            let (whole, parts) = (place.arg(&format!("whole/{name}")), place.arg(&format!("parts/{name}")));
            warpdiff(&args(&model, 23, &whole)).expect_success();
            let mut shards = Vec::new();
            // Other batches than in one piece, and the last first.
            for i in (1..=3).rev() {
                warpdiff(&with(args(&model, 23, &parts), &["--shard", &format!("{i}/3")])).expect_success();
                let (stem, extension) =
                    name.split_once('.').map_or((*name, String::new()), |(s, e)| (s, format!(".{e}")));
                shards.push(place.arg(&format!("parts/{stem}.shard-{i}-of-3{extension}")));
            }
            let join = |shards: &[String]| {
                let args: Vec<String> = ["join"].iter().map(|s| s.to_string()).chain(shards.iter().cloned()).collect();
                warpdiff(&with(args, &["--out", &parts, "--quiet"]))
            };
            join(&shards[..2]).expect_error(1, &["samples 0..7 are missing"]);
            join(&shards[1..]).expect_error(1, &["samples 15..23 are missing"]);
            join(&[shards.as_slice(), &shards[1..2]].concat()).expect_error(1, &["holds already"]);
            assert!(!fs::exists(&parts).unwrap());
            join(&shards).expect_success();
            assert!(contents(&whole) == contents(&parts), "{name} differs");
            // A shard of another seed is not let in.
            let other = with(args(&model, 23, &parts), &["--shard", "2/3", "--seed", "8"]);
            warpdiff(&other).expect_success();
            join(&shards).expect_error(1, &["another run", "seed"]);
            fs::remove_dir_all(place.path("parts")).unwrap();
        }
    }
}

#[test]
fn a_complete_run_is_not_drawn_again() {
    let place = Place::new();
    let model = place.model("model", &tiny());
    let out = place.arg("s.npz");
    let resumed = with(args(&model, 9, &out), &["--resume", "--json"]);
    let first = warpdiff(&resumed).expect_success().json();
    assert_eq!((first["samples"].as_u64(), first["drawn"].as_u64()), (Some(9), Some(9)));
    let bytes = fs::read(&out).unwrap();
    let again = warpdiff(&resumed).expect_success().json();
    assert_eq!((again["samples"].as_u64(), again["drawn"].as_u64()), (Some(9), Some(0)));
    assert_eq!(fs::read(&out).unwrap(), bytes);
    warpdiff(&with(resumed, &["--seed", "1"]))
        .expect_error(1, &["complete, but of another run", "seed: 0 there, 1 here"]);
    assert_eq!(fs::read(&out).unwrap(), bytes);
}

#[test]
fn shards_and_resumption_that_make_no_sense_are_refused() {
    let place = Place::new();
    let model = place.model("model", &tiny());
    let npz = place.arg("s.npz");
    for (more, words) in [
        (["--shard", "0/3"], "of eight they are 1/8"),
        (["--shard", "4/3"], "of eight they are 1/8"),
        (["--shard", "x"], "of eight they are 1/8"),
    ] {
        warpdiff(&with(args(&model, 9, &npz), &more)).expect_error(2, &[words]);
    }
    warpdiff(&with(args(&model, 2, &npz), &["--shard", "1/3"])).expect_error(1, &["nothing for this shard"]);
    let grid = place.arg("s.png");
    for more in [&["--resume"][..], &["--shard", "1/2"]] {
        warpdiff(&with(args(&model, 9, &grid), more)).expect_error(1, &["--resume", ".npz"]);
    }
    warpdiff(&["join", &npz, "--out", &place.arg("t.npz")]).expect_error(1, &["s.npz"]);
    fs::write(&npz, "no archive").unwrap();
    warpdiff(&["join", &npz, "--out", &place.arg("t.npz")]).expect_error(1, &["s.npz", "archive"]);
    warpdiff(&["join", &npz, "--out", &place.arg("t")]).expect_error(1, &["format"]);
}
