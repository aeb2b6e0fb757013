//! Runs: they learn, they agree between backends, they stop when they must.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use warpdiff::backend::Store;
use warpdiff::data::{Dataset, dataset_index};
use warpdiff::diffusion::{BetaConfig, LossWeighting, Objective, PredictionType, VarianceType};
use warpdiff::reference::Reference;
use warpdiff::rng::split_seed;
use warpdiff::train::{
    Decay, Ema, EmaWarmup, Existing, NewRun, RunEnd, TrainError, TrainOptions, Trainer, TrainingState,
};
use warpdiff::unet::{TimeEmbeddingType, UNetConfig};

use crate::support::*;

#[test]
fn the_loss_falls_on_the_digits() {
    let folder = tempfile::tempdir().unwrap();
    let options = TrainOptions { batch_size: 16, learning_rate: 3e-3, warmup_steps: 10, ..options(150) };
    let mut trainer = start(&cpu(2), options, &folder.path().join("m")).unwrap();
    let reports = finish(&mut trainer);
    assert_eq!(reports.len(), 150);
    let mean = |r: &[warpdiff::train::StepReport]| r.iter().map(|r| r.loss).sum::<f64>() / r.len() as f64;
    let (first, last) = (mean(&reports[..10]), mean(&reports[130..]));
    // An untrained network predicts about zero, whose error against unit noise is 1.
    assert!((0.8..1.5).contains(&first), "{first}");
    assert!(last < 0.55 * first, "{first} -> {last}");
}

/// The same three steps in f64 and f32. Dropout, flips and label dropout are on, so that their counters must agree too.
#[test]
fn cpu_and_reference_agree() {
    for (objective, variance, prediction) in [
        (Objective::Simple, VarianceType::FixedSmall, PredictionType::Epsilon),
        (Objective::hybrid(100), VarianceType::LearnedRange, PredictionType::VPrediction),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = conditional();
        config.out_channels = if variance.is_learned() { 2 } else { 1 };
        let mut scheduler = scheduler();
        (scheduler.variance_type, scheduler.prediction_type) = (variance, prediction);
        let options = TrainOptions {
            objective,
            batch_size: 2,
            flip: true,
            label_dropout: 0.5,
            weight_decay: 0.01,
            weighting: LossWeighting::MinSnr { gamma: 5.0 },
            ..options(3)
        };
        let run = |backend: &dyn warpdiff::backend::Backend, name: &str| {
            let (config, scheduler, options) = (config.clone(), scheduler.clone(), options.clone());
            let path = folder.path().join(name);
            let mut trainer = start_with(backend, config, scheduler, digits(), options, &path).unwrap();
            finish(&mut trainer)
        };
        let (cpu, reference) = (run(&cpu(2), "cpu"), run(&Reference::default(), "ref"));
        for (c, r) in cpu.iter().zip(&reference) {
            for (name, a, b) in
                [("loss", c.loss, r.loss), ("simple", c.simple, r.simple), ("grad_norm", c.grad_norm, r.grad_norm)]
            {
                assert!((a - b).abs() < 1e-5 * b.abs(), "{objective:?} step {} {name}: {a} vs {b}", c.step);
            }
            assert!((c.vb - r.vb).abs() <= 1e-4 * r.vb.abs(), "vb {} vs {}", c.vb, r.vb);
            assert_eq!((c.vb != 0.0), (objective != Objective::Simple));
        }
    }
}

#[test]
fn the_average_follows_its_recurrence_and_starts_at_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(4);
    options.ema = Ema { max_decay: 0.6, warmup: EmaWarmup::Power { inv_gamma: 1.0, power: 0.75 } };
    let mut trainer = start(&cpu(1), options, &folder.path().join("m")).unwrap();
    let mut expected = trainer.arrays(Store::Params).unwrap().concat();
    assert_eq!(trainer.arrays(Store::Ema).unwrap().concat(), expected);
    for k in 1..=4 {
        let report = trainer.step().unwrap();
        let decay = (1.0 - (1.0 + k as f64).powf(-0.75)).min(0.6);
        assert_eq!((report.step, report.ema_decay), (k, decay));
        assert_eq!(report.lr, if k < 3 { 2e-3 * k as f64 / 3.0 } else { 2e-3 });
        let weights = trainer.arrays(Store::Params).unwrap().concat();
        let ema = trainer.arrays(Store::Ema).unwrap().concat();
        for ((e, w), ema) in expected.iter_mut().zip(&weights).zip(&ema) {
            *e = (decay * f64::from(*e) + (1.0 - decay) * f64::from(*w)) as f32;
            assert!((*e - ema).abs() <= 1e-6 * (1.0 + e.abs()));
        }
    }
    assert!(matches!(trainer.step(), Err(TrainError::Complete { steps: 4 })));
}

