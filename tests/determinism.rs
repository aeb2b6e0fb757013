//! The same seed gives the same image, whatever the batch, the threads or the backend; runs leave nothing behind.

mod common;

use common::late::Late;
use common::models::{load_random, noise, oblong, save, scheduler, tiny, wide};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use warpdiff::backend::{Backend, Executable, cpu::Cpu};
use warpdiff::diffusion::{
    LossWeighting, Objective, PredictionType, SamplerKind, Schedule, StepTable, TrainingObjective,
};
use warpdiff::graph::{NoiseSource, Plan};
use warpdiff::layout::nhwc_to_nchw;
use warpdiff::model::ModelFolder;
use warpdiff::program::{
    Batch, ForwardProgram, SamplingOptions, SamplingProgram, TrainingInputs, TrainingOptions, TrainingProgram,
};
use warpdiff::reference::Reference;
use warpdiff::sample::{Drawn, LabelChoice, SampleError, SampleOptions, Sampler};
use warpdiff::unet::UNetConfig;

const STEPS: usize = 4;

fn draw(
    model: &ModelFolder,
    sampler: SamplerKind,
    guidance: f64,
    count: usize,
    batch: usize,
    seed: u64,
    on: &dyn Backend,
) -> Vec<f32> {
    let options = SampleOptions {
        scheduler: model.scheduler.with_sampler(sampler),
        steps: STEPS,
        eta: if sampler == SamplerKind::Ddim { 0.5 } else { 0.0 },
        seed,
        labels: LabelChoice::Balanced,
        guidance,
        guidance_rescale: if guidance == 1.0 { 0.0 } else { 0.4 },
        batch,
    };
    let mut sampler = Sampler::new(model, options, on).unwrap();
    let ranges = (0..count).step_by(batch).map(|first| first..count.min(first + batch));
    ranges.flat_map(|range| sampler.run(range, &mut |_, _| true).unwrap()).collect()
}

fn open(config: &UNetConfig) -> (tempfile::TempDir, ModelFolder) {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), config, 50);
    let model = ModelFolder::open(folder.path()).unwrap();
    (folder, model)
}

/// A stream of batches has the images and pictures of each batch by itself, on a device whose results come late, too. There a
/// batch is handed over when the next has begun, and a stream that is stopped has handed over all that was drawn.
#[test]
fn streams_have_the_bits_of_single_batches() {
    let (_folder, model) = open(&oblong());
    let sampler = |on: &dyn Backend| {
        let options = SampleOptions {
            scheduler: model.scheduler.with_sampler(SamplerKind::Ddim),
            steps: STEPS,
            eta: 0.5,
            seed: 3,
            labels: LabelChoice::Balanced,
            guidance: 2.0,
            guidance_rescale: 0.0,
            batch: 2,
        };
        Sampler::new(&model, options, on).unwrap()
    };
    let ranges = [4..6, 6..8, 11..12];
    let mut single = sampler(&Cpu::new(Some(1)).unwrap());
    let expected: Vec<Vec<u8>> =
        ranges.iter().map(|r| single.draw_pictures(r.clone(), &mut |_| true).unwrap()).collect();
    let late = Late::new();
    for on in [&Cpu::new(Some(2)).unwrap() as &dyn Backend, &late] {
        let (mut pictures, mut begun, mut evaluations) = (Vec::new(), Vec::new(), Vec::new());
        late.runs.store(0, Ordering::Relaxed);
        let mut hand_over = |drawn: Drawn| {
            assert_eq!(drawn.indices(), ranges[pictures.len()]);
            begun.push(late.runs.load(Ordering::Relaxed));
            pictures.push(drawn.pictures()?);
            Ok::<(), SampleError>(())
        };
        let mut go_on = |done| {
            evaluations.push(done);
            true
        };
        sampler(on).stream(ranges.clone(), &mut go_on, &mut hand_over).unwrap();
        assert!(pictures == expected, "{}", on.name());
        assert!(evaluations.is_sorted() && evaluations.last() == Some(&(5 * STEPS)), "{evaluations:?}");
        if on.name() == "late" {
            assert!(begun[0] > STEPS && begun[1] > 2 * STEPS && begun[2] == 3 * STEPS, "{begun:?}");
        }
    }
    let mut drawn = Vec::new();
    let stopped = sampler(&late).stream(ranges, &mut |done| done < 2 * STEPS, &mut |batch| {
        drawn.push(batch.indices());
        Ok(())
    });
    assert!(matches!(stopped, Err(SampleError::Stopped)));
    assert_eq!((drawn.len(), drawn[0].clone()), (1, 4..6));
}

