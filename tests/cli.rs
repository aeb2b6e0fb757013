//! The program as its users run it: results, formats, exit codes.

mod common;

use std::fs;

use common::models::{oblong, tiny, unconditional, wide};
use common::process::{Place, Run, warpdiff};
use warpdiff::backend::gpu::kernels;
use warpdiff::io::{TensorData, TensorFile};

fn sample(model: &str, more: &[&str]) -> Run {
    warpdiff(&[&["sample", model, "--steps", "3", "--sampler", "ddim"], more].concat())
}

#[test]
fn a_grid_of_samples_is_a_png() {
    let place = Place::new();
    let model = place.model("model", &wide());
    let sizes: Vec<(u32, u32)> = [1, 5]
        .iter()
        .map(|num| {
            let out = place.arg(&format!("grid{num}.png"));
            sample(&model, &["--num", &num.to_string(), "--out", &out]).expect_success();
            let picture = image::open(&out).unwrap();
            assert!(picture.to_rgb8().pixels().any(|p| p.0[0] != p.0[1]), "a grey picture of a colour model");
            (picture.width(), picture.height())
        })
        .collect();
    assert!(sizes[0].0 >= 16 && sizes[0].1 >= 16, "{sizes:?}");
    assert!(sizes[1].0 > sizes[0].0 && sizes[1].1 >= sizes[0].1, "{sizes:?}");
}

/// A model of scores has data in [0, 1] inside and pictures like any other outside; its own sampler alone reads it.
#[test]
fn a_model_of_scores_is_sampled_by_its_own_sampler() {
    let place = Place::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/q10_ncsnpp/model");
    let draw = |more: &[&str]| warpdiff(&[&["sample", model, "--steps", "2", "--num", "2"], more].concat());
    let (tensors, bytes) = (place.arg("a.safetensors"), place.arg("a.npz"));
    draw(&["--out", &tensors]).expect_success();
    draw(&["--out", &bytes]).expect_success();
    draw(&["--sampler", "ve", "--batch", "1", "--out", &place.arg("b.npz")]).expect_success();
    let picture = npz(&bytes).swap_remove(0).2;
    assert_eq!(npz(&place.arg("b.npz")).swap_remove(0).2, picture, "an image depends on its batch");
    let file = TensorFile::open(tensors.as_ref()).unwrap();
    let images = file.get(file.names().next().unwrap()).unwrap();
    let TensorData::F32(values) = images.data else { panic!("images are not f32") };
    let [_, c, h, w] = images.shape[..] else { panic!("{:?}", images.shape) };
    assert_eq!(picture.len(), values.len());
    for (i, byte) in picture.iter().enumerate() {
        let (at, channel) = (i / c, i % c);
        let nchw = (at / (h * w) * c + channel) * h * w + at % (h * w);
        let expected = (255.0 * f64::from(values[nchw] / 2.0 + 0.5).clamp(0.0, 1.0)).round();
        assert!((f64::from(*byte) - expected).abs() <= 1.0, "element {i}");
    }
    draw(&["--sampler", "ddim", "--out", &place.arg("c.npz")])
        .expect_error(1, &["ScoreSdeVeScheduler", "--sampler ve"]);
}

/// The arrays of a .npz: name, header and data.
fn npz(path: &str) -> Vec<(String, String, Vec<u8>)> {
    use std::io::Read;
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let arrays: Vec<usize> =
        (0..archive.len()).filter(|&i| archive.by_index(i).unwrap().name().unwrap().ends_with(".npy")).collect();
    arrays
        .into_iter()
        .map(|i| {
            let mut file = archive.by_index(i).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(&bytes[..6], b"\x93NUMPY");
            let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            let text = String::from_utf8(bytes[10..10 + header].to_vec()).unwrap();
            (file.name().unwrap().into_owned(), text, bytes[10 + header..].to_vec())
        })
        .collect()
}

