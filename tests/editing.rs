//! Editing images: what the formulas promise, the same on every backend, and the commands.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::models::{noise, oblong, save, tiny, unconditional, wide};
use common::process::{Place, Run, warpdiff};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Backend, Precision, cpu::Cpu};
use warpdiff::diffusion::repaint::Resampling;
use warpdiff::diffusion::{SamplerKind, Schedule};
use warpdiff::model::ModelFolder;
use warpdiff::reference::Reference;
use warpdiff::rng::{Sequence, Stream};
use warpdiff::sample::{EditOptions, Editor, Guide, SampleError};
use warpdiff::unet::UNetConfig;

fn open(config: &UNetConfig, timesteps: usize) -> (tempfile::TempDir, ModelFolder) {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), config, timesteps);
    let model = ModelFolder::open(folder.path()).unwrap();
    (folder, model)
}

fn options(model: &ModelFolder, steps: usize, eta: f64) -> EditOptions {
    let scheduler = model.scheduler.with_sampler(SamplerKind::Ddim);
    EditOptions { scheduler, steps, eta, seed: 5, guide: Guide::default(), batch: 2 }
}

fn edit<T>(
    model: &ModelFolder,
    options: EditOptions,
    backend: &dyn Backend,
    work: impl FnOnce(&mut Editor<'_>) -> Result<T, SampleError>,
) -> T {
    work(&mut Editor { model, options, backend, on_step: &mut |_| true }).unwrap()
}

fn cpu() -> Cpu {
    Cpu::new(Some(2)).unwrap()
}

/// Masks of `count` images with a random half kept.
fn masks(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| f32::from(u8::from(rng.random_bool(0.5)))).collect()
}

fn rmse(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

#[test]
fn every_backend_edits_alike() {
    // Odd sizes, two channels, learned variances and classes with a null class.
    let (_folder, model) = open(&oblong(), 12);
    let images = noise(3 * 12 * 20 * 2, 3);
    let masks = masks(images.len(), 4);
    let resampling = Resampling { jump_length: 2, times: 2 };
    let all = |backend: &dyn Backend| {
        let mut guided = options(&model, 6, 1.0);
        guided.guide = Guide { label: Some(1), scale: Some(1.5) };
        [
            edit(&model, guided.clone(), backend, |e| e.inpaint(&images, &masks, resampling)),
            edit(&model, guided, backend, |e| e.img2img(&images, 0.7)),
            edit(&model, options(&model, 6, 0.0), backend, |e| e.encoded(&images, 1.0)),
        ]
    };
    let golden = all(&Reference::default());
    let sim = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32);
    for backend in [&cpu() as &dyn Backend, &sim] {
        for (edit, (actual, golden)) in all(backend).iter().zip(&golden).enumerate() {
            let largest = golden.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let worst = actual.iter().zip(golden).fold(0.0f32, |m, (a, g)| m.max((a - g).abs()));
            assert!(worst <= 1e-4 * largest, "{} edit {edit}: {worst} of {largest}", backend.name());
        }
    }
}

#[test]
fn inpainting_keeps_what_it_is_told_to_and_does_not_depend_on_the_batch() {
    let (_folder, model) = open(&wide(), 20);
    let images = noise(3 * 16 * 16 * 3, 8).iter().map(|v| v.clamp(-1.0, 1.0)).collect::<Vec<_>>();
    let masks = masks(images.len(), 9);
    let resampling = Resampling { jump_length: 3, times: 2 };
    let run = |batch, seed| {
        let options = EditOptions { batch, seed, ..options(&model, 7, 1.0) };
        edit(&model, options, &cpu(), |e| e.inpaint(&images, &masks, resampling))
    };
    let whole = run(3, 1);
    assert!(whole == run(1, 1) && whole == run(2, 1), "the batch changes the result");
    let other = run(3, 2);
    let mut made_up = 0;
    for i in 0..images.len() {
        if masks[i] == 1.0 {
            assert_eq!((whole[i], other[i]), (images[i], images[i]), "element {i} was to be kept");
        } else {
            made_up += usize::from(whole[i] != other[i] && whole[i] != images[i]);
        }
    }
    assert!(made_up * 10 > images.len() * 4, "{made_up} of {} elements were made up", images.len());
}