/// The VE sampler ends in [0, 1]; images are in [-1, 1] all the same, however they are fetched, and pictures show them.
#[test]
fn images_of_the_ve_sampler_are_in_the_range_of_all_others() {
    let (_folder, model) = open(&oblong());
    let mut scheduler = model.scheduler.with_sampler(SamplerKind::ScoreSde);
    (scheduler.score_sde.sigma_min, scheduler.score_sde.sigma_max) = (0.1, 0.5);
    let options = SampleOptions {
        scheduler,
        steps: STEPS,
        eta: 0.0,
        seed: 3,
        labels: LabelChoice::Balanced,
        guidance: 1.0,
        guidance_rescale: 0.0,
        batch: 2,
    };
    let mut sampler = Sampler::new(&model, options, &Cpu::new(Some(2)).unwrap()).unwrap();
    let [c, h, w] = sampler.image_shape();
    let images = sampler.run(0..2, &mut |_, _| true).unwrap();
    assert_eq!(bits(&images), bits(&sampler.draw(0..2, &mut |_| true).unwrap()));
    let pictures = sampler.draw_pictures(0..2, &mut |_| true).unwrap();
    let expected = nhwc_to_nchw(&pictures.iter().map(|&b| f32::from(b)).collect::<Vec<_>>(), [2, c, h, w]);
    assert!(expected.iter().any(|&b| 0.0 < b && b < 255.0));
    for (image, byte) in images.iter().zip(expected) {
        assert!((((image + 1.0) * 127.5).clamp(0.0, 255.0) - byte).abs() < 0.501, "{image} became {byte}");
    }
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|v| v.to_bits()).collect()
}

const SAMPLERS: [SamplerKind; 4] =
    [SamplerKind::Ddpm, SamplerKind::Ddim, SamplerKind::DpmSolverPp, SamplerKind::ScoreSde];

fn same_image_in_any_batch_on_any_threads(config: &UNetConfig) {
    let (_folder, model) = open(config);
    let cpus: Vec<Cpu> = (1..=3).map(|n| Cpu::new(Some(n)).unwrap()).collect();
    for sampler in SAMPLERS {
        for guidance in [1.0, 2.5] {
            let draw = |batch, threads: usize| draw(&model, sampler, guidance, 19, batch, 5, &cpus[threads - 1]);
            let expected = bits(&draw(1, 1));
            assert!(expected.windows(2).any(|w| w[0] != w[1]));
            for (batch, threads) in [(1, 2), (3, 3), (16, 1), (16, 2)] {
                let got = bits(&draw(batch, threads));
                let image = expected.len() / 19;
                let first = got.iter().zip(&expected).position(|(a, b)| a != b).map(|i| i / image);
                assert_eq!(
                    first, None,
                    "{sampler} x{guidance}: first image that differs, batch {batch}, {threads} threads"
                );
            }
        }
    }
}

#[test]
fn small_images() {
    same_image_in_any_batch_on_any_threads(&tiny());
}

#[test]
fn winograd_and_attention() {
    same_image_in_any_batch_on_any_threads(&wide());
}

#[test]
fn oblong_images_with_learned_variances() {
    same_image_in_any_batch_on_any_threads(&oblong());
}

#[test]
fn another_seed_gives_another_image() {
    let (_folder, model) = open(&tiny());
    let cpu = Cpu::new(Some(2)).unwrap();
    for sampler in SAMPLERS {
        let draw = |seed| draw(&model, sampler, 1.0, 2, 2, seed, &cpu);
        let (a, b) = (draw(0), draw(1));
        let different = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert!(different * 2 > a.len(), "{sampler}: {different} of {} pixels", a.len());
        // Seeds that differ beyond 32 bits are different seeds, too.
        assert_ne!(a, draw(1 << 32), "{sampler}");
        // Samples of one run are different images.
        assert_ne!(a[..a.len() / 2], a[a.len() / 2..], "{sampler}");
    }
}

#[test]
fn reference_and_cpu_draw_the_same_images() {
    for config in [tiny(), wide(), oblong()] {
        let (_folder, model) = open(&config);
        let cpu = Cpu::new(Some(2)).unwrap();
        for sampler in SAMPLERS {
            let draw = |on: &dyn Backend| draw(&model, sampler, 2.5, 2, 2, 11, on);
            let (fast, exact) = (draw(&cpu), draw(&Reference::default()));
            let worst = fast.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{sampler}, {:?}: worst difference {worst:e}", config.sample_size);
            // Scores of a network without training lead far away.
            let largest = exact.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            assert!(worst < 1e-5 * largest, "{sampler}: {worst:e} of {largest:e}");
        }
    }
}

fn training(config: &UNetConfig, n: usize) -> TrainingProgram {
    let scheduler = scheduler(config, 50);
    let schedule = Schedule::new(&scheduler.betas).unwrap();
    let learned = scheduler.variance_type.is_learned();
    let objective = if learned { Objective::hybrid(50) } else { Objective::Simple };
    let (epsilon, variance) = (PredictionType::Epsilon, scheduler.variance_type);
    let objective = TrainingObjective::new(schedule, epsilon, variance, objective, LossWeighting::None, 256);
    let (h, w) = config.height_width().unwrap();
    let options = TrainingOptions { objective: Arc::new(objective), optimizer: None, inputs: TrainingInputs::Drawn };
    TrainingProgram::new(config, Batch { n, h, w }, &options).unwrap()
}