#[test]
fn npz_holds_bytes_for_evaluation() {
    let place = Place::new();
    let (out, again) = (place.arg("a.npz"), place.arg("b.npz"));
    let model = place.model("model", &wide());
    for path in [&out, &again] {
        sample(&model, &["--num", "5", "--batch", "2", "--seed", "9", "--out", path]).expect_success();
    }
    assert_eq!(fs::read(&out).unwrap(), fs::read(&again).unwrap());
    let arrays = npz(&out);
    let (name, header, data) = &arrays[0];
    assert_eq!(name, "arr_0.npy");
    assert!(header.contains("'|u1'") && header.contains("(5, 16, 16, 3)"), "{header}");
    assert!(header.contains("'fortran_order': False"), "{header}");
    assert_eq!(data.len(), 5 * 16 * 16 * 3);
    let (name, header, labels) = &arrays[1];
    assert_eq!(name, "arr_1.npy");
    assert!(header.contains("(5,)"), "{header}");
    let width = labels.len() / 5;
    assert_eq!(labels.iter().step_by(width).copied().collect::<Vec<_>>(), [0, 1, 2, 0, 1]);

    // The floats of the same seed are what the bytes were made of.
    let floats = place.arg("a.safetensors");
    sample(&model, &["--num", "5", "--batch", "5", "--seed", "9", "--out", &floats]).expect_success();
    let file = TensorFile::open(floats.as_ref()).unwrap();
    let images: Vec<_> = file.names().map(|n| file.get(n).unwrap()).filter(|t| t.shape.len() == 4).collect();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].shape, [5, 3, 16, 16]);
    let TensorData::F32(x) = &images[0].data else { panic!("not floats") };
    for n in 0..5 {
        for pixel in 0..256 {
            for c in 0..3 {
                let byte = f64::from(data[(n * 256 + pixel) * 3 + c]);
                let expected = (f64::from(x[(n * 3 + c) * 256 + pixel]) * 127.5 + 127.5).clamp(0.0, 255.0);
                assert!((byte - expected).abs() <= 0.5001, "{byte} of {expected}");
            }
        }
    }
}

#[test]
fn a_gif_shows_the_denoising() {
    let place = Place::new();
    let out = place.arg("a.gif");
    let model = place.model("model", &tiny());
    warpdiff(&["sample", &model, "--num", "3", "--steps", "7", "--sampler", "ddim", "--out", &out]).expect_success();
    let mut decoder = gif::DecodeOptions::new().read_info(fs::File::open(&out).unwrap()).unwrap();
    let mut frames = 0;
    while decoder.read_next_frame().unwrap().is_some() {
        frames += 1;
    }
    assert_eq!(frames, 7);
}

#[test]
fn a_folder_gets_one_png_a_sample() {
    let place = Place::new();
    let out = place.arg("folder");
    let model = place.model("model", &unconditional());
    for _ in 0..2 {
        sample(&model, &["--num", "7", "--batch", "3", "--out", &out]).expect_success();
        let files = fs::read_dir(&out).unwrap().map(|e| e.unwrap().path());
        let pictures: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "png")).collect();
        assert_eq!(pictures.len(), 7);
        for path in pictures {
            let picture = image::open(&path).unwrap();
            assert_eq!((picture.width(), picture.height()), (8, 8), "{}", path.display());
        }
    }
}

#[test]
fn json_parses_and_quiet_is_quiet() {
    let place = Place::new();
    let model = place.model("model", &oblong());
    let (out, config) = (place.arg("a.npz"), place.config(&unconditional()));
    let json = sample(&model, &["--num", "4", "--batch", "3", "--json", "--out", &out]).expect_success().json();
    assert_eq!((json["samples"].as_u64(), json["steps"].as_u64()), (Some(4), Some(3)), "{json}");
    assert_eq!(json["batch"], 2, "4 samples in batches of at most 3 are two batches of 2: {json}");
    let info = warpdiff(&["info", &model, "--json"]).expect_success().json();
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["model"]["image"], serde_json::json!([2, 12, 20]));
    assert_eq!(info["model"]["num_train_timesteps"], 8);
    assert_eq!((info["model"]["classes"].as_u64(), info["model"]["null_class"].as_u64()), (Some(3), Some(3)));
    let parameters: usize = common::models::params(&oblong()).iter().map(|p| p.numel()).sum();
    assert_eq!(info["model"]["parameters"], parameters);

    let trained = place.arg("trained");
    let train = |more: &[&str]| {
        let base = ["train", "digits", "--config", &config, "--out", &trained, "--batch", "4", "--timesteps", "8"];
        warpdiff(&[&base, more].concat()).expect_success()
    };
    let run = train(&["--steps", "2", "--json", "--quiet"]);
    assert_eq!(run.json()["step"], 2, "{}", run.stdout);
    assert_eq!(run.stderr, "");
    for args in [
        vec!["sample", &trained, "--num", "2", "--quiet", "--out", &out],
        vec!["nll", &trained, "digits", "--num", "1", "--quiet"],
        vec!["info", &trained, "--quiet"],
    ] {
        let run = warpdiff(&args).expect_success();
        assert_eq!(run.stderr, "", "{args:?}");
    }
    let info = warpdiff(&["info", &trained, "--json"]).expect_success().json();
    assert_eq!(info["model"]["steps"], 2);
}

