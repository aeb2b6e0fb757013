//! Models as users have them: what is read, what is refused and how, and what `convert` makes of them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::models::{params, unconditional};
use common::process::{Place, warpdiff};
use serde_json::Value;
use warpdiff::backend::cpu::Cpu;
use warpdiff::io::npz_read::NpzFile;
use warpdiff::io::{HostTensor, TensorData, TensorFile, TensorView, WeightSource, safetensors_write};
use warpdiff::model::{ModelError, ModelFolder, StoredAs, convert, read_config, read_weights};
use warpdiff::program::parameters;
use warpdiff::unet::{DownBlock, SampleSize, UNetConfig, UpBlock};
use warpdiff::verify::{Status, verify_case, verify_case_leniently};

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Rewrites the weights of a model.
fn edit(model: &str, edit: impl FnOnce(&mut Vec<(String, HostTensor)>)) {
    let path = Path::new(model).join(WEIGHTS);
    let file = TensorFile::open(&path).unwrap();
    let mut tensors = file.names().map(|n| (n.to_string(), file.get(n).unwrap())).collect();
    edit(&mut tensors);
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    safetensors_write::write(&path, &views, &[]).unwrap();
}

fn set(model: &str, file: &str, key: &str, value: Value) {
    let path = Path::new(model).join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
}

/// Every difference is in one message, those of each kind together, and renamed tensors are recognised.
#[test]
fn the_differences_are_listed_together() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    edit(&model, |tensors| {
        tensors.retain(|(name, _)| !name.starts_with("mid_block.resnets.0."));
        for (name, tensor) in tensors.iter_mut() {
            match name.as_str() {
                "conv_in.weight" => *name = "unet.conv_in.weight".into(),
                "conv_out.bias" => *tensor = HostTensor::f32(&[5], vec![0.0; 5]),
                _ => {}
            }
        }
        tensors.extend((0..30).map(|i| (format!("extra.{i:02}"), HostTensor::f32(&[7], vec![0.0; 7]))));
    });
    let run = warpdiff(&["sample", &model, "--num", "1", "--steps", "1", "--out", &place.arg("a.npz")]);
    run.expect_error(
        1,
        &[
            WEIGHTS,
            "11 missing:\n    conv_in.weight [8, 1, 3, 3] (did you mean unet.conv_in.weight?)\n    mid_block.resnets.0.",
            "31 unexpected:\n    extra.00\n    extra.01\n",
            "extra.19\n    ... and 11 more\n",
            "1 wrong shape:\n    conv_out.bias: the file has [5], the configuration [1]",
            "check that configuration and weights come from the same model",
        ],
    );
    assert!(!run.stderr.contains("extra.20") && !run.stderr.contains("--lenient"), "{}", run.stderr);
}

#[test]
fn configurations_of_the_first_releases_are_understood() {
    let text = r#"{"_class_name": "UNetUnconditionalModel", "image_size": 32, "block_channels": [32, 64], "num_res_blocks": 1,
        "down_blocks": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "up_blocks": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
        "resnet_eps": 1e-06, "downscale_freq_shift": 1, "num_head_channels": null}"#;
    let config = UNetConfig::from_json(text).unwrap();
    let expected = UNetConfig {
        sample_size: Some(SampleSize::Side(32)),
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        norm_eps: 1e-6,
        freq_shift: 1.0,
        attention_head_dim: None,
        ..UNetConfig::default()
    };
    assert_eq!(config, expected);
    let error = UNetConfig::from_json(&text.replace("\"resnet_eps", "\"norm_eps\": 1e-5, \"resnet_eps"));
    assert!(error.unwrap_err().to_string().contains("resnet_eps"));
}

