//! Checkpoints of guided-diffusion and improved-diffusion as users have them: flags, files, what is refused, what is sampled.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::process::{Place, warpdiff};
use warpdiff::diffusion::{Compat, SamplerKind, VarianceType};
use warpdiff::graph::ParamSpec;
use warpdiff::io::npz_read::NpzFile;
use warpdiff::io::{TensorView, WeightSource, safetensors_write};
use warpdiff::model::adm::{Flags, QkvOrder, aliases, arch, file_tensors};
use warpdiff::model::{ModelError, ModelFolder, OpenOptions, read_config, read_weights};
use warpdiff::program::parameters;
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::{DownBlock, TimeScaleShift, UNetConfig, UpBlock};

/// A network that UNet2DModel can be, of 8x8 images.
const PLAIN: &str = "--image_size 8 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 8,4 \
                     --num_heads 2 --use_scale_shift_norm True --resblock_updown True --learn_sigma True \
                     --diffusion_steps 40 --noise_schedule cosine --rescale_timesteps False";

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases_adm").join(name)
}

fn flags(text: &str) -> Flags {
    Flags::parse(text, "the test").unwrap()
}

/// Random weights, in the graph's layout.
fn random_weights(params: &[ParamSpec]) -> Vec<Vec<f32>> {
    let fill = |(i, spec): (usize, &ParamSpec)| {
        let mut data = vec![0.0; spec.numel()];
        Sequence::new(11, Stream::Weights, i as u32, 0).fill_normal(&mut data);
        data.iter_mut().for_each(|v| *v *= 0.1);
        data
    };
    params.iter().enumerate().map(fill).collect()
}

/// Writes a checkpoint of a network with these flags, under the names of its code, and returns its weights.
fn write_checkpoint(folder: &Path, file: &str, text: &str) -> Vec<Vec<f32>> {
    let network = flags(text).network().unwrap();
    let params = parameters(&network.config).unwrap();
    let weights = random_weights(&params);
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file_tensors(&network.config, &params)
        .into_iter()
        .map(|(n, s)| (n, s.clone(), vec![0.0; s.iter().product()]))
        .collect();
    let mut aliases = aliases(&network.config, network.order, &params).into_iter();
    for (spec, data) in params.iter().zip(&weights) {
        for part in 0..spec.parts.len() {
            let alias = aliases.next().unwrap();
            let values = spec.export(part, data);
            let (_, shape, whole) = tensors.iter_mut().find(|(name, ..)| *name == alias.file_name).unwrap();
            let Some(rows) = alias.rows else {
                whole.copy_from_slice(&values);
                continue;
            };
            let row = whole.len() / shape[0];
            for (to, from) in whole.chunks_mut(rows.stride * row).zip(values.chunks(rows.len * row)) {
                to[rows.first * row..][..from.len()].copy_from_slice(from);
            }
        }
    }
    let views: Vec<(&str, TensorView)> = tensors.iter().map(|(n, s, d)| (n.as_str(), TensorView::f32(s, d))).collect();
    safetensors_write::write(&folder.join(file), &views, &[]).unwrap();
    fs::write(folder.join("flags.json"), text).unwrap();
    weights
}

