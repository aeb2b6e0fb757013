//! Checkpoints: what they hold, how they resume, what is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Options, Sim};
use warpdiff::backend::{Precision, Store};
use warpdiff::diffusion::SchedulerConfig;
use warpdiff::graph::ParamId;
use warpdiff::io::{FileError, TensorView, safetensors_write};
use warpdiff::model::{ModelError, ModelFolder, read_weights};
use warpdiff::train::{Checkpoint, Decay, TrainError, TrainOptions, Trainer, TrainingState};
use warpdiff::unet::{SampleSize, UNetConfig};

use crate::support::*;

/// Name, shape and elements of a tensor in a file.
type Named = (String, Vec<usize>, Vec<f32>);

/// A finished run of three steps in `root`/m.
fn trained(root: &Path) -> (Trainer, std::path::PathBuf) {
    let path = root.join("m");
    let mut trainer = start(&cpu(1), options(3), &path).unwrap();
    finish(&mut trainer);
    (trainer, path)
}

fn resume(path: &Path, options: TrainOptions) -> Result<Trainer, TrainError> {
    Trainer::resume(&cpu(1), path, digits(), options)
}

#[test]
fn a_resumed_run_has_the_bits_of_one_without_a_break() {
    let folder = tempfile::tempdir().unwrap();
    let options = TrainOptions {
        flip: true,
        label_dropout: 0.2,
        weight_decay: 0.01,
        decay: Decay::Cosine { final_learning_rate: 1e-6 },
        checkpoint_every: 3,
        ..options(8)
    };
    let mut whole = start(&cpu(1), options.clone(), &folder.path().join("whole")).unwrap();
    finish(&mut whole);
    let expected = bits(&whole);
    let parameters: usize = whole.params().iter().map(|p| p.numel()).sum();
    assert_eq!(expected.len(), 4 * parameters);
    for breaks in [vec![1], vec![3, 4], vec![2, 5, 7]] {
        let path = folder.path().join(format!("{breaks:?}"));
        let mut trainer = start(&cpu(2), options.clone(), &path).unwrap();
        for (i, stop) in breaks.into_iter().enumerate() {
            while trainer.steps_done() < stop {
                trainer.step().unwrap();
            }
            trainer.save().unwrap();
            drop(trainer);
            // The number of threads changes at each break.
            trainer = Trainer::resume(&cpu(1 + i % 2), &path, digits(), options.clone()).unwrap();
        }
        finish(&mut trainer);
        assert!(bits(&trainer) == expected);
        assert_eq!(trainer.log(), whole.log());
        assert!(trainer.state().seconds > 0.0);
    }
    // The files are the same too, but for the time.
    let again = folder.path().join("[1]");
    for file in ["unet/diffusion_pytorch_model.safetensors", "training/moment2.safetensors", "training/log.csv"] {
        assert!(fs::read(again.join(file)).unwrap() == fs::read(whole.folder().join(file)).unwrap(), "{file}");
    }
}

#[test]
fn more_steps_extend_a_constant_rate_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let (_, path) = trained(folder.path());
    let mut longer = resume(&path, options(5)).unwrap();
    finish(&mut longer);
    let mut whole = start(&cpu(1), options(5), &folder.path().join("whole")).unwrap();
    finish(&mut whole);
    assert!(bits(&longer) == bits(&whole));
    assert_eq!(TrainingState::read(&path).unwrap().unwrap().options.steps, 5);
    assert!(matches!(refusal(resume(&path, options(4))), TrainError::AlreadyPast { step: 5, asked: 4, .. }));
    // Nothing left to do is no error.
    assert!(finish(&mut resume(&path, options(5)).unwrap()).is_empty());
}

#[test]
fn samplers_find_a_model_with_the_average() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let config = UNetConfig { sample_size: None, ..conditional() };
    let mut trainer = start_with(&cpu(1), config, scheduler(), digits(), options(3), &path).unwrap();
    finish(&mut trainer);
    let model = ModelFolder::open(&path).unwrap();
    assert_eq!(model.config, UNetConfig { sample_size: Some(SampleSize::HeightWidth([8, 8])), ..conditional() });
    // Files say the sampler's default spacing in full.
    let spacing = Some(scheduler().spacing());
    assert_eq!(model.scheduler, SchedulerConfig { timestep_spacing: spacing, ..scheduler() });
    let weights = read_weights(trainer.params(), &model.weights().unwrap()).unwrap();
    assert_eq!(weights, trainer.arrays(Store::Ema).unwrap());
    assert_ne!(weights, trainer.arrays(Store::Params).unwrap());
    let state = TrainingState::read(&path).unwrap().unwrap();
    assert_eq!((state.step, state.dataset.levels, state.dataset.len), (3, 17, 1797));
    assert_eq!(state.dataset.class_names[9], "9");
    assert_eq!(state.options, options(3));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.log, trainer.log());
    for store in Store::ALL {
        assert_eq!(checkpoint.arrays(store, trainer.params()).unwrap(), trainer.arrays(store).unwrap());
    }
    let header = fs::read_to_string(path.join("training/log.csv")).unwrap();
    assert!(header.starts_with("step,loss,simple,vb,grad_norm,lr"));
}