/// A model with a tensor and two keys that nobody knows.
fn with_extras(place: &Place) -> String {
    let model = place.model("model", &unconditional());
    edit(&model, |tensors| {
        tensors.push(("steps".into(), HostTensor { shape: vec![], data: TensorData::I64(vec![3]) }));
        tensors.push(("ema.shadow".into(), HostTensor::f32(&[7], vec![f32::NAN; 7])));
    });
    set(&model, "unet/config.json", "fancy_blocks", 2.into());
    set(&model, "scheduler/scheduler_config.json", "warp_factor", 9.into());
    model
}

fn pictures(path: &str) -> Vec<u8> {
    let mut array = NpzFile::open(path.as_ref()).unwrap().array("arr_0").unwrap().unwrap();
    let mut bytes = vec![0; array.shape.iter().product()];
    array.read(&mut bytes).unwrap();
    assert!(bytes.iter().any(|&b| b != bytes[0]));
    bytes
}

#[test]
fn lenient_must_be_asked_for_and_says_what_it_ignores() {
    let place = Place::new();
    let plain = place.model("plain", &unconditional());
    let model = with_extras(&place);
    let samples = |model: &str, out: &str, more: &[&str]| {
        let out = place.arg(out);
        let run =
            warpdiff(&[&["sample", model, "--num", "2", "--steps", "2", "--quiet", "--out", &out], more].concat());
        (run, out)
    };
    samples(&model, "a.npz", &[]).0.expect_error(1, &["fancy_blocks = 2", "--lenient"]);
    let (run, lenient) = samples(&model, "a.npz", &["--lenient"]);
    let run = run.expect_success();
    for word in ["warning: ", "fancy_blocks = 2", "warp_factor = 9", "tensor steps", "tensor ema.shadow"] {
        assert!(run.stderr.contains(word), "no {word} in {}", run.stderr);
    }
    assert_eq!(run.stderr.lines().count(), 4, "{}", run.stderr);
    let (run, expected) = samples(&plain, "b.npz", &[]);
    run.expect_success();
    // The pictures; the files say of which weights they are.
    assert_eq!(pictures(&lenient), pictures(&expected));

    // One at a time: each is refused for itself.
    set(&model, "unet/config.json", "fancy_blocks", Value::Null);
    samples(&model, "c.npz", &[]).0.expect_error(1, &["scheduler_config.json", "warp_factor"]);
    let scheduler = "scheduler/scheduler_config.json";
    fs::copy(Path::new(&plain).join(scheduler), Path::new(&model).join(scheduler)).unwrap();
    samples(&model, "c.npz", &[]).0.expect_error(1, &["2 unexpected", "ema.shadow", "steps", "--lenient"]);
    // What is missing is missing.
    edit(&model, |tensors| tensors.retain(|(name, _)| name != "conv_in.bias"));
    let run = samples(&model, "c.npz", &["--lenient"]).0;
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.contains("1 missing:\n    conv_in.bias") && !run.stderr.contains("unexpected"),
        "{}",
        run.stderr
    );
    samples(&model, "c.npz", &[]).0.expect_error(1, &["1 missing", "2 unexpected"]);
}

#[test]
fn cases_may_be_verified_leniently() {
    let place = Place::new();
    let case = place.path("case");
    copy(&tests().join("cases/p01_plain_1x8x8"), &case);
    let weights = case.join("model/diffusion_pytorch_model.safetensors");
    let file = TensorFile::open(&weights).unwrap();
    let mut tensors: Vec<(String, HostTensor)> = file.names().map(|n| (n.into(), file.get(n).unwrap())).collect();
    tensors.push(("num_batches_tracked".into(), HostTensor { shape: vec![], data: TensorData::I64(vec![3]) }));
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    safetensors_write::write(&weights, &views, &[]).unwrap();
    let cpu = Cpu::new(Some(1)).unwrap();
    assert!(verify_case(&case, &cpu).unwrap().iter().any(|r| r.reason.contains("num_batches_tracked")));
    let mut warnings = Vec::new();
    let reports = verify_case_leniently(&case, &cpu, &mut |warning| warnings.push(warning.to_string())).unwrap();
    assert!(reports.iter().all(|r| r.status == Status::Pass));
    assert!(warnings.len() == 1 && warnings[0].contains("num_batches_tracked"), "{warnings:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::write(&target, fs::read(&path).unwrap()).unwrap() }
    }
}