#[test]
fn flags_say_the_network_and_the_schedule() {
    let network = arch::flags("cifar10_uncond_50M_500K.pt").unwrap().network().unwrap();
    let (c, s) = (network.config, network.scheduler);
    assert_eq!(c.block_out_channels, [128, 256, 256, 256]);
    assert_eq!((c.in_channels, c.out_channels, c.layers_per_block, c.dropout), (3, 6, 3, 0.3));
    let (plain, attention) = (DownBlock::Plain, DownBlock::Attention);
    assert_eq!(c.down_block_types, [plain, attention, attention, plain]);
    assert_eq!((c.attention_heads, c.attention_head_dim, c.num_class_embeds), (Some(4), None, None));
    assert_eq!((c.timestep_scale, c.sinusoid_width, c.time_embedding_dim), (0.25, None, Some(512)));
    assert_eq!(c.resnet_time_scale_shift, TimeScaleShift::ScaleShift);
    assert_eq!(
        (s.sampler, s.compat, s.variance_type),
        (SamplerKind::Ddpm, Compat::GuidedDiffusion, VarianceType::LearnedRange)
    );
    assert_eq!((s.betas.num_train_timesteps, network.order), (4000, QkvOrder::PerHead));

    let network = arch::flags("512x512_diffusion").unwrap().network().unwrap();
    let c = network.config;
    assert_eq!(c.block_out_channels, [128, 256, 256, 512, 512, 1024, 1024]);
    assert_eq!((c.sinusoid_width, c.time_embedding_dim, c.attention_head_dim), (Some(256), Some(1024), Some(64)));
    assert_eq!(c.up_block_types[..3], [UpBlock::Attention, UpBlock::Attention, UpBlock::Attention]);
    assert_eq!(c.up_block_types[3], UpBlock::Resnet);

    let c = arch::flags("128_512_upsampler").unwrap().network().unwrap().config;
    assert_eq!((c.in_channels, c.condition_channels, c.image_channels()), (6, 3, 3));
    assert_eq!(c.block_out_channels, [192, 192, 384, 384, 768, 768]);
    assert_eq!(arch::flags("64x64_diffusion").unwrap().network().unwrap().order, QkvOrder::PerProjection);
}

#[test]
fn every_released_model_makes_a_network_of_the_published_size() {
    let mut networks = 0;
    for name in arch::names() {
        let flags = arch::flags(name).unwrap();
        flags.check_known().unwrap();
        let params = if name.contains("classifier") {
            flags.classifier().unwrap().parameters()
        } else {
            parameters(&flags.network().unwrap().config)
        };
        let count: usize = params.unwrap().iter().map(ParamSpec::numel).sum();
        let millions = (count + 500_000) / 1_000_000;
        // What the papers and the files' names say, in millions.
        let expected = match name {
            "64x64_diffusion" => 296,
            "128x128_diffusion" => 422,
            "256x256_diffusion" => 554,
            "256x256_diffusion_uncond" | "lsun_bedroom" | "lsun_cat" | "lsun_horse" | "lsun_horse_nodropout" => 553,
            "512x512_diffusion" => 559,
            "64_256_upsampler" => 312,
            "128_512_upsampler" => 309,
            "64x64_classifier" => 65,
            "128x128_classifier" => 43,
            "256x256_classifier" | "512x512_classifier" => 54,
            "imagenet64_uncond_100M_1500K" | "imagenet64_uncond_vlb_100M_1500K" => 121,
            "imagenet64_cond_270M_250K" => 273,
            "cifar10_uncond_50M_500K" | "cifar10_uncond_vlb_50M_500K" => 53,
            "upsample_cond_500K" => 280,
            "lsun_uncond_100M_1200K_bs128" | "lsun_uncond_100M_2400K_bs64" => 114,
            other => panic!("{other} is not listed"),
        };
        assert_eq!(millions, expected, "{name}");
        networks += 1;
    }
    assert_eq!(networks, 23);
}

#[test]
fn a_command_line_and_json_say_the_same() {
    let line = flags("--image_size 64 --class_cond True \\\n --num_channels=32 --channel_mult \"1,2\" --dropout 0.5");
    let json = flags(
        r#"{"image_size": 64, "class_cond": true, "num_channels": "32", "channel_mult": [1, 2], "dropout": 0.5}"#,
    );
    let (line, json) = (line.network().unwrap(), json.network().unwrap());
    assert_eq!(line.config, json.config);
    assert_eq!((line.config.num_class_embeds, line.config.block_out_channels), (Some(1000), vec![32, 64]));
}