#[test]
fn a_run_that_diverges_stops_and_leaves_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    finish(&mut start(&cpu(1), options(3), &path).unwrap());
    let before = fs::read(path.join("training/weights.safetensors")).unwrap();
    let wild = TrainOptions { learning_rate: 1e30, warmup_steps: 0, checkpoint_every: 5, ..options(20) };
    let mut trainer = Trainer::new(NewRun {
        backend: &cpu(1),
        config: conditional(),
        scheduler: scheduler(),
        dataset: digits(),
        options: wild,
        folder: path.clone(),
        existing: Existing::Overwrite,
    })
    .unwrap();
    let error = trainer.run(&|| false, &mut |_| {}).unwrap_err();
    let TrainError::Diverged { step, loss, grad_norm } = error else { panic!("{error}") };
    assert!(step <= 4 && !(loss.is_finite() && grad_norm.is_finite()));
    assert!(error.to_string().contains(&format!("step {step}")));
    assert_eq!(trainer.log().len() as u64, step - 1);
    // Once lost, always lost.
    assert!(matches!(trainer.step(), Err(TrainError::Diverged { .. })));
    assert!(matches!(trainer.save(), Err(TrainError::Diverged { .. })));
    assert!(matches!(trainer.save_to(&folder.path().join("n")), Err(TrainError::Diverged { .. })));
    assert!(!folder.path().join("n").exists());
    assert_eq!(fs::read(path.join("training/weights.safetensors")).unwrap(), before);
    assert_eq!(TrainingState::read(&path).unwrap().unwrap().step, 3);
    assert!(Trainer::resume(&cpu(1), &path, digits(), options(4)).unwrap().step().is_ok());
}

/// A finite loss can hide weights that overflowed in the update after it.
#[test]
fn weights_that_are_no_numbers_are_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    finish(&mut start(&cpu(1), options(3), &path).unwrap());
    // Decoupled weight decay of 3e38 at rate 1e3 overflows f32 in the first update.
    let wild =
        TrainOptions { learning_rate: 1e3, weight_decay: 3e38, warmup_steps: 0, checkpoint_every: 1, ..options(9) };
    let mut trainer = Trainer::new(NewRun {
        backend: &cpu(1),
        config: conditional(),
        scheduler: scheduler(),
        dataset: digits(),
        options: wild,
        folder: path.clone(),
        existing: Existing::Overwrite,
    })
    .unwrap();
    let error = trainer.run(&|| false, &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("weight"));
    assert_eq!(TrainingState::read(&path).unwrap().unwrap().step, 3);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_broken_image_stops_the_run_after_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let options = options(30);
    let item = dataset_index(options.seed, 17, 37);
    let whole = Formula::default();
    let broken = Formula { broken: Some(item), ..whole.clone() };
    let set: Arc<dyn Dataset> = Arc::new(broken);
    let mut trainer = start_with(&cpu(1), conditional(), scheduler(), set, options.clone(), &path).unwrap();
    let error = trainer.run(&|| false, &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::Data { step: 5, .. }), "{error}");
    // The trainer is as it was: trying again meets the same image, not a dead thread.
    assert!(matches!(trainer.step(), Err(TrainError::Data { step: 5, .. })));
    assert_eq!(TrainingState::read(&path).unwrap().unwrap().step, 4);
    let mut resumed =
        Trainer::resume(&cpu(1), &path, Arc::new(whole.clone()), TrainOptions { steps: 7, ..options.clone() }).unwrap();
    finish(&mut resumed);
    let uncut = TrainOptions { steps: 7, ..options };
    let mut uncut =
        start_with(&cpu(1), conditional(), scheduler(), Arc::new(whole), uncut, &folder.path().join("u")).unwrap();
    finish(&mut uncut);
    assert!(bits(&resumed) == bits(&uncut));
}

#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = start(&cpu(1), options(7), &folder.path().join("whole")).unwrap();
    assert_eq!(whole.run(&|| false, &mut |_| {}).unwrap(), RunEnd::Finished { step: 7 });
    for stop_at in [0, 1, 4] {
        let path = folder.path().join(format!("stopped at {stop_at}"));
        let done = AtomicU64::new(0);
        let mut first = start(&cpu(1), options(7), &path).unwrap();
        let end =
            first.run(&|| done.load(Ordering::Relaxed) >= stop_at, &mut |r| done.store(r.step, Ordering::Relaxed));
        assert_eq!(end.unwrap(), RunEnd::Interrupted { step: stop_at });
        drop(first);
        let mut second = Trainer::resume(&cpu(1), &path, digits(), options(7)).unwrap();
        assert_eq!(second.steps_done(), stop_at);
        finish(&mut second);
        assert!(bits(&second) == bits(&whole), "stopped at {stop_at}");
        assert_eq!(second.log(), whole.log());
    }
}