/// The cases with a model of their own.
fn cases() -> Vec<PathBuf> {
    let all = fs::read_dir(tests().join("cases")).unwrap().map(|e| e.unwrap().path());
    let mut cases: Vec<PathBuf> = all.filter(|p| p.join("model").is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= 12, "{cases:?}");
    cases
}

#[test]
fn every_model_is_converted_without_a_changed_bit() {
    let place = Place::new();
    for case in cases() {
        let (source, target) = (case.join("model"), place.path(case.file_name().unwrap().to_str().unwrap()));
        let done = convert(&source, &target, StoredAs::F32, false).unwrap();
        assert!(done.scheduler && done.warnings.is_empty());
        let (config, path) = read_config(&target).unwrap();
        assert_eq!(config, read_config(&source).unwrap().0);
        assert_eq!(path, target.join("unet/config.json"));
        let params = parameters(&config).unwrap();
        let read = |folder| read_weights(&params, &WeightSource::open(folder).unwrap()).unwrap();
        let (before, after): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (read(&source), read(&target));
        let bits = |weights: &[Vec<f32>]| -> Vec<u32> { weights.iter().flatten().map(|v| v.to_bits()).collect() };
        assert_eq!(bits(&before), bits(&after), "{}", case.display());
        // Today's names, whatever they were.
        let written = WeightSource::open(&target).unwrap();
        let expected: usize = params.iter().map(|p| p.parts.len()).sum();
        assert_eq!((done.tensors, written.names().count()), (expected, expected));
        assert!(params.iter().flat_map(|p| &p.parts).all(|p| written.info(&p.name).unwrap().shape == p.file_shape));
        ModelFolder::open(&target).unwrap();
    }
}

#[test]
fn weights_are_rounded_to_the_type_that_was_asked_for() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    edit(&model, |tensors| {
        let (_, bias) = tensors.iter_mut().find(|(name, _)| name == "conv_in.bias").unwrap();
        *bias =
            HostTensor::f32(&[8], vec![1.0, -0.1, 3.0e-8, 65504.0, 1.0 + 1.0 / 512.0, 1.0 + 3.0 / 512.0, -0.0, 2.5]);
    });
    for (name, dtype, expected) in [
        // 11 and 8 significant bits; ties go to the even neighbour. 3e-8 is half of the smallest f16, and a little more.
        (
            "f16",
            "F16",
            [1.0, -1638.0 / 16384.0, 2f32.powi(-24), 65504.0, 1.0 + 1.0 / 512.0, 1.0 + 3.0 / 512.0, -0.0, 2.5],
        ),
        (
            "bf16",
            "BF16",
            [1.0, -205.0 / 2048.0, 129.0 / 128.0 * 2f32.powi(-25), 65536.0, 1.0, 1.0 + 1.0 / 128.0, -0.0, 2.5],
        ),
    ] {
        let target = place.arg(name);
        warpdiff(&["convert", &model, &target, "--dtype", name, "--quiet"]).expect_success();
        let source = WeightSource::open(Path::new(&target)).unwrap();
        assert!(source.names().all(|n| source.info(n).unwrap().dtype == dtype));
        let bias = source.get_f32("conv_in.bias", &[8]).unwrap();
        assert_eq!(bias.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits), "{name}");
    }
    edit(&model, |tensors| {
        let (_, bias) = tensors.iter_mut().find(|(name, _)| name == "conv_out.bias").unwrap();
        *bias = HostTensor::f32(&[1], vec![65520.0]);
    });
    let before = place.entries();
    let run = warpdiff(&["convert", &model, &place.arg("large"), "--dtype", "f16"]);
    run.expect_error(1, &["conv_out.bias", "65520", "f16", "f32"]);
    assert_eq!(place.entries(), before, "something was left behind");
}

