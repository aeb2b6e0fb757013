//! What the program says when it cannot do what it is asked: cause, place and remedy, and nothing half-written.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::models::{tiny, unconditional, wide};
use common::process::{Place, command, warpdiff};
use warpdiff::io::{HostTensor, TensorFile, TensorView, safetensors_write};

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// Breaks a valid model and expects that `sample` names everything in `words` and writes nothing.
#[track_caller]
fn refused(words: &[&str], damage: impl FnOnce(&Path)) {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    damage(Path::new(&model));
    let before = place.entries();
    let out = place.arg("out.npz");
    let run = warpdiff(&["sample", &model, "--num", "2", "--steps", "2", "--quiet", "--out", &out]);
    run.expect_error(1, words);
    assert_eq!(place.entries(), before, "something was left behind");
}

fn replace(folder: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(folder.join(file)).unwrap();
    assert!(text.contains(from), "no {from} in {text}");
    fs::write(folder.join(file), text.replace(from, to)).unwrap();
}

fn set(folder: &Path, file: &str, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
    json[key] = value;
    fs::write(folder.join(file), json.to_string()).unwrap();
}

fn edit_weights(folder: &Path, edit: impl FnOnce(&mut Vec<(String, HostTensor)>)) {
    let path = folder.join(WEIGHTS);
    let file = TensorFile::open(&path).unwrap();
    let mut tensors = file.names().map(|n| (n.to_string(), file.get(n).unwrap())).collect();
    edit(&mut tensors);
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    safetensors_write::write(&path, &views, &[]).unwrap();
}

#[test]
fn networks_that_cannot_be_built() {
    let file = "unet/config.json";
    refused(&[file, "FooBlock2D", "AttnDownBlock2D"], |m| replace(m, file, "\"DownBlock2D\"", "\"FooBlock2D\""));
    refused(&[file, "block_out_channels", "8", "norm_num_groups = 3"], |m| set(m, file, "norm_num_groups", 3.into()));
    refused(&["sample_size", "9x9", "multiples of 2"], |m| set(m, file, "sample_size", 9.into()));
    refused(&[file, "down_block_types", "2", "levels"], |m| set(m, file, "block_out_channels", vec![8].into()));
    refused(&[file, "line"], |m| fs::write(m.join(file), "{\"in_channels\": 1,").unwrap());
    refused(&[file, "null_class", "0", "last"], |m| {
        set(m, file, "num_class_embeds", 4.into());
        set(m, file, "null_class", 0.into());
    });
    refused(&["config.json", "unet/config.json"], |m| fs::remove_file(m.join(file)).unwrap());
}

#[test]
fn schedules_that_are_none() {
    let file = "scheduler/scheduler_config.json";
    refused(&[file, "num_train_timesteps", "0"], |m| set(m, file, "num_train_timesteps", 0.into()));
    refused(&[file, "beta[5]", "(0, 1)", "beta_end"], |m| set(m, file, "beta_end", 1.5.into()));
    refused(&[file, "beta[0] = -0.1", "beta_start"], |m| set(m, file, "beta_start", (-0.1).into()));
    refused(&[file, "beta"], |m| set(m, file, "trained_betas", vec![0.1, 1.0].into()));
    refused(&[file, "score", "epsilon"], |m| set(m, file, "prediction_type", "score".into()));
    refused(&["scheduler_config.json"], |m| fs::remove_file(m.join(file)).unwrap());
}

#[test]
fn weights_of_another_model() {
    let remedy = "check that configuration and weights come from the same model";
    refused(&[WEIGHTS, "1 missing", "conv_in.bias", remedy], |m| {
        edit_weights(m, |t| t.retain(|(n, _)| n != "conv_in.bias"));
    });
    refused(&[WEIGHTS, "1 unexpected", "extra.weight", remedy], |m| {
        edit_weights(m, |t| t.push(("extra.weight".into(), HostTensor::f32(&[2], vec![0.0; 2]))));
    });
    refused(&[WEIGHTS, "1 wrong shape", "conv_in.bias", "[9]", "[8]", remedy], |m| {
        edit_weights(m, |t| {
            let bias = t.iter_mut().find(|(n, _)| n == "conv_in.bias").unwrap();
            bias.1 = HostTensor::f32(&[9], vec![0.0; 9]);
        });
    });
    refused(&[WEIGHTS, "conv_out.bias", "NaN", "element 0", "damaged"], |m| {
        edit_weights(m, |t| {
            t.iter_mut().find(|(n, _)| n == "conv_out.bias").unwrap().1 = HostTensor::f32(&[1], vec![f32::NAN]);
        });
    });
}