#[test]
fn changed_options_and_data_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, path) = trained(folder.path());
    let mut other = TrainOptions { seed: 6, batch_size: 8, checkpoint_every: 2, ..options(9) };
    other.ema.max_decay = 0.5;
    let error = refusal(resume(&path, other));
    let text = error.to_string();
    assert!(matches!(error, TrainError::OptionsChanged { ref differences, .. } if differences.len() == 3), "{text}");
    assert!(text.contains("seed: 5 -> 6") && text.contains("batch_size: 4 -> 8") && text.contains("ema"), "{text}");
    assert!(resume(&path, TrainOptions { checkpoint_every: 2, ..options(3) }).is_ok());

    let set = Formula { len: 1797, ..Formula::default() };
    let error = refusal(Trainer::resume(&cpu(1), &path, Arc::new(set), options(3)));
    let text = error.to_string();
    assert!(matches!(error, TrainError::DatasetChanged { ref differences, .. } if differences.len() == 2), "{text}");
    assert!(text.contains("classes") && text.contains("fingerprint"), "{text}");
    let invalid = refusal(resume(&path, TrainOptions { steps: 0, ..options(3) }));
    assert!(matches!(invalid, TrainError::Option { name: "steps", .. }));
}

/// A run in bf16 in the simulator: interrupted, it ends with the bits of a run without a break; in f32 it does not go on.
#[test]
fn a_run_in_bf16_goes_on_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::Bf16);
    let run = |steps: u64, name: &str| {
        let mut trainer = start(&backend, options(steps), &folder.path().join(name)).unwrap();
        finish(&mut trainer);
        trainer
    };
    let whole = run(3, "whole");
    drop(run(2, "broken"));
    let path = folder.path().join("broken");
    let text = refusal(resume(&path, options(3))).to_string();
    assert!(text.contains("precision: bf16 -> f32"), "{text}");
    let mut resumed = Trainer::resume(&backend, &path, digits(), options(3)).unwrap();
    finish(&mut resumed);
    let weights = |trainer: &Trainer, i: usize| {
        let mut data = vec![0.0f32; trainer.params()[i].numel()];
        trainer.executable().read_param(Store::Params, ParamId::new(i), &mut data).unwrap();
        data.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for i in 0..whole.params().len() {
        assert_eq!(weights(&resumed, i), weights(&whole, i), "{}", whole.params()[i].name);
    }
}

#[test]
fn damaged_checkpoints_are_refused_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (trainer, path) = trained(folder.path());
    let refused = |file: &str, damage: &dyn Fn(&Path), expected: fn(&TrainError) -> bool| {
        let copy = folder.path().join("copy");
        for inner in ["", "unet", "scheduler", "training"] {
            fs::create_dir_all(copy.join(inner)).unwrap();
            for entry in fs::read_dir(path.join(inner)).unwrap().map(Result::unwrap) {
                if entry.path().is_file() {
                    fs::copy(entry.path(), copy.join(inner).join(entry.file_name())).unwrap();
                }
            }
        }
        assert!(resume(&copy, options(3)).is_ok());
        damage(&copy.join(file));
        let error = refusal(resume(&copy, options(3)));
        assert!(expected(&error), "{file}: {error:?}");
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name), "{file}: {error}");
        fs::remove_dir_all(&copy).unwrap();
    };
    let remove = |file: &Path| fs::remove_file(file).unwrap();
    let cut = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 5]).unwrap();
    };
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let arrays =
        [weights, "training/weights.safetensors", "training/moment1.safetensors", "training/moment2.safetensors"];
    for file in arrays {
        refused(file, &remove, |e| matches!(e, TrainError::Missing { .. }));
        refused(file, &cut, |e| matches!(e, TrainError::File(FileError::Truncated { .. })));
    }
    refused("training/log.csv", &remove, |e| matches!(e, TrainError::Missing { .. }));
    refused("training/log.csv", &|f| fs::write(f, "step\n").unwrap(), |e| matches!(e, TrainError::Malformed { .. }));
    refused("training/state.json", &remove, |e| matches!(e, TrainError::NotACheckpoint { .. }));
    refused("training/state.json", &cut, |e| matches!(e, TrainError::Malformed { .. }));
    let version = |f: &Path| {
        let text = fs::read_to_string(f).unwrap();
        fs::write(f, text.replace("\"format\": 1", "\"format\": 7")).unwrap();
    };
    refused("training/state.json", &version, |e| matches!(e, TrainError::Format { found: 7, .. }));
    refused("unet/config.json", &|f| fs::write(f, "{").unwrap(), |e| {
        matches!(e, TrainError::Model(ModelError::Config { .. }))
    });

    // One tensor of another shape, one that is missing, one that is no number.
    let write = |file: &Path, change: &dyn Fn(&mut Vec<Named>)| {
        let mut tensors = Vec::new();
        for (spec, data) in trainer.params().iter().zip(trainer.arrays(Store::Moment1).unwrap()) {
            for (i, part) in spec.parts.iter().enumerate() {
                tensors.push((part.name.clone(), part.file_shape.clone(), spec.export(i, &data)));
            }
        }
        change(&mut tensors);
        let views: Vec<_> = tensors.iter().map(|(n, s, d)| (n.as_str(), TensorView::f32(s, d))).collect();
        safetensors_write::write(file, &views, &[]).unwrap();
    };
    let moment = "training/moment1.safetensors";
    let mismatch: fn(&TrainError) -> bool = |e| matches!(e, TrainError::Model(ModelError::Mismatch { .. }));
    refused(moment, &|f| write(f, &|t| drop(t.pop())), mismatch);
    refused(moment, &|f| write(f, &|t| t[0] = (t[0].0.clone(), vec![1], vec![0.0])), mismatch);
    refused(moment, &|f| write(f, &|t| t[1].2[0] = f32::NAN), |e| {
        matches!(e, TrainError::File(FileError::NonFinite { .. }))
    });
}

