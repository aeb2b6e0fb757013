//! Broken inputs: each is refused with its reason, runs nothing and leaves nothing behind.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::process::{Place, warpdiff};
use serde_json::{Value, json};
use warpdiff::io::{HostTensor, TensorData, TensorFile, TensorView, safetensors_write};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
const SHARDS: [&str; 2] =
    ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"];

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Broken models, each with a `bad.json` that has words of which the message must contain one.
fn bad_models(folder: &Path) -> usize {
    let mut folders: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    let place = Place::new();
    let out = place.arg("out.npz");
    for folder in &folders {
        let bad: Value = serde_json::from_slice(&fs::read(folder.join("bad.json")).unwrap()).unwrap();
        let model = folder.join(bad["model_dir"].as_str().unwrap());
        let run =
            warpdiff(&["sample", model.to_str().unwrap(), "--num", "1", "--steps", "1", "--quiet", "--out", &out]);
        if bad["expect"] == "accept" {
            run.expect_success();
            fs::remove_file(&out).unwrap();
            continue;
        }
        run.expect_error(1, &[]);
        let text = run.stderr.to_lowercase();
        let words: Vec<String> = serde_json::from_value(bad["message_should_mention_one_of"].clone()).unwrap();
        assert!(words.iter().any(|word| text.contains(&word.to_lowercase())), "{words:?} in {text}");
        assert!(text.contains(model.to_str().unwrap()) || text.contains("model"), "{text}");
        if let Some(word) = bad["forbidden_output"].as_str() {
            assert!(!run.stdout.contains(word) && !run.stderr.contains(word), "the pickle was executed");
        }
        assert!(place.entries().is_empty(), "{}: {:?}", folder.display(), place.entries());
    }
    folders.len()
}

#[test]
fn recorded_broken_models_are_refused_with_their_reason() {
    assert_eq!(bad_models(&tests().join("cases_bad")), 3);
}

#[test]
fn broken_models_of_the_named_folder_are_refused() {
    match std::env::var_os("WARPDIFF_BAD_CASES") {
        Some(folder) => println!("{} models", bad_models(Path::new(&folder))),
        None => println!("not run: WARPDIFF_BAD_CASES is not set"),
    }
}

/// One way to break a model folder, and words of which the message must contain one.
type Damage = (&'static str, &'static [&'static str], fn(&Path));

const DAMAGES: [Damage; 24] = [
    ("betas above one", &["beta"], |model| set(model, "scheduler_config.json", "beta_end", json!(1.7))),
    ("no timesteps", &["num_train_timesteps"], |model| {
        set(model, "scheduler_config.json", "num_train_timesteps", json!(0));
    }),
    ("unknown prediction", &["prediction_type", "velocity"], |model| {
        set(model, "scheduler_config.json", "prediction_type", json!("velocity"));
    }),
    ("number of blocks", &["block"], |model| {
        set(model, "config.json", "up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D"]));
    }),
    ("groups that do not divide", &["group"], |model| set(model, "config.json", "norm_num_groups", json!(3))),
    ("skip blocks of grey images", &["in_channels"], |model| {
        set(model, "config.json", "down_block_types", json!(["SkipDownBlock2D", "SkipDownBlock2D"]));
    }),
    ("too narrow for k blocks", &["block_out_channels"], |model| {
        set(model, "config.json", "down_block_types", json!(["KDownBlock2D", "KDownBlock2D"]));
        set(model, "config.json", "up_block_types", json!(["KUpBlock2D", "KUpBlock2D"]));
    }),
    ("learned times without a table", &["num_train_timesteps"], |model| {
        set(model, "config.json", "time_embedding_type", json!("learned"));
    }),
    ("unknown block", &["FancyDownBlock2D"], |model| {
        set(model, "config.json", "down_block_types", json!(["FancyDownBlock2D", "DownBlock2D"]));
    }),
    ("not text", &["utf", "config.json"], |model| write(model, "config.json", b"\xff\xfe{\"_class_name\"")),
    ("half a configuration", &["config.json"], |model| {
        let text = fs::read(model.join("config.json")).unwrap();
        write(model, "config.json", &text[..text.len() / 2]);
    }),
    ("no weights", &["safetensors", "weights"], |model| fs::remove_file(model.join(WEIGHTS)).unwrap()),
    ("empty weights", &["empty", "short", "header", "size"], |model| write(model, WEIGHTS, b"")),
    ("half the weights", &["truncat", "size", "offset", "length"], |model| cut(model, |len| len / 2)),
    ("weights cut in a number", &["truncat", "size", "offset", "length"], |model| cut(model, |len| len - 3)),
    ("header beyond the file", &["header"], |model| {
        let mut file = fs::read(model.join(WEIGHTS)).unwrap();
        file[..8].copy_from_slice(&10_000_000u64.to_le_bytes());
        write(model, WEIGHTS, &file);
    }),
    ("header that is no json", &["header", "json"], |model| {
        let mut file = fs::read(model.join(WEIGHTS)).unwrap();
        file[8..12].copy_from_slice(b"<<<<");
        write(model, WEIGHTS, &file);
    }),
    ("unknown dtype", &["dtype", "f31"], |model| header(model, |entry| entry["dtype"] = json!("F31"))),
    ("shape that overflows", &["overflow", "shape", "size"], |model| {
        header(model, |entry| entry["shape"] = json!([1u64 << 40, 1u64 << 40]));
    }),
    ("shape of another size", &["offset", "shape", "size"], |model| {
        header(model, |entry| entry["shape"] = json!([4, 1, 3, 4]));
    }),
    ("overlapping tensors", &["offset", "overlap"], |model| {
        header(model, |entry| {
            let [begin, end]: [u64; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
            entry["data_offsets"] = json!([begin + 4, end + 4]);
        });
    }),
    ("a tensor is missing", &["mid_block.resnets.0.conv1.weight"], |model| {
        edit(model, |tensors| tensors.retain(|(name, _)| name != "mid_block.resnets.0.conv1.weight"));
    }),
    ("a tensor of another shape", &["conv_in.weight"], |model| {
        edit(model, |tensors| {
            let (_, tensor) = tensors.iter_mut().find(|(name, _)| name == "conv_in.weight").unwrap();
            *tensor = HostTensor::f32(&[6, 1, 3, 3], vec![0.5; 54]);
        });
    }),
    ("not a number", &["finite", "nan"], |model| {
        edit(model, |tensors| {
            let name = "up_blocks.0.resnets.0.conv1.weight";
            let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == name).unwrap();
            let TensorData::F32(data) = &mut tensor.data else { panic!("{name} is not f32") };
            data[5] = f32::NAN;
        });
    }),
];

