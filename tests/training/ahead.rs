//! A device that computes beside the host has its next step before the results of the last are read.

use std::sync::atomic::Ordering;

use warpdiff::train::{RunEnd, TrainError, TrainOptions, TrainingState};

use crate::late::Late;
use crate::support::*;

/// Seven steps, with a checkpoint after the third and the sixth.
fn seven() -> TrainOptions {
    TrainOptions { checkpoint_every: 3, ..options(7) }
}

#[test]
fn running_ahead_changes_no_bit_and_stops_at_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let late = Late::new();
    let mut ahead = start(&late, seven(), &folder.path().join("ahead")).unwrap();
    let mut seen = Vec::new();
    let saved = || TrainingState::read(&folder.path().join("ahead")).unwrap().map(|state| state.step);
    let mut reports = Vec::new();
    let end = ahead.run(&|| false, &mut |report| {
        reports.push(*report);
        seen.push((late.runs.load(Ordering::Relaxed), saved()));
    });
    assert_eq!(end.unwrap(), RunEnd::Finished { step: 7 });
    // When step k is reported, step k + 1 has begun, unless a checkpoint or the end comes between them.
    assert_eq!(seen.iter().map(|(begun, _)| *begun).collect::<Vec<_>>(), [2, 3, 3, 5, 6, 6, 7]);
    assert_eq!(
        seen.iter().map(|(_, saved)| *saved).collect::<Vec<_>>(),
        [None, None, None, Some(3), Some(3), Some(3), Some(6)]
    );

    let mut in_step = start(&cpu(2), seven(), &folder.path().join("in step")).unwrap();
    assert_eq!(finish(&mut in_step), reports);
    assert_eq!(bits(&ahead), bits(&in_step));
    assert_eq!(ahead.log(), in_step.log());
}

#[test]
fn a_run_that_is_stopped_ends_with_the_step_that_was_begun() {
    let folder = tempfile::tempdir().unwrap();
    let late = Late::new();
    let mut ahead = start(&late, seven(), &folder.path().join("m")).unwrap();
    let stop = std::cell::Cell::new(false);
    let end = ahead.run(&|| stop.get(), &mut |report| stop.set(report.step >= 4)).unwrap();
    assert_eq!((end, late.runs.load(Ordering::Relaxed)), (RunEnd::Interrupted { step: 5 }, 5));
    let mut five = start(&cpu(1), seven(), &folder.path().join("five")).unwrap();
    for _ in 0..5 {
        five.step().unwrap();
    }
    assert_eq!(bits(&ahead), bits(&five));
}

/// The example that cannot be read belongs to the step that is begun ahead: the steps before it are done and saved.
#[test]
fn a_broken_image_is_reported_when_its_step_comes() {
    let folder = tempfile::tempdir().unwrap();
    let broken = |backend: &dyn warpdiff::backend::Backend, name: &str| {
        let data = std::sync::Arc::new(Formula { broken: Some(3), ..Formula::default() });
        let path = folder.path().join(name);
        let mut trainer = start_with(backend, conditional(), scheduler(), data, options(20), &path).unwrap();
        let error = trainer.run(&|| false, &mut |_| {}).unwrap_err();
        assert!(matches!(error, TrainError::Data { .. }), "{error}");
        (trainer.steps_done(), TrainingState::read(&path).unwrap().map(|s| s.step), bits(&trainer))
    };
    let (ahead, in_step) = (broken(&Late::new(), "ahead"), broken(&cpu(2), "in step"));
    assert!(ahead.0 > 0 && ahead.1 == Some(ahead.0), "{:?}", (ahead.0, ahead.1));
    assert!(ahead == in_step);
}