#[test]
fn damaged_weight_files() {
    let change = |m: &Path, f: fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(m.join(WEIGHTS)).unwrap();
        f(&mut bytes);
        fs::write(m.join(WEIGHTS), bytes).unwrap();
    };
    refused(&[WEIGHTS, "truncated", "again"], |m| change(m, |b| b.truncate(b.len() - 3)));
    refused(&[WEIGHTS, "truncated", "again"], |m| change(m, |b| b.truncate(b.len() / 4)));
    refused(&[WEIGHTS], |m| change(m, |b| b.clear()));
    refused(&[WEIGHTS, "byte"], |m| change(m, |b| b[8..20].fill(b'x')));
    refused(&[WEIGHTS], |m| change(m, |b| b[..8].fill(0x7f)));
    refused(&["no weights", "diffusion_pytorch_model.safetensors"], |m| fs::remove_file(m.join(WEIGHTS)).unwrap());
}

#[test]
fn requests_that_make_no_sense() {
    let place = Place::new();
    let (model, plain) = (place.model("model", &tiny()), place.model("plain", &unconditional()));
    fs::create_dir(place.path("theirs")).unwrap();
    fs::write(place.path("theirs/thesis.tex"), "precious").unwrap();
    let out = place.arg("out.png");
    let before = place.entries();
    let refused = |code: i32, words: &[&str], args: &[&str]| {
        let out = ["--out", &out];
        let out = if args.contains(&"--out") { &out[..0] } else { &out[..] };
        warpdiff(&[&["sample"], args, out].concat()).expect_error(code, words);
        assert_eq!(place.entries(), before, "{args:?}");
    };
    refused(1, &["label 99", "0..=2"], &[&model, "--label", "99"]);
    refused(1, &["label 3", "0..=2"], &[&model, "--label", "3"]);
    refused(1, &["not class-conditional", "leave out"], &[&plain, "--label", "0"]);
    refused(2, &["--label", "cat", "balanced"], &[&model, "--label", "cat"]);
    refused(1, &["--num 0", "at least one"], &[&model, "--num", "0"]);
    refused(1, &["--batch 0", "at least one"], &[&model, "--batch", "0"]);
    refused(1, &["guidance", "null class"], &[&plain, "--guidance", "2"]);
    refused(1, &["guidance"], &[&model, "--guidance", "NaN"]);
    refused(1, &["rescale 2", "0..=1"], &[&model, "--guidance", "3", "--guidance-rescale", "2"]);
    refused(1, &["no guidance to rescale"], &[&model, "--guidance-rescale", "0.7"]);
    refused(1, &["DDPMScheduler", "--sampler ve"], &[&model, "--sampler", "ve"]);
    refused(1, &[".bmp", ".png", ".npz"], &[&model, "--out", &place.arg("a.bmp")]);
    refused(1, &["theirs", "thesis.tex"], &[&model, "--num", "1", "--steps", "1", "--out", &place.arg("theirs")]);
    refused(1, &["nowhere"], &[&place.arg("nowhere")]);
    refused(1, &["theirs", "config.json"], &[&place.arg("theirs")]);
    refused(1, &["steps", "8"], &[&model, "--steps", "9"]);
    refused(1, &["step"], &[&model, "--steps", "0"]);
    refused(1, &["num"], &[&model, "--num", "18446744073709551615", "--out", &place.arg("a.npz")]);
    refused(1, &["eta"], &[&model, "--sampler", "ddim", "--steps", "2", "--eta=-1"]);
    refused(2, &["--device cpu does not compute in bf16", "--precision f32"], &[&model, "--precision", "bf16"]);
    for device in missing_devices() {
        refused(2, &[device, "--device cpu"], &[&model, "--device", device]);
    }
    assert_eq!(fs::read(place.path("theirs/thesis.tex")).unwrap(), b"precious");
}