#[test]
fn the_strength_says_where_the_way_starts() {
    let (_folder, model) = open(&unconditional(), 40);
    let images = noise(2 * 64, 1);
    let steps = 10;
    let with = |strength: f64| {
        edit(&model, options(&model, steps, 0.0), &cpu(), |e| {
            Ok((e.noised(&images, strength)?, e.img2img(&images, strength)?))
        })
    };
    assert_eq!(with(0.0), (images.clone(), images.clone()));
    let schedule = Schedule::new(&model.scheduler.betas).unwrap();
    for (strength, t) in [(1.0, 36), (0.5, 16), (0.1, 0)] {
        let level = schedule.alpha_bars[t];
        let (noised, _) = with(strength);
        for image in 0..2 {
            let mut eps = [0.0; 64];
            Sequence::new(5, Stream::InitialNoise, image as u32, 0).fill_normal(&mut eps);
            for i in 0..64 {
                let x = f64::from(images[image * 64 + i]);
                let expected = level.sqrt() * x + (1.0 - level).sqrt() * f64::from(eps[i]);
                assert!((f64::from(noised[image * 64 + i]) - expected).abs() < 1e-6, "{strength}");
            }
        }
    }
    // The last step from t = 0 goes nearly nowhere, the whole way far.
    assert!(rmse(&with(0.1).1, &images) * 3.0 < rmse(&with(1.0).1, &images));
}

#[test]
fn inversion_and_ddim_come_back_the_better_the_more_steps_there_are() {
    let (_folder, model) = open(&unconditional(), 400);
    let images = noise(3 * 64, 2);
    let errors: Vec<f64> = [10, 40, 160]
        .into_iter()
        .map(|steps| {
            let mut options = options(&model, steps, 0.0);
            options.scheduler.clip_sample = false;
            let back = edit(&model, options, &Reference::default(), |e| {
                let latents = e.encoded(&images, 1.0)?;
                assert!(rmse(&latents, &images) > 0.3, "the latents are the images");
                e.sampled(&latents, 1.0)
            });
            rmse(&back, &images)
        })
        .collect();
    println!("errors with 10, 40 and 160 steps: {errors:?}");
    assert!(errors[1] < errors[0] / 2.0 && errors[2] < errors[1] / 2.0, "{errors:?}");
}

#[test]
fn what_an_edit_cannot_do_is_said() {
    let (_folder, model) = open(&tiny(), 20);
    let images = noise(64, 2);
    let refused = |guide, sampler, strength: f64| {
        let mut options = EditOptions { guide, ..options(&model, 5, 0.0) };
        options.scheduler.sampler = sampler;
        let backend = cpu();
        let mut editor = Editor { model: &model, options, backend: &backend, on_step: &mut |_| true };
        editor.img2img(&images, strength).unwrap_err().to_string()
    };
    let none = Guide::default();
    assert!(refused(none, SamplerKind::UniPc, 0.5).contains("ddim or ddpm"));
    assert!(refused(none, SamplerKind::Ddim, 1.5).contains("between 0 and 1"));
    assert!(refused(Guide { label: Some(3), scale: None }, SamplerKind::Ddim, 0.5).contains("0..=2"));
    assert!(refused(Guide { label: None, scale: Some(2.0) }, SamplerKind::Ddim, 0.5).contains("needs a label"));
    let backend = cpu();
    let mut stop = |_| false;
    let mut editor = Editor { model: &model, options: options(&model, 5, 0.0), backend: &backend, on_step: &mut stop };
    assert!(matches!(editor.img2img(&images, 0.5), Err(SampleError::Stopped)));
}

/// A grey picture with a gradient.
fn picture(path: &Path, width: u32, height: u32) {
    image::GrayImage::from_fn(width, height, |x, y| image::Luma([(x * 30 + y * 3) as u8])).save(path).unwrap();
}

fn edit_command(kind: &str, model: &str, more: &[&str]) -> Run {
    warpdiff(&[&["edit", kind, model], more, &["--steps", "4", "--quiet"]].concat())
}