/// Results of one run of a forward pass for given inputs.
fn forward(exe: &mut dyn Executable, program: &ForwardProgram, seed: u64) -> Vec<u64> {
    let len = exe.plan().graph().shape(program.x).numel();
    exe.write_f32(program.x, &noise(len, seed)).unwrap();
    exe.write_f32(program.t, &[3.0 + seed as f32, 40.0]).unwrap();
    exe.write_u32(program.class.unwrap(), &[seed as u32 % 3, 1]).unwrap();
    exe.run().unwrap();
    exe.read_f64(program.out).unwrap().iter().map(|v| v.to_bits()).collect()
}

/// Losses and all gradients of one training step.
fn gradients(exe: &mut dyn Executable, program: &TrainingProgram, seed: u64) -> Vec<u64> {
    let len = exe.plan().graph().shape(program.x0).numel();
    exe.write_f32(program.x0, &noise(len, seed)).unwrap();
    exe.write_u32(program.example_index, &[seed as u32, 9]).unwrap();
    exe.write_u32(program.key, &[1, 2]).unwrap();
    exe.write_u32(program.class.unwrap(), &[seed as u32 % 3, 1]).unwrap();
    exe.run().unwrap();
    let graph = exe.plan().graph();
    let grads = (0..graph.params().len()).filter_map(|i| graph.grad_at(i));
    let values: Vec<_> = [program.losses, program.grad_norm].into_iter().chain(grads).collect();
    values.into_iter().flat_map(|v| exe.read_f64(v).unwrap()).map(f64::to_bits).collect()
}

#[test]
fn a_run_leaves_nothing_behind() {
    for config in [tiny(), wide(), oblong()] {
        let (h, w) = config.height_width().unwrap();
        let program = ForwardProgram::new(&config, Batch { n: 2, h, w }, false).unwrap();
        let step = training(&config, 2);
        for backend in [&Cpu::new(Some(2)).unwrap() as &dyn Backend, &Reference::default()] {
            let mut exe = backend.compile(program.plan.clone()).unwrap();
            load_random(exe.as_mut(), 1);
            let first = forward(exe.as_mut(), &program, 1);
            assert_ne!(first, forward(exe.as_mut(), &program, 2));
            assert_eq!(first, forward(exe.as_mut(), &program, 1), "{}", backend.name());

            let mut exe = backend.compile(step.plan.clone()).unwrap();
            load_random(exe.as_mut(), 1);
            let first = gradients(exe.as_mut(), &step, 1);
            assert_ne!(first, gradients(exe.as_mut(), &step, 2));
            assert_eq!(first, gradients(exe.as_mut(), &step, 1), "{}", backend.name());
        }
    }
}

#[test]
fn a_sampler_that_ran_before_draws_the_same_images() {
    let (_folder, model) = open(&tiny());
    let options = |sampler| SampleOptions {
        scheduler: model.scheduler.with_sampler(sampler),
        steps: STEPS,
        eta: 0.0,
        seed: 0,
        labels: LabelChoice::Balanced,
        guidance: 2.0,
        guidance_rescale: 0.4,
        batch: 3,
    };
    for kind in SAMPLERS {
        for backend in [&Cpu::new(Some(2)).unwrap() as &dyn Backend, &Reference::default()] {
            let mut sampler = Sampler::new(&model, options(kind), backend).unwrap();
            let mut run = |range| bits(&sampler.run(range, &mut |_, _| true).unwrap());
            let first = run(0..3);
            assert_ne!(first, run(3..6));
            assert_eq!(first, run(0..3), "{kind} on {}", backend.name());
        }
    }
}

#[test]
fn values_that_live_together_never_overlap() {
    use warpdiff::graph::plan::find_overlap;
    let mut plans = 0;
    for config in [tiny(), wide(), oblong(), UNetConfig { dropout: 0.2, layers_per_block: 2, ..wide() }] {
        let (h, w) = config.height_width().unwrap();
        for n in [1, 3] {
            let batch = Batch { n, h, w };
            let mut check = |what: &str, plan: &Plan| {
                assert_eq!(find_overlap(plan), None, "{what} {config:?}");
                plans += 1;
            };
            check("forward", &ForwardProgram::new(&config, batch, false).unwrap().plan);
            check("forward with taps", &ForwardProgram::new(&config, batch, true).unwrap().plan);
            check("training", &training(&config, n).plan);
            for guidance in [None, Some(3.0.into())] {
                let table = Arc::new(StepTable::build(&scheduler(&config, 50), 10, 0.0).unwrap());
                let options = SamplingOptions { guidance, ..SamplingOptions::new(table, NoiseSource::Philox) };
                check("sampling", &SamplingProgram::new(&config, batch, &options).unwrap().plan);
            }
        }
    }
    assert_eq!(plans, 40);
}