#[test]
fn a_resumed_run_has_the_bits_of_one_without_a_break() {
    let place = Place::new();
    let config = place.config(&unconditional());
    let train = |out: &str, more: &[&str]| {
        let base = ["train", "digits", "--quiet", "--out", out];
        warpdiff(&[&base, more].concat()).expect_success()
    };
    let options = ["--config", &config, "--batch", "4", "--timesteps", "20", "--class-conditional"];
    let options =
        [&options[..], &["--label-dropout", "0.2", "--dropout", "0.1", "--lr", "1e-2", "--warmup", "2"]].concat();
    let (whole, parts) = (place.arg("whole"), place.arg("parts"));
    train(&whole, &[&options[..], &["--steps", "6", "--threads", "1"]].concat());
    train(&parts, &[&options[..], &["--steps", "2", "--threads", "2"]].concat());
    train(&parts, &["--resume", "--steps", "5"]);
    train(&parts, &["--resume", "--steps", "6", "--threads", "1"]);
    for name in ["weights", "moment1", "moment2"].map(|n| format!("training/{n}.safetensors")) {
        let read = |folder: &str| fs::read(format!("{folder}/{name}")).unwrap();
        assert!(read(&whole) == read(&parts), "{name}");
    }
    let ema = "unet/diffusion_pytorch_model.safetensors";
    assert!(fs::read(format!("{whole}/{ema}")).unwrap() == fs::read(format!("{parts}/{ema}")).unwrap());
}

/// Every number of a JSON value, in its order.
fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(all) => all.iter().flat_map(numbers).collect(),
        serde_json::Value::Object(all) => all.values().flat_map(numbers).collect(),
        other => other.as_f64().into_iter().collect(),
    }
}

#[test]
fn bits_per_dimension_do_not_depend_on_the_batch() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    let nll = |more: &[&str]| {
        let base = ["nll", &model, "digits", "--num", "5", "--json"];
        let run = warpdiff(&[&base, more].concat()).expect_success();
        run.json()
    };
    let all = nll(&["--batch", "1"]);
    for other in [nll(&["--batch", "7", "--threads", "1"]), nll(&["--batch", "64", "--timesteps", "7"])] {
        let (all, other) = (numbers(&all), numbers(&other));
        // Ten figures, the interval's ends, and seven of each of eight timesteps.
        assert_eq!((all.len(), other.len()), (10 + 1 + 8 * 7, 10 + 1 + 8 * 7));
        for (a, b) in all.iter().zip(other) {
            assert!((a - b).abs() <= 1e-9 * a.abs(), "{a} and {b}");
        }
    }
    let sum = ["l_t", "l_diffusion", "l_0"].iter().map(|k| all[k].as_f64().unwrap()).sum::<f64>();
    assert!((all["bits_per_dim"].as_f64().unwrap() - sum).abs() < 1e-9 * sum, "{all}");
    assert_eq!(all["images"], 5);
    // Fewer timesteps estimate the same number.
    let picture = place.arg("terms.png");
    let few = nll(&["--timesteps", "2", "--plot", &picture]);
    assert_ne!(few["bits_per_dim"], all["bits_per_dim"]);
    let [low, high] = [0, 1].map(|end| all["interval_95"][end].as_f64().unwrap());
    assert!(low < all["bits_per_dim"].as_f64().unwrap() && all["bits_per_dim"].as_f64().unwrap() < high);
    let picture = image::open(&picture).unwrap();
    assert!(picture.width() > 500 && picture.height() > 500);
}

