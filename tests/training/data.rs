//! Batches: content, order, flips, label dropout, and what is refused.

use std::sync::Arc;

use warpdiff::data::{Dataset, dataset_index};
use warpdiff::train::{Batches, Examples, Loader, TrainError, TrainOptions};
use warpdiff::unet::{ClassEmbedding, SampleSize, UNetConfig};

use crate::support::{Formula, conditional, config, digits, options};

fn batch(batches: &Batches, step: u64) -> Examples {
    let mut examples = Examples::default();
    batches.fill(step, &mut examples).unwrap();
    examples
}

fn rgb() -> (Formula, UNetConfig) {
    let set = Formula { size: (4, 6), channels: 3, ..Formula::default() };
    let config = UNetConfig {
        sample_size: Some(SampleSize::HeightWidth([4, 6])),
        in_channels: 3,
        out_channels: 3,
        ..conditional()
    };
    (set, config)
}

#[test]
fn a_batch_is_what_the_formula_says() {
    let (set, config) = rgb();
    let options = options(100);
    let batches = Batches::new(Arc::new(set.clone()), &options, &config).unwrap();
    for step in [0u64, 1, 9, 10, 57] {
        let examples = batch(&batches, step);
        assert_eq!(examples.step, step);
        for i in 0..4u64 {
            let global = step * 4 + i;
            assert_eq!(u64::from(examples.index[i as usize]), global);
            let item = dataset_index(options.seed, global, set.len);
            assert_eq!(examples.labels[i as usize], (item % 10) as u32);
            for (y, x, c) in [(0, 0, 0), (3, 5, 2), (1, 4, 1)] {
                let value = examples.x0[i as usize * 72 + (y * 6 + x) * 3 + c];
                let expected = 2.0 * f64::from(set.pixel(item, y, x, c)) / 16.0 - 1.0;
                assert_eq!(f64::from(value), expected);
            }
        }
    }
}

#[test]
fn a_flipped_image_is_mirrored_and_half_of_them_are() {
    let (set, config) = rgb();
    let straight = options(1000);
    let flipped = TrainOptions { flip: true, ..straight.clone() };
    let (a, b) = (
        Batches::new(Arc::new(set.clone()), &straight, &config).unwrap(),
        Batches::new(Arc::new(set), &flipped, &config).unwrap(),
    );
    let mut flips = 0;
    for step in 0..500 {
        let (a, b) = (batch(&a, step), batch(&b, step));
        for (a, b) in a.x0.chunks(72).zip(b.x0.chunks(72)) {
            if a == b {
                continue;
            }
            flips += 1;
            for (i, &value) in b.iter().enumerate() {
                let (y, x, c) = (i / 18, i / 3 % 6, i % 3);
                assert_eq!(value, a[(y * 6 + 5 - x) * 3 + c]);
            }
        }
    }
    // Binomial with n = 2000 and p = 1/2: deviation 22.4.
    assert!((i32::abs(flips - 1000)) < 100, "{flips} of 2000");
}

#[test]
fn labels_are_dropped_at_the_rate_asked_for() {
    for (p, low, high) in [(0.0, 0, 0), (0.1, 133, 267), (0.5, 888, 1112), (1.0, 2000, 2000)] {
        let options = TrainOptions { label_dropout: p, ..options(1000) };
        let batches = Batches::new(digits(), &options, &conditional()).unwrap();
        let plain = Batches::new(digits(), &TrainOptions { label_dropout: 0.0, ..options }, &conditional()).unwrap();
        let mut dropped = 0;
        for step in 0..500 {
            let (with, without) = (batch(&batches, step), batch(&plain, step));
            assert_eq!(with.x0, without.x0);
            for (with, without) in with.labels.iter().zip(&without.labels) {
                assert!(*with == 10 || with == without);
                dropped += i32::from(*with == 10);
            }
        }
        // Five deviations of a binomial with n = 2000.
        assert!((low..=high).contains(&dropped), "p {p}: {dropped} of 2000");
    }
}

#[test]
fn batches_cut_one_sequence_and_the_loader_hands_out_the_same() {
    let set: Arc<dyn Dataset> = digits();
    let run = |batch_size| TrainOptions { batch_size, flip: true, label_dropout: 0.3, ..options(60) };
    let small = Batches::new(Arc::clone(&set), &run(2), &conditional()).unwrap();
    let large = Batches::new(set, &run(6), &conditional()).unwrap();
    let mut loader = Loader::new(large.clone(), 0..20).unwrap();
    for step in 0..20 {
        let whole = batch(&large, step);
        assert_eq!(*loader.next_step().unwrap(), whole);
        let parts: Vec<Examples> = (3 * step..3 * step + 3).map(|s| batch(&small, s)).collect();
        assert_eq!(whole.x0, parts.iter().flat_map(|p| p.x0.clone()).collect::<Vec<_>>());
        assert_eq!(whole.labels, parts.iter().flat_map(|p| p.labels.clone()).collect::<Vec<_>>());
        assert_eq!(whole.index, parts.iter().flat_map(|p| p.index.clone()).collect::<Vec<_>>());
    }
    assert!(matches!(loader.next_step(), Err(TrainError::LoaderDied { step: 21 })));
    // One that starts in the middle, and is dropped before its end.
    let mut late = Loader::new(large.clone(), 7..20).unwrap();
    assert_eq!(*late.next_step().unwrap(), batch(&large, 7));
}