#[test]
fn bounds_that_cannot_be_evaluated() {
    let place = Place::new();
    let (model, wide) = (place.model("model", &unconditional()), place.model("wide", &wide()));
    let refused = |words: &[&str], args: &[&str]| {
        warpdiff(&[&["nll"], args].concat()).expect_error(1, words);
    };
    refused(&["0 timesteps", "at least one"], &[&model, "digits", "--num", "1", "--timesteps", "0"]);
    refused(&["1797"], &[&model, "digits", "--num", "1798"]);
    refused(&["smaller batch"], &[&model, "digits", "--num", "1", "--batch", "1000000000000000000"]);
    refused(&["channels", "1", "3"], &[&wide, "digits", "--num", "1"]);
    let learned = place.model("learned", &unconditional());
    let scheduler = place.path("learned/scheduler/scheduler_config.json");
    let text = fs::read_to_string(&scheduler).unwrap();
    let changed = text.replace("fixed_small", "learned_range");
    assert_ne!(changed, text);
    fs::write(&scheduler, changed).unwrap();
    refused(&["variance_type LearnedRange", "twice the channels"], &[&learned, "digits", "--num", "1"]);
    refused(
        &["image 3", "label 3", "3 classes"],
        &[&place.model("few", &tiny()), "digits", "--num", "20", "--timesteps", "1"],
    );
}

/// What cannot be used on this machine with this build.
fn missing_devices() -> Vec<&'static str> {
    let cuda = warpdiff::backend::gpu::driver::cuda::Cuda::open().is_err();
    [("cuda", cuda), ("sim", !cfg!(feature = "sim"))]
        .into_iter()
        .filter(|(_, missing)| *missing)
        .map(|(d, _)| d)
        .collect()
}

/// `train digits` with a tiny network.
fn train<'a>(config: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["train", "digits", "--config", config, "--batch", "4", "--timesteps", "8", "--quiet", "--out", out];
    [&base, more].concat()
}

#[test]
fn runs_that_cannot_start() {
    let place = Place::new();
    let (config, out) = (place.config(&unconditional()), place.arg("run"));
    fs::create_dir_all(place.path("theirs/sub")).unwrap();
    fs::write(place.path("theirs/thesis.tex"), "precious").unwrap();
    fs::create_dir_all(place.path("pictures/a")).unwrap();
    image::GrayImage::new(8, 8).save(place.path("pictures/a/good.png")).unwrap();
    fs::write(place.path("pictures/a/bad.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    let few = tiny().to_json();
    fs::write(place.path("few.json"), few).unwrap();
    let before = place.entries();
    let refused = |words: &[&str], args: &[&str]| {
        warpdiff(args).expect_error(1, words);
        assert_eq!(place.entries(), before, "{args:?}");
    };
    refused(&["digits", "label", "0..", "num_class_embeds"], &train(&place.arg("few.json"), &out, &["--steps", "1"]));
    refused(&["label-dropout", "--class-conditional"], &train(&config, &out, &["--label-dropout", "0.1"]));
    refused(&["theirs", "name another folder"], &train(&config, &place.arg("theirs"), &["--steps", "1"]));
    refused(&["run", "state.json"], &train(&config, &out, &["--resume"]));
    for (option, value, word) in [
        ("--lr", "0", "learning_rate"),
        ("--steps", "0", "steps"),
        ("--batch", "0", "batch"),
        ("--dropout", "2", "dropout"),
    ] {
        refused(&[word, value], &["train", "digits", "--config", &config, "--out", &out, option, value]);
    }
    refused(&["nowhere.json"], &train(&place.arg("nowhere.json"), &out, &[]));
    refused(&["no-such-data", "CIFAR-10"], &["train", "no-such-data", "--out", &out]);
    let pictures = place.arg("pictures");
    let args = ["train", &pictures, "--config", &config, "--batch", "2", "--steps", "3", "--quiet", "--out", &out];
    refused(&["bad.png", "replace or remove"], &args);
    for device in missing_devices() {
        warpdiff(&train(&config, &out, &["--device", device])).expect_error(2, &[device]);
        assert_eq!(place.entries(), before);
    }
}

#[test]
fn a_run_is_replaced_only_when_asked() {
    let place = Place::new();
    let (config, out) = (place.config(&unconditional()), place.arg("run"));
    warpdiff(&train(&config, &out, &["--steps", "2"])).expect_success();
    let state = fs::read(place.path("run/training/state.json")).unwrap();
    warpdiff(&train(&config, &out, &["--steps", "1"])).expect_error(1, &["run", "step 2", "resume", "overwrite"]);
    assert_eq!(fs::read(place.path("run/training/state.json")).unwrap(), state);
    warpdiff(&train(&config, &out, &["--steps", "1", "--resume"])).expect_error(1, &["step 2", "at least 2"]);
    warpdiff(&train(&config, &out, &["--steps", "1", "--overwrite"])).expect_success();
    assert_ne!(fs::read(place.path("run/training/state.json")).unwrap(), state);
}

#[test]
fn a_run_that_diverges_keeps_its_last_good_checkpoint() {
    let place = Place::new();
    let (config, out) = (place.config(&unconditional()), place.arg("run"));
    let options = ["--lr", "1e30", "--warmup", "0", "--checkpoint-every", "1", "--steps", "50"];
    let run = warpdiff(&train(&config, &out, &options));
    run.expect_error(1, &["step ", "diverged", "lower learning rate"]);
    let info = warpdiff(&["info", &out, "--json"]).expect_success().json();
    let saved = info["model"]["steps"].as_u64().unwrap();
    assert!(run.stderr.contains(&format!("step {}: ", saved + 1)), "{saved} steps saved, {}", run.stderr);
    let entries = fs::read_dir(place.path("")).unwrap().count();
    assert_eq!(entries, 2, "only the configuration and the run");
}

/// Starts a program that prints its progress and reads until it trains.
fn started(args: &[&str]) -> (std::process::Child, BufReader<std::process::ChildStderr>) {
    let mut child = command(args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("parameters") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it trained");
    }
    (child, stderr)
}

#[test]
fn an_interrupted_run_goes_on() {
    let place = Place::new();
    let (config, out) = (place.config(&unconditional()), place.arg("run"));
    let args = train(&config, &out, &["--steps", "100000"]);
    let args: Vec<&str> = args.into_iter().filter(|a| *a != "--quiet").collect();
    let (mut child, mut stderr) = started(&args);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
    assert_eq!(status.code(), Some(130), "{text}");
    assert!(text.contains("--resume"), "{text}");
    let steps = || warpdiff(&["info", &out, "--json"]).expect_success().json()["model"]["steps"].as_u64().unwrap();
    let stopped = steps();
    assert!(text.contains(&format!("after step {stopped};")), "{stopped}: {text}");
    assert!(stopped > 0, "{text}");
    let more = (stopped + 1).to_string();
    warpdiff(&["train", "digits", "--out", &out, "--resume", "--steps", &more]).expect_success();
    assert_eq!(steps(), stopped + 1);
}

#[test]
fn an_interrupted_picture_leaves_nothing() {
    let place = Place::new();
    let model = place.model("model", &wide());
    let before = place.entries();
    for name in ["a.png", "a.gif"] {
        let out = place.arg(name);
        let args = ["sample", &model, "--num", "4096", "--batch", "16", "--quiet", "--out", &out];
        let child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}: {text}");
        assert!(text.contains("nothing was written"), "{text}");
        assert_eq!(place.entries(), before, "{name}");
    }
}

/// A file system of 1 MiB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&at).output();
        mount.is_ok_and(|o| o.status.success()).then_some(Self(at))
    }
}