#[test]
fn verify_reports_and_its_exit_code_tells() {
    let place = Place::new();
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
    let (report, case) = (place.arg("report.json"), format!("{cases}/p09_fp16_weights"));
    let run = warpdiff(&["verify", &case, "--json", &report]);
    assert_eq!(run.code, 0, "{}", run.stdout);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(json["device"], "cpu");
    assert_eq!(json["precision"], "f32");
    let checks = json["checks"].as_array().unwrap();
    assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(checks.len() as u64), Some(0)));
    assert_eq!(json["skipped"], 0);
    for check in checks {
        assert_eq!((&check["status"], &check["case"]), (&"pass".into(), &"p09_fp16_weights".into()));
        assert!(check["error"].as_f64().unwrap() <= check["tolerance"].as_f64().unwrap(), "{check}");
        assert!(check["id"].is_string() && check["type"].is_string() && check["reason"] == "", "{check}");
    }

    let folder = place.path("case");
    fs::create_dir_all(&folder).unwrap();
    let text = fs::read_to_string(format!("{cases}/p20_schedules/case.json")).unwrap();
    fs::write(
        folder.join("case.json"),
        text.replace("\"beta_schedule\": \"linear\"", "\"beta_schedule\": \"sigmoid\""),
    )
    .unwrap();
    fs::copy(format!("{cases}/p20_schedules/golden.safetensors"), folder.join("golden.safetensors")).unwrap();
    let run = warpdiff(&["verify", &place.arg("case"), "--json", &report]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(run.stdout.contains("FAIL"), "{}", run.stdout);
    // What cannot be read counts more than what fails, and the rest is still checked.
    let run = warpdiff(&["verify", &place.arg("nowhere"), &case, "--json", &report]);
    assert_eq!(run.code, 2, "{}", run.stdout);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(json["passed"].as_u64(), Some(checks.len() as u64));
}

#[test]
fn info_lists_the_kernels_of_the_build() {
    let record = kernels::record();
    let json = warpdiff(&["info", "--kernels", "--json"]).expect_success().json();
    assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
    let files = json["files"].as_array().unwrap();
    assert_eq!(files.len(), kernels::images().len());
    for (listed, image) in files.iter().zip(kernels::images()) {
        assert_eq!(listed["file"], image.file);
        assert_eq!(listed["nvcc_seconds"].as_f64(), Some(image.nvcc_seconds));
        assert_eq!(listed["kernels"], serde_json::json!(image.kernels));
    }
    let listed = json["kernels"].as_array().unwrap();
    assert_eq!(listed.len(), record.len());
    for (listed, r) in listed.iter().zip(record) {
        let expected = serde_json::json!({
            "name": r.name, "arch": r.arch, "registers": r.registers, "shared_bytes": r.shared_bytes,
            "stack_bytes": r.stack_bytes, "spill_stores": r.spill_stores, "spill_loads": r.spill_loads,
            "param_bytes": r.param_bytes, "code": r.code.map(|c| serde_json::json!({
                "instructions": c.instructions, "wgmma": c.wgmma, "wgmma_loops": c.wgmma_loops, "mma": c.mma,
                "mma_loops": c.mma_loops, "local": c.local, "tma_loads": c.tma_loads, "tma_stores": c.tma_stores,
            })),
        });
        assert_eq!(*listed, expected);
    }
    let table = warpdiff(&["info", "--kernels"]).expect_success().stdout;
    let rows = table.lines().filter(|line| record.iter().any(|r| line.split_whitespace().next() == Some(r.name)));
    assert_eq!(rows.count(), record.len(), "{table}");
    let seconds = format!("{:.1} s, added up", kernels::nvcc_seconds());
    assert_eq!(table.contains(&seconds), !record.is_empty(), "{table}");

    let devices = warpdiff(&["info"]).expect_success().stdout;
    let said = kernels::missing().or(kernels::compiler()).unwrap();
    assert!(table.contains(said) && devices.contains(said), "{said}: {table}{devices}");
    let json = warpdiff(&["info", "--json"]).expect_success().json();
    assert_eq!(json["kernel_images"]["compiler"], serde_json::json!(kernels::compiler()));
    assert_eq!(json["kernel_images"]["missing"], serde_json::json!(kernels::missing()));
    assert_eq!(warpdiff(&["info", "model", "--kernels"]).code, 2, "a model has no kernels of its own");
}