#[test]
fn flags_that_are_unknown_or_contradict_each_other_are_refused_by_name() {
    for (text, words) in [
        ("--image_sise 64", &["image_sise", "--lenient"][..]),
        ("--image_size 64 --large_size 256 --small_size 64", &["image_size", "large_size"]),
        ("--small_size 64", &["small_size", "large_size"]),
        ("--large_size 64 --small_size 64", &["small_size", "64"]),
        ("--learn_sigma True --sigma_small True", &["learn_sigma", "sigma_small"]),
        ("--image_size 100", &["channel_mult", "100"]),
        ("--num_channels 0", &["num_channels", "0"]),
        ("--class_cond maybe", &["class_cond", "maybe"]),
        ("--noise_schedule quadratic", &["noise_schedule", "quadratic", "cosine"]),
        ("--timestep_respacing 2000", &["timestep_respacing", "2000"]),
        ("--diffusion_steps 4000", &["rescale_timesteps", "improved-diffusion"]),
        ("--num_head_channels 48", &["num_head_channels", "48"]),
        ("--num_channels 36", &["num_channels", "36"]),
        ("--image_size 12 --channel_mult 1,1,1,1", &["image_size", "12"]),
        ("--attention_resolutions 16,x", &["attention_resolutions", "x"]),
        ("--image_size 64 --image_size 32", &["image_size", "twice"]),
        ("--image_size", &["image_size", "no value"]),
        ("image_size 64", &["image_size", "JSON"]),
        (r#"{"image_size": }"#, &["the test"]),
        ("--num_channels 64 --classifier_pool spatial_v2", &["classifier_pool", "spatial_v2"]),
        ("--classifier_width 128", &["classifier", "--classifier"]),
    ] {
        let read = || -> Result<(), ModelError> {
            let flags = Flags::parse(text, "the test")?;
            flags.check_known()?;
            flags.network()?;
            flags.classifier().map(|_| ())
        };
        let message = read().expect_err(text).to_string();
        assert!(message.starts_with("the test: "), "{message}");
        for word in words {
            assert!(message.contains(word), "{text}: no {word} in: {message}");
        }
    }
}

#[test]
fn the_weights_of_a_folder_are_never_chosen_in_silence() {
    let place = Place::new();
    let folder = place.path("run");
    fs::create_dir_all(&folder).unwrap();
    write_checkpoint(&folder, "ema_0.9999_001000.pt", PLAIN);
    for name in ["opt001000.pt", "classifier.pt"] {
        fs::write(folder.join(name), b"not looked at").unwrap();
    }
    let run = folder.to_str().unwrap();
    let out = place.arg("a.npz");
    let sample = |more: &[&str]| {
        let fixed = ["sample", run, "--num", "1", "--steps", "2", "--quiet", "--out", &out];
        let result = warpdiff(&[&fixed[..], more].concat());
        let _ = fs::remove_file(&out);
        result
    };
    sample(&[]).expect_success();
    write_checkpoint(&folder, "model001000.pt", PLAIN);
    sample(&[]).expect_error(1, &["ema_0.9999_001000.pt", "model001000.pt", "--weights ema"]);
    sample(&["--weights", "ema"]).expect_success();
    sample(&["--weights", "raw"]).expect_success();
    write_checkpoint(&folder, "ema_0.9999_002000.pt", PLAIN);
    sample(&["--weights", "ema"]).expect_error(1, &["several files of ema weights", "ema_0.9999_002000.pt"]);
    fs::remove_file(folder.join("model001000.pt")).unwrap();
    sample(&["--weights", "raw"]).expect_error(1, &["no raw weights"]);
}

#[test]
fn a_checkpoint_without_flags_says_how_to_give_them() {
    let place = Place::new();
    let folder = place.path("models");
    fs::create_dir_all(&folder).unwrap();
    write_checkpoint(&folder, "64x64_diffusion.pt", PLAIN);
    fs::rename(folder.join("flags.json"), folder.join("mine.txt")).unwrap();
    let (file, text) = (place.arg("models/64x64_diffusion.pt"), place.arg("models/mine.txt"));
    warpdiff(&["info", &file]).expect_error(1, &["flags", "--arch 64x64_diffusion"]);
    warpdiff(&["info", &file, "--arch", "nothing"]).expect_error(1, &["nothing", "256x256_diffusion"]);
    // Released flags that are another network's.
    let run = warpdiff(&["convert", &file, &place.arg("c"), "--arch", "cifar10_uncond_50M_500K"]);
    run.expect_error(1, &["timestep_scale"]);
    let info = warpdiff(&["info", &file, "--flags", &text, "--json"]).expect_success().json();
    assert_eq!(info["model"]["image"], serde_json::json!([3, 8, 8]));
    assert_eq!(info["model"]["num_train_timesteps"], 40);
    // Weights of another network: names are those of the file.
    let wider = place.arg("models/wider.txt");
    fs::write(&wider, PLAIN.replace("--num_res_blocks 1", "--num_res_blocks 2")).unwrap();
    let out = place.arg("x.npz");
    let run = warpdiff(&["sample", &file, "--flags", &wider, "--num", "1", "--steps", "1", "--out", &out]);
    run.expect_error(1, &["missing", "input_blocks.2.1.norm.weight"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn what_is_converted_has_the_same_weights_and_loads_as_a_folder() {
    let place = Place::new();
    let folder = place.path("run");
    fs::create_dir_all(&folder).unwrap();
    let weights = write_checkpoint(&folder, "model000010.pt", PLAIN);
    let (source, target) = (place.arg("run"), place.arg("converted"));
    warpdiff(&["convert", &source, &target]).expect_success();
    let (config, _) = read_config(Path::new(&target)).unwrap();
    assert_eq!((config.attention_head_dim, config.attention_heads), (Some(16), None));
    let params = parameters(&config).unwrap();
    assert_eq!(read_weights(&params, &WeightSource::open(Path::new(&target)).unwrap()).unwrap(), weights);
    let (ours, theirs) = (ModelFolder::open(&folder).unwrap(), ModelFolder::open(Path::new(&target)).unwrap());
    assert_eq!(ours.scheduler.betas, theirs.scheduler.betas);
    assert_eq!(theirs.scheduler.variance_type, VarianceType::LearnedRange);
    assert_eq!(read_weights(&params, &ours.weights().unwrap()).unwrap(), weights);
    // The same network, so the same samples by the same rules.
    let samples = |model: &str, name: &str| {
        let out = place.arg(name);
        let steps = ["--num", "2", "--steps", "4", "--compat", "guided-diffusion", "--sampler", "ddpm", "--quiet"];
        warpdiff(&[&["sample", model, "--out", &out], &steps[..]].concat()).expect_success();
        bytes(Path::new(&out))
    };
    assert_eq!(samples(&source, "a.npz"), samples(&target, "b.npz"));
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut array = NpzFile::open(path).unwrap().array("arr_0").unwrap().unwrap();
    let mut bytes = vec![0; array.shape.iter().product()];
    array.read(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_diffusers_cannot_express_is_not_converted() {
    let place = Place::new();
    for (change, words) in [
        (("--channel_mult 1,1", "--channel_mult 2,2"), &["sinusoid_width", "32", "64"][..]),
        (("--channel_mult 1,1", "--channel_mult 1,2"), &["attention_heads", "num_heads", "16, 32"]),
        (("--rescale_timesteps False", "--rescale_timesteps True"), &["timestep_scale", "rescale_timesteps"]),
        (("--image_size 8", "--large_size 8 --small_size 4"), &["condition_channels", "low-resolution"]),
    ] {
        let folder = place.path("run");
        fs::create_dir_all(&folder).unwrap();
        write_checkpoint(&folder, "model.pt", &PLAIN.replace(change.0, change.1));
        let target = place.arg("converted");
        warpdiff(&["convert", folder.to_str().unwrap(), &target]).expect_error(1, words);
        assert!(!Path::new(&target).exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn a_classifier_guides_and_its_scale_counts() {
    let place = Place::new();
    let model = case("a02_guided_neworder/model");
    let (model, classifier) = (model.to_str().unwrap().to_string(), model.join("classifier.pt"));
    let classifier = classifier.to_str().unwrap();
    let samples = |name: &str, more: &[&str]| {
        let out = place.arg(name);
        let fixed = ["sample", &model, "--num", "3", "--respacing", "4", "--quiet", "--out", &out];
        warpdiff(&[&fixed[..], more].concat()).expect_success();
        bytes(Path::new(&out))
    };
    let plain = samples("plain.npz", &[]);
    let guided = samples("guided.npz", &["--classifier", classifier, "--classifier-scale", "3"]);
    let zero = samples("zero.npz", &["--classifier", classifier, "--classifier-scale", "0"]);
    assert_ne!(guided, plain);
    assert_eq!(zero, plain);
    // The scale of flags.json is 1.
    let one = samples("one.npz", &["--classifier", classifier, "--classifier-scale", "1"]);
    assert_eq!(samples("default.npz", &["--classifier", classifier]), one);
    let ddim = ["--sampler", "ddim", "--respacing", "ddim4", "--classifier", classifier];
    let out = place.arg("ddim.npz");
    let fixed = ["sample", &model, "--num", "1", "--quiet", "--out", &out];
    warpdiff(&[&fixed[..], &ddim].concat()).expect_success();
    let solver = ["--sampler", "dpm++", "--steps", "4", "--classifier", classifier];
    warpdiff(&[&fixed[..], &solver].concat()).expect_error(1, &["classifier", "ddpm or ddim"]);
    warpdiff(&[&fixed[..], &["--respacing", "ddim3", "--classifier", "none.pt"]].concat())
        .expect_error(1, &["none.pt"]);
    warpdiff(&[&fixed[..], &["--respacing", "5000"]].concat()).expect_error(1, &["5000"]);
}

#[test]
fn an_upsampler_enlarges_what_it_is_given() {
    let place = Place::new();
    let model = case("a05_superres/model");
    let model = model.to_str().unwrap();
    let picture = |name: &str, level: u8, side: u32| {
        image::RgbImage::from_pixel(side, side, image::Rgb([level, 90, 20])).save(place.path(name)).unwrap();
        place.arg(name)
    };
    let (dark, light) = (picture("dark.png", 10, 4), picture("light.png", 240, 4));
    let samples = |name: &str, low_res: &str, more: &[&str]| {
        let out = place.arg(name);
        let fixed = ["sample", model, "--num", "2", "--respacing", "4", "--quiet", "--out", &out, "--low-res", low_res];
        warpdiff(&[&fixed[..], more].concat()).expect_success();
        bytes(Path::new(&out))
    };
    let (from_dark, from_light) = (samples("dark.npz", &dark, &[]), samples("light.npz", &light, &[]));
    assert_eq!(from_dark.len(), 2 * 16 * 16 * 3);
    assert_ne!(from_dark, from_light);
    // A folder of both: sample i enlarges image i, whatever else is in the batch.
    let folder = place.path("both");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&dark, folder.join("0.png")).unwrap();
    fs::copy(&light, folder.join("1.png")).unwrap();
    let both = samples("both.npz", folder.to_str().unwrap(), &["--batch", "1"]);
    assert_eq!(both[..768], from_dark[..768]);
    assert_eq!(both[768..], from_light[768..]);
    let out = place.arg("x.npz");
    let fixed = ["sample", model, "--num", "1", "--respacing", "2", "--quiet", "--out", &out];
    warpdiff(&fixed).expect_error(1, &["--low-res"]);
    let wrong = picture("wrong.png", 5, 6);
    warpdiff(&[&fixed[..], &["--low-res", &wrong]].concat()).expect_error(1, &["wrong.png"]);
    let plain = case("a02_guided_neworder/model");
    let plain = ["sample", plain.to_str().unwrap(), "--num", "1", "--respacing", "2", "--quiet", "--out", &out];
    warpdiff(&[&plain[..], &["--low-res", &dark]].concat()).expect_error(1, &["leave out --low-res"]);
}

#[test]
fn lenient_reading_passes_unknown_flags_and_tensors() {
    let place = Place::new();
    let folder = place.path("run");
    fs::create_dir_all(&folder).unwrap();
    write_checkpoint(&folder, "model.pt", PLAIN);
    fs::write(folder.join("flags.json"), format!("{PLAIN} --lr 1e-4")).unwrap();
    let refused = ModelFolder::open(&folder).unwrap_err().to_string();
    assert!(refused.contains("lr = \"1e-4\""), "{refused}");
    let lenient = OpenOptions { lenient: true, ..OpenOptions::default() };
    let (model, warnings) = ModelFolder::open_with(&folder, &lenient).unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(model.config, flags(PLAIN).network().unwrap().config);
    assert_eq!(UNetConfig::from_json(&model.config.to_json()).unwrap(), model.config);
}