impl SmallDisk {
    /// Fills it up to `room` bytes.
    fn leave(&self, room: u64) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write(&[0; 4096]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length - room).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let place = Place::new();
    let (model, config) = (place.model("model", &wide()), place.config(&unconditional()));
    let Some(disk) = SmallDisk::mount(place.path("disk")) else {
        println!("not run: file systems cannot be mounted here");
        return;
    };
    let run = place.arg("disk/run");
    warpdiff(&train(&config, &run, &["--steps", "1"])).expect_success();
    let state = fs::read(place.path("disk/run/training/state.json")).unwrap();
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(&disk.0).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    disk.leave(200 << 10);
    let before = listing();
    for (name, num) in [("a.npz", "600"), ("a.safetensors", "600"), ("pictures", "700")] {
        let out = place.arg(&format!("disk/{name}"));
        let args = ["sample", &model, "--num", num, "--steps", "1", "--sampler", "ddim", "--quiet", "--out", &out];
        warpdiff(&args).expect_error(1, &["disk", name, "No space"]);
        // A slow machine may have saved some samples before.
        let _ = fs::remove_dir_all(format!("{out}.partial"));
        assert_eq!(listing(), before);
    }
    // A checkpoint that finds no room leaves the one before it, and the run can go on once there is room.
    disk.leave(24 << 10);
    warpdiff(&["train", "digits", "--out", &run, "--resume", "--steps", "2", "--quiet"]).expect_error(1, &["No space"]);
    assert_eq!(fs::read(place.path("disk/run/training/state.json")).unwrap(), state);
    assert_eq!(listing(), before);
    fs::remove_file(place.path("disk/filler")).unwrap();
    warpdiff(&["train", "digits", "--out", &run, "--resume", "--steps", "2", "--quiet"]).expect_success();
}