/// The same of a model in two shards.
const SHARD_DAMAGES: [Damage; 3] = [
    ("a shard is missing", &["00002-of-00002"], |model| fs::remove_file(model.join(SHARDS[1])).unwrap()),
    ("a shard outside of the folder", &["outside", "path", "index"], |model| {
        index(model, |map| map["conv_in.weight"] = json!("../outside.safetensors"));
    }),
    ("a tensor is not in its shard", &["conv_in.weight", "00001-of-00002", "00002-of-00002"], |model| {
        index(model, |map| {
            let other = usize::from(map["conv_in.weight"] == SHARDS[0]);
            map["conv_in.weight"] = json!(SHARDS[other]);
        });
    }),
];

fn write(model: &Path, file: &str, bytes: &[u8]) {
    fs::write(model.join(file), bytes).unwrap();
}

fn set(model: &Path, file: &str, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(model.join(file)).unwrap()).unwrap();
    json[key] = value;
    write(model, file, json.to_string().as_bytes());
}

fn cut(model: &Path, len: fn(usize) -> usize) {
    let file = fs::read(model.join(WEIGHTS)).unwrap();
    write(model, WEIGHTS, &file[..len(file.len())]);
}

fn tensors(model: &Path) -> Vec<(String, HostTensor)> {
    let file = TensorFile::open(&model.join(WEIGHTS)).unwrap();
    file.names().map(|name| (name.to_string(), file.get(name).unwrap())).collect()
}

fn save(path: &Path, tensors: &[(String, HostTensor)]) {
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
    safetensors_write::write(path, &views, &[]).unwrap();
}

fn edit(model: &Path, edit: impl FnOnce(&mut Vec<(String, HostTensor)>)) {
    let mut tensors = tensors(model);
    edit(&mut tensors);
    save(&model.join(WEIGHTS), &tensors);
}

/// Changes what the header says of `conv_in.weight`.
fn header(model: &Path, change: impl FnOnce(&mut Value)) {
    let file = fs::read(model.join(WEIGHTS)).unwrap();
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + len]).unwrap();
    change(&mut header["conv_in.weight"]);
    let text = header.to_string();
    let changed = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &file[8 + len..]].concat();
    write(model, WEIGHTS, &changed);
}

/// Splits the weights into two shards.
fn split(model: &Path) {
    let all = tensors(model);
    let (first, second) = all.split_at(all.len() / 2);
    let mut map = json!({});
    for (shard, tensors) in SHARDS.iter().zip([first, second]) {
        save(&model.join(shard), tensors);
        tensors.iter().for_each(|(name, _)| map[name] = json!(shard));
    }
    write(model, INDEX, json!({"metadata": {}, "weight_map": map}).to_string().as_bytes());
    fs::remove_file(model.join(WEIGHTS)).unwrap();
}

fn index(model: &Path, change: impl FnOnce(&mut Value)) {
    let mut index: Value = serde_json::from_slice(&fs::read(model.join(INDEX)).unwrap()).unwrap();
    change(&mut index["weight_map"]);
    write(model, INDEX, index.to_string().as_bytes());
}

#[test]
fn every_damage_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let control = tests().join("cases_bad/_control/model");
    let add = |name: &str, record: Value, damage: &dyn Fn(&Path)| {
        let model = folder.path().join(name).join("model");
        fs::create_dir_all(&model).unwrap();
        for file in fs::read_dir(&control).unwrap() {
            let path = file.unwrap().path();
            fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
        }
        damage(&model);
        fs::write(folder.path().join(name).join("bad.json"), record.to_string()).unwrap();
    };
    let refused =
        |words: &[&str]| json!({"model_dir": "model", "expect": "refuse", "message_should_mention_one_of": words});
    for (name, words, damage) in DAMAGES {
        add(name, refused(words), &damage);
    }
    for (name, words, damage) in SHARD_DAMAGES {
        add(name, refused(words), &|model| {
            split(model);
            damage(model);
        });
    }
    // What splitting does is no damage.
    add("two shards", json!({"model_dir": "model", "expect": "accept"}), &split);
    assert_eq!(bad_models(folder.path()), DAMAGES.len() + SHARD_DAMAGES.len() + 1);
}