#[test]
fn an_unconditional_model_ignores_labels() {
    let batches = Batches::new(digits(), &options(10), &config()).unwrap();
    assert!(batch(&batches, 3).labels.is_empty());
    assert!(Batches::new(Arc::new(Formula { classes: None, ..Formula::default() }), &options(10), &config()).is_ok());
}

#[test]
fn the_error_of_an_image_comes_at_its_step() {
    let options = options(30);
    // The image that the 18th example needs: step 5 (from 1) at four examples a step.
    let item = dataset_index(options.seed, 17, 37);
    let check = |set: Formula, refused: fn(&TrainError) -> bool| {
        let mut loader = Loader::new(Batches::new(Arc::new(set), &options, &conditional()).unwrap(), 0..30).unwrap();
        for _ in 0..4 {
            loader.next_step().unwrap();
        }
        let error = loader.next_step().unwrap_err();
        assert!(refused(&error), "{error}");
        assert!(matches!(loader.next_step(), Err(TrainError::LoaderDied { .. })));
    };
    check(Formula { broken: Some(item), ..Formula::default() }, |e| matches!(e, TrainError::Data { step: 5, .. }));
    check(Formula { unlabelled: Some(item), ..Formula::default() }, |e| matches!(e, TrainError::Dataset { .. }));
}

#[test]
fn sets_that_do_not_fit_are_refused_with_both_sides() {
    let refused = |set: Formula, config: &UNetConfig, words: &[&str]| {
        let error = Batches::new(Arc::new(set), &options(10), config).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let set = Formula::default;
    refused(Formula { channels: 3, ..set() }, &config(), &["3 channels", "in_channels is 1", "formula"]);
    refused(Formula { size: (8, 6), ..set() }, &config(), &["8x6", "8x8", "sample_size"]);
    let free = UNetConfig { sample_size: None, ..config() };
    refused(Formula { size: (7, 8), ..set() }, &free, &["7x8", "multiples of 2"]);
    refused(Formula { levels: 1, ..set() }, &config(), &["1 levels"]);
    refused(Formula { classes: None, ..set() }, &conditional(), &["no labels", "num_class_embeds"]);
    refused(Formula { classes: Some(12), ..set() }, &conditional(), &["label 11", "0..10"]);
    // The null class is no label.
    refused(Formula { classes: Some(11), ..set() }, &conditional(), &["label 10", "0..10"]);
    let plain = UNetConfig { null_class: None, ..conditional() };
    assert!(Batches::new(Arc::new(Formula { classes: Some(11), ..set() }), &options(10), &plain).is_ok());
    refused(Formula { classes: Some(12), ..set() }, &plain, &["label 11", "0..11"]);
    let timestep = UNetConfig { class_embed_type: Some(ClassEmbedding::Timestep), ..config() };
    refused(set(), &timestep, &["class_embed_type", "Timestep"]);
}

#[test]
fn a_label_beyond_the_sets_own_classes_is_found_when_it_is_read() {
    let set = Formula { label_offset: 4, ..Formula::default() };
    let batches = Batches::new(Arc::new(set), &options(30), &conditional()).unwrap();
    let error = (0..30).find_map(|step| batches.fill(step, &mut Examples::default()).err()).unwrap();
    assert!(matches!(error, TrainError::Label { label: 10..=13, classes: 10, .. }), "{error}");
}

#[test]
fn label_dropout_needs_a_null_class() {
    let options = TrainOptions { label_dropout: 0.1, ..options(10) };
    for config in [config(), UNetConfig { null_class: None, ..conditional() }] {
        let error = Batches::new(digits(), &options, &config).unwrap_err();
        assert!(matches!(error, TrainError::Untrainable { key: "null_class", .. }), "{error}");
    }
}

#[test]
fn the_last_example_is_the_last_that_can_be_numbered() {
    let run = TrainOptions { batch_size: 4, ..options(1 << 30) };
    let batches = Batches::new(digits(), &run, &conditional()).unwrap();
    assert_eq!(batch(&batches, (1 << 30) - 1).index[3], u32::MAX);
    for step in [1 << 30, u64::MAX / 4, u64::MAX] {
        let error = batches.fill(step, &mut Examples::default()).unwrap_err();
        assert!(matches!(error, TrainError::TooManyExamples { .. }));
    }
}