#[test]
fn the_commands_write_pictures_and_data() {
    let place = Place::new();
    let model = place.model("model", &tiny());
    let (a, b, mask) = (place.arg("a.png"), place.arg("b.png"), place.arg("mask.png"));
    picture(a.as_ref(), 8, 8);
    image::GrayImage::from_pixel(8, 8, image::Luma([200])).save(&b).unwrap();
    image::GrayImage::from_fn(8, 8, |x, _| image::Luma([if x < 4 { 255 } else { 0 }])).save(&mask).unwrap();
    let out = |name: &str| place.arg(name);
    let size = |name: &str| image::image_dimensions(place.path(name)).unwrap();
    let args = ["--mask", &mask, "--jump-length", "1", "--resamplings", "2", "--num", "2", "--out"];
    edit_command("inpaint", &model, &[&[a.as_str(), &b][..], &args, &[&out("inpaint.png")]].concat()).expect_success();
    edit_command("inpaint", &model, &[&[a.as_str(), &b][..], &args, &[&out("inpaint")]].concat()).expect_success();
    // The left half of both results of the first image is the image's.
    for name in ["inpaint/000000.png", "inpaint/000001.png"] {
        let (result, input) = (image::open(out(name)).unwrap().to_luma8(), image::open(&a).unwrap().to_luma8());
        assert!((0..8).all(|y| (0..4).all(|x| result.get_pixel(x, y) == input.get_pixel(x, y))), "{name}");
        assert!((0..8).any(|y| (4..8).any(|x| result.get_pixel(x, y) != input.get_pixel(x, y))), "{name}");
    }
    assert_ne!(fs::read(out("inpaint/000000.png")).unwrap(), fs::read(out("inpaint/000001.png")).unwrap());
    edit_command("img2img", &model, &[&a, "--label", "1", "--out", &out("i.png")]).expect_success();
    edit_command("interpolate", &model, &[&a, &b, "--num", "3", "--encode", "noise", "--out", &out("w.png")])
        .expect_success();
    let run = edit_command("reconstruct", &model, &["inpaint.npz", &a, "--json", "--out", &out("r.png")]);
    run.expect_error(1, &["inpaint.npz"]);
    let run = edit_command("reconstruct", &model, &[&a, &b, "--json", "--out", &out("r.png")]).expect_success();
    let errors =
        run.json()["errors"].as_array().unwrap().iter().map(|e| e["rmse"].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(errors.len() == 2 && errors.iter().all(|&e| e > 0.0 && e < 2.0), "{errors:?}");
    // Four images a row of 64 pixels, separators between; then two, five and three.
    assert_eq!(size("inpaint.png"), (4 * 66 + 2, 2 * 66 + 2));
    assert_eq!([size("i.png"), size("w.png"), size("r.png")].map(|s| s.0), [2 * 66 + 2, 5 * 66 + 2, 3 * 66 + 2]);
    // What one command wrote as .npz another reads.
    edit_command("img2img", &model, &[&a, &b, "--strength", "0", "--out", &out("same.npz")]).expect_success();
    edit_command("img2img", &model, &[&out("same.npz"), "--strength", "0", "--out", &out("same")]).expect_success();
    let (same, input) = (image::open(out("same/000000.png")).unwrap(), image::open(&a).unwrap());
    assert_eq!(same.as_bytes(), input.as_bytes());
}

#[test]
fn unsuitable_images_are_refused() {
    let place = Place::new();
    let model = place.model("model", &unconditional());
    let (good, wide, colour, mask) =
        (place.arg("good.png"), place.arg("wide.png"), place.arg("colour.png"), place.arg("mask.png"));
    picture(good.as_ref(), 8, 8);
    picture(mask.as_ref(), 8, 8);
    picture(wide.as_ref(), 9, 8);
    image::RgbImage::new(8, 8).save(&colour).unwrap();
    let before = place.entries();
    let out = place.arg("out.png");
    let img2img =
        |image: &str, more: &[&str]| edit_command("img2img", &model, &[&[image, "--out", &out], more].concat());
    img2img(&wide, &[]).expect_error(1, &["wide.png", "8 x 9 pixels", "8 x 8", "--fit"]);
    img2img(&colour, &[]).expect_error(1, &["colour.png", "RGB", "grey", "--fit"]);
    img2img(&place.arg("none.png"), &[]).expect_error(1, &["none.png"]);
    img2img(&good, &["--strength", "2"]).expect_error(1, &["strength", "between 0 and 1"]);
    img2img(&good, &["--label", "1"]).expect_error(1, &["not class-conditional"]);
    let inpaint = |masks: &[&str]| {
        edit_command("inpaint", &model, &[&[good.as_str(), &good, &good, "--out", &out][..], masks].concat())
    };
    inpaint(&["--mask", &mask, "--mask", &mask]).expect_error(1, &["2 masks for 3 images"]);
    inpaint(&["--mask", &wide]).expect_error(1, &["wide.png", "--fit"]);
    inpaint(&[]).expect_error(2, &["--mask"]);
    edit_command("img2img", &model, &[&good, "--out", &place.arg("a.gif")]).expect_error(1, &["animation"]);
    assert_eq!(place.entries(), before, "something was left behind");
    img2img(&colour, &["--fit"]).expect_success();
}