#[test]
fn models_that_cannot_be_trained_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let mut learned = scheduler();
    learned.variance_type = VarianceType::LearnedRange;
    let two = UNetConfig { out_channels: 2, ..conditional() };
    let run = |config: UNetConfig, scheduler, objective| {
        let options = TrainOptions { objective, ..options(3) };
        refusal(start_with(&cpu(1), config, scheduler, digits(), options, &path))
    };
    let error = run(two.clone(), learned.clone(), Objective::Simple);
    assert!(matches!(error, TrainError::Untrainable { key: "variance_type", .. }), "{error}");
    let error = run(conditional(), learned, Objective::hybrid(100));
    assert!(matches!(error, TrainError::Config(_)), "{error}");
    let error = run(two, scheduler(), Objective::Simple);
    assert!(matches!(error, TrainError::Config(_)), "{error}");
    let fourier = UNetConfig { time_embedding_type: TimeEmbeddingType::Fourier, ..conditional() };
    let error = run(fourier, scheduler(), Objective::Simple);
    assert!(matches!(error, TrainError::Untrainable { key: "time_embedding_type", .. }), "{error}");
    let mut zero_snr = scheduler();
    zero_snr.betas = BetaConfig { rescale_zero_terminal_snr: true, ..BetaConfig::linear(100) };
    let error = run(conditional(), zero_snr, Objective::Vlb);
    assert!(matches!(error, TrainError::Diffusion(_)), "{error}");
    let mut no_betas = scheduler();
    no_betas.betas = BetaConfig::linear(0);
    assert!(matches!(run(conditional(), no_betas, Objective::Simple), TrainError::Diffusion(_)));
    let bad = UNetConfig { norm_num_groups: Some(3), ..conditional() };
    assert!(matches!(run(bad, scheduler(), Objective::Simple), TrainError::Config(_)));
    let options = TrainOptions { steps: 0, ..options(1) };
    assert!(matches!(refusal(start(&cpu(1), options, &path)), TrainError::Option { name: "steps", .. }));
    assert!(!path.exists());
}

#[test]
fn seeds_change_weights_and_noise_but_not_by_halves() {
    let folder = tempfile::tempdir().unwrap();
    let first_loss = |seed: u64| {
        let options = TrainOptions { seed, ..options(1) };
        start(&cpu(1), options, &folder.path().join("m")).unwrap().step().unwrap().loss
    };
    assert_eq!(first_loss(3), first_loss(3));
    assert_ne!(first_loss(3), first_loss(4));
    assert_eq!(split_seed(1 << 32 | 3), [3, 1]);
    assert_ne!(first_loss(3), first_loss(1 << 32 | 3));
}

#[test]
fn a_cosine_run_ends_at_its_final_rate() {
    let folder = tempfile::tempdir().unwrap();
    let options = TrainOptions { decay: Decay::Cosine { final_learning_rate: 1e-5 }, ..options(6) };
    let reports = finish(&mut start(&cpu(1), options, &folder.path().join("m")).unwrap());
    assert_eq!(reports.last().unwrap().lr, 1e-5);
}

/// AdamW hardly sees a common factor of all gradients, so clipping is judged by the first moment: (1 - beta1) g / |g| * limit.
#[test]
fn gradients_are_clipped_to_the_norm_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let first_moment = |max_grad_norm| {
        let options = TrainOptions { max_grad_norm, ..options(1) };
        let mut trainer = start(&cpu(1), options, &folder.path().join("m")).unwrap();
        let norm = trainer.step().unwrap().grad_norm;
        let moment = trainer.arrays(Store::Moment1).unwrap().concat();
        (moment.iter().map(|&m| f64::from(m).powi(2)).sum::<f64>().sqrt(), norm)
    };
    let (free, norm) = first_moment(None);
    assert!((free - 0.1 * norm).abs() < 1e-5 * free);
    let (clipped, _) = first_moment(Some(norm / 8.0));
    assert!((clipped - 0.1 * norm / 8.0).abs() < 1e-4 * clipped);
    assert_eq!(first_moment(Some(2.0 * norm)).0, free);
}