#[test]
fn a_destination_with_something_in_it_is_left_alone() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    fs::create_dir(place.path("theirs")).unwrap();
    fs::write(place.path("theirs/thesis.tex"), "precious").unwrap();
    let before = place.entries();
    warpdiff(&["convert", &model, &place.arg("theirs")]).expect_error(1, &["theirs", "thesis.tex"]);
    warpdiff(&["convert", &model, &model]).expect_error(1, &["model"]);
    warpdiff(&["convert", &place.arg("nowhere"), &place.arg("out")]).expect_error(1, &["nowhere"]);
    assert_eq!(place.entries(), before);
    ModelFolder::open(Path::new(&model)).unwrap();
}

/// Settings of samplers that are not implemented are taken over; without any, the network is written alone.
#[test]
fn the_scheduler_goes_along() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    let file = Path::new(&model).join("scheduler/scheduler_config.json");
    let foreign = r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.02, "of_the_future": [1, 2]}"#;
    fs::write(&file, foreign).unwrap();
    convert(Path::new(&model), &place.path("euler"), StoredAs::F32, false).unwrap();
    assert_eq!(fs::read_to_string(place.path("euler/scheduler/scheduler_config.json")).unwrap(), foreign);
    let index: Value = serde_json::from_slice(&fs::read(place.path("euler/model_index.json")).unwrap()).unwrap();
    assert_eq!(index["scheduler"], serde_json::json!(["diffusers", "EulerDiscreteScheduler"]));

    fs::write(&file, r#"{"_class_name": "GaussianDDPMScheduler", "timesteps": 500, "clip_predicted_image": false}"#)
        .unwrap();
    convert(Path::new(&model), &place.path("old"), StoredAs::F32, false).unwrap();
    let old = ModelFolder::open(&place.path("old")).unwrap().scheduler;
    assert_eq!((old.betas.num_train_timesteps, old.clip_sample), (500, false));
    let text = fs::read_to_string(place.path("old/scheduler/scheduler_config.json")).unwrap();
    assert!(text.contains("\"DDPMScheduler\"") && text.contains("num_train_timesteps"), "{text}");

    fs::write(&file, "{").unwrap();
    let error = convert(Path::new(&model), &place.path("bad"), StoredAs::F32, false);
    assert!(matches!(error, Err(ModelError::Scheduler { .. })));
    fs::remove_file(&file).unwrap();
    let done = convert(Path::new(&model), &place.path("alone"), StoredAs::F32, false).unwrap();
    assert!(!done.scheduler && place.path("alone/config.json").is_file() && !place.path("alone/unet").exists());
    let names = params(&unconditional()).iter().map(|p| p.parts.len()).sum::<usize>();
    assert_eq!(WeightSource::open(&place.path("alone")).unwrap().names().count(), names);
}

#[test]
fn convert_leniently_leaves_out_what_is_not_known() {
    let place = Place::new();
    let model = with_extras(&place);
    let out = place.arg("out");
    warpdiff(&["convert", &model, &out]).expect_error(1, &["fancy_blocks"]);
    let run = warpdiff(&["convert", &model, &out, "--lenient", "--quiet"]).expect_success();
    assert_eq!(run.stderr.lines().count(), 3, "{}", run.stderr);
    assert!(read_config(Path::new(&out)).is_ok());
    assert!(WeightSource::open(Path::new(&out)).unwrap().info("ema.shadow").is_err());
}

/// What is written is what diffusers reads, where there is diffusers.
#[test]
fn diffusers_loads_what_is_converted() {
    let python = std::env::var("WARPDIFF_PYTHON").unwrap_or("python3".into());
    let there = Command::new(&python).args(["-c", "import diffusers, torch"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} cannot import diffusers");
        return;
    }
    let program = std::env::var("WARPDIFF_BIN").unwrap_or(env!("CARGO_BIN_EXE_warpdiff").into());
    let output = Command::new(python).arg(tests().join("python/check_convert.py")).arg(program).args(cases()).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}