#[test]
fn only_folders_of_ours_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, path) = trained(folder.path());
    let error = refusal(start(&cpu(1), options(3), &path));
    assert!(matches!(error, TrainError::CheckpointExists { step: 3, .. }), "{error}");

    // A file of the user's, at any depth, is never deleted.
    for name in ["notes.txt", "unet/notes.txt", "training/plot.png"] {
        let file = path.join(name);
        fs::write(&file, "mine").unwrap();
        let error = trainer.save().unwrap_err();
        assert!(matches!(&error, TrainError::ForeignFolder { found, .. } if found == name), "{error}");
        assert!(refusal(resume(&path, options(4))).to_string().contains(name));
        trainer.save_to(&folder.path().join("elsewhere")).unwrap();
        fs::remove_file(file).unwrap();
    }
    trainer.save().unwrap();

    // A model that was trained elsewhere has the same names, but no state.
    let foreign = folder.path().join("foreign");
    fs::create_dir_all(foreign.join("unet")).unwrap();
    fs::write(foreign.join("unet/config.json"), "{}").unwrap();
    let error = refusal(start(&cpu(1), options(3), &foreign));
    assert!(matches!(&error, TrainError::ForeignFolder { found, .. } if found == "unet"), "{error}");
    assert!(matches!(trainer.save_to(&foreign), Err(TrainError::ForeignFolder { .. })));
    assert!(TrainingState::read(&foreign).unwrap().is_none());
    assert!(matches!(refusal(resume(&foreign, options(3))), TrainError::NotACheckpoint { .. }));
    assert_eq!(fs::read_to_string(foreign.join("unet/config.json")).unwrap(), "{}");

    // An empty folder will do, a file will not.
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    finish(&mut start(&cpu(1), options(1), &empty).unwrap());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(refusal(start(&cpu(1), options(1), &file)), TrainError::File(_)));
}

/// What a writer that is killed leaves behind is neither read nor in the way, and is cleaned up.
#[test]
fn left_overs_of_a_killed_writer_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (trainer, path) = trained(folder.path());
    let stale = folder.path().join(".m.tmp-4194305-0");
    fs::create_dir_all(stale.join("training")).unwrap();
    fs::write(stale.join("training/state.json"), "{").unwrap();
    let mut resumed = resume(&path, options(4)).unwrap();
    assert!(bits(&resumed) == bits(&trainer));
    finish(&mut resumed);
    assert!(!stale.exists());
    // Between the two renames of a file system that cannot swap, the checkpoint has another name.
    fs::rename(&path, folder.path().join(".m.old")).unwrap();
    assert_eq!(TrainingState::read(&path).unwrap().unwrap().step, 4);
    let again = resume(&path, options(4)).unwrap();
    assert!(bits(&again) == bits(&resumed) && path.is_dir());
}

#[test]
fn checkpoints_come_at_their_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    let options = TrainOptions { checkpoint_every: 2, ..options(5) };
    let mut trainer = start(&cpu(1), options, &path).unwrap();
    let mut seen = Vec::new();
    let step = |path: &Path| TrainingState::read(path).unwrap().map(|state| state.step);
    trainer.run(&|| false, &mut |_| seen.push(step(&path))).unwrap();
    // on_step comes before the checkpoint of its step.
    assert_eq!(seen, [None, None, Some(2), Some(2), Some(4)]);
    assert_eq!(step(&path), Some(5));
}
