use super::*;
use crate::io::partial::folder_of;
use std::fs;

fn set(range: std::ops::Range<usize>, seed: u64) -> SampleSet {
    let settings = serde_json::Map::from_iter([("seed".to_string(), seed.into())]);
    let labels = Some(range.clone().map(|i| (i % 3) as u32).collect());
    SampleSet { channels: 1, height: 2, width: 2, labels, provenance: Provenance { settings, range } }
}

/// Sample i of a run.
fn images(range: std::ops::Range<usize>) -> Vec<f32> {
    range.flat_map(|i| (0..4).map(move |k| ((i * 4 + k) as f32 * 0.7).sin())).collect()
}

fn push(sink: &mut SampleSink, range: std::ops::Range<usize>) {
    sink.push(ImageBatch::new(&images(range), 1, 2, 2)).unwrap();
}

fn begin(path: &Path, set: SampleSet, existing: Existing) -> SampleSink {
    open_sink(path, set, existing).unwrap().unwrap()
}

/// Names and bytes of an output.
fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let entry = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    let mut all: Vec<_> = fs::read_dir(path).unwrap().map(|e| entry(e.unwrap())).collect();
    all.sort();
    all
}

const NAMES: [&str; 3] = ["s.npz", "s.safetensors", "s"];

#[test]
fn every_sink_refuses_what_does_not_fit_and_leaves_nothing() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let values = [0.0; 16];
        let mut sink = begin(&path, set(0..3, 1), Existing::Refuse);
        let two = ImageBatch::new(&values[..8], 1, 2, 2);
        sink.push(two).unwrap();
        assert!(sink.push(two).is_err(), "too many");
        assert!(sink.push(ImageBatch::new(&values[..4], 1, 4, 1)).is_err(), "other shape");
        // Nothing was saved yet, but finishing would be the first to do so.
        let text = sink.finish().unwrap_err().to_string();
        assert!(text.contains("only 2 of 3"), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_failed_write_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.safetensors");
    let mut sink = begin(&path, set(0..3, 1), Existing::Refuse);
    push(&mut sink, 0..1);
    assert!(sink.push(ImageBatch::from_bytes(&[0; 4], 1, 2, 2)).is_err(), "bytes among floats");
    for error in [sink.push(ImageBatch::new(&[0.0; 4], 1, 2, 2)), sink.save()] {
        assert!(error.unwrap_err().to_string().contains("an earlier write failed"));
    }
}

#[test]
fn a_run_that_was_cut_off_anywhere_ends_with_the_bytes_of_a_whole_one() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole").join(name), folder.path().join("cut").join(name));
        let mut sink = begin(&whole, set(5..12, 1), Existing::Refuse);
        push(&mut sink, 5..12);
        sink.finish().unwrap();
        // Batches of other sizes, and between them ends of three kinds: saved, not saved, saved and more was written.
        let mut sink = begin(&cut, set(5..12, 1), Existing::Resume);
        push(&mut sink, 5..7);
        sink.save().unwrap();
        assert_eq!(sink.saved(), (2, folder_of(&cut).as_path()));
        push(&mut sink, 7..8);
        drop(sink);
        assert!(!cut.exists(), "{name} has its name before it is complete");
        let mut sink = begin(&cut, set(5..12, 1), Existing::Resume);
        assert_eq!(sink.written(), 2);
        push(&mut sink, 7..11);
        drop(sink);
        let mut sink = begin(&cut, set(5..12, 1), Existing::Resume);
        assert_eq!(sink.written(), 2);
        push(&mut sink, 7..11);
        sink.save().unwrap();
        drop(sink);
        let mut sink = begin(&cut, set(5..12, 1), Existing::Resume);
        assert_eq!(sink.written(), 6);
        push(&mut sink, 11..12);
        sink.save().unwrap();
        drop(sink);
        // Complete, but without its name.
        begin(&cut, set(5..12, 1), Existing::Resume).finish().unwrap();
        assert_eq!(contents(&cut), contents(&whole));
        assert_eq!(fs::read_dir(folder.path().join("cut")).unwrap().count(), 1, "{name} left something behind");
        assert!(open_sink(&cut, set(5..12, 1), Existing::Resume).unwrap().is_none(), "complete");
    }
}

#[test]
fn whatever_a_killed_run_left_another_begins_or_goes_on() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage, usize); 6] = [
        ("the folder alone", |p| fs::read_dir(p).unwrap().for_each(|e| remove(&e.unwrap().path())), 0),
        ("a provenance half-written", |p| fs::rename(p.join("run.json"), p.join(".run.json.tmp-1-0")).unwrap(), 0),
        ("no progress", |p| remove(&p.join("progress.json")), 0),
        ("progress half-written", |p| fs::write(p.join(".progress.json.tmp-1-0"), "{\"samp").unwrap(), 3),
        ("no samples", |p| remove(&p.join("samples")), 0),
        // As a power loss leaves a file that had grown.
        ("zeros behind the samples", |p| grow(&p.join("samples")), 3),
    ];
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let (whole, cut) = (folder.path().join("whole").join(name), folder.path().join("cut").join(name));
        let mut sink = begin(&whole, set(0..5, 1), Existing::Refuse);
        push(&mut sink, 0..5);
        sink.finish().unwrap();
        for (what, damage, kept) in damages {
            let mut sink = begin(&cut, set(0..5, 1), Existing::Refuse);
            push(&mut sink, 0..3);
            sink.save().unwrap();
            drop(sink);
            damage(&folder_of(&cut));
            let mut sink = begin(&cut, set(0..5, 1), Existing::Resume);
            assert_eq!(sink.written(), kept, "{name}, {what}");
            push(&mut sink, kept..5);
            sink.finish().unwrap();
            assert_eq!(contents(&cut), contents(&whole), "{name}, {what}");
            remove(&cut);
            assert_eq!(fs::read_dir(folder.path().join("cut")).unwrap().count(), 0, "{name}, {what}");
        }
    }
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

fn grow(samples: &Path) {
    if samples.is_dir() {
        return fs::write(samples.join("000003.png"), [0; 40]).unwrap();
    }
    let file = fs::OpenOptions::new().write(true).open(samples).unwrap();
    file.set_len(file.metadata().unwrap().len() + 1000).unwrap();
}

#[test]
fn samples_that_were_lost_are_not_made_up() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut sink = begin(&path, set(0..5, 1), Existing::Refuse);
        push(&mut sink, 0..3);
        sink.save().unwrap();
        drop(sink);
        let samples = folder_of(&path).join("samples");
        if samples.is_dir() {
            fs::remove_file(samples.join("000001.png")).unwrap();
        } else {
            let file = fs::OpenOptions::new().write(true).open(&samples).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }
        let text = open_sink(&path, set(0..5, 1), Existing::Resume).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("progress.json counts"), "{text}");
    }
}

#[test]
fn the_remains_of_a_run_are_neither_mixed_nor_lost() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut sink = begin(&path, set(0..4, 1), Existing::Refuse);
        push(&mut sink, 0..2);
        sink.save().unwrap();
        let second = open_sink(&path, set(0..4, 1), Existing::Resume).map(|_| ()).unwrap_err().to_string();
        assert!(second.contains("another process"), "{second}");
        drop(sink);
        let problem = |set, existing| open_sink(&path, set, existing).map(|_| ()).unwrap_err().to_string();
        let text = problem(set(0..4, 1), Existing::Refuse);
        assert!(text.contains("2 of 4") && text.contains("--resume"), "{text}");
        let text = problem(set(0..4, 2), Existing::Resume);
        assert!(text.contains("seed: 1 there, 2 here"), "{text}");
        let text = problem(set(0..5, 1), Existing::Resume);
        assert!(text.contains("0..4 there, 0..5 here"), "{text}");
        let mut sink = begin(&path, set(0..4, 2), Existing::Discard);
        assert_eq!(sink.written(), 0);
        push(&mut sink, 0..4);
        sink.finish().unwrap();
        let text = problem(set(0..4, 1), Existing::Resume);
        assert!(text.contains("complete, but of another run (seed: 2 there, 1 here)"), "{text}");
        fs::create_dir(folder_of(&path)).unwrap();
        fs::write(folder_of(&path).join("thesis.txt"), "mine").unwrap();
        let error = open_sink(&path, set(0..4, 2), Existing::Discard).map(|_| ()).unwrap_err();
        assert!(matches!(error, FileError::WouldOverwrite { .. }), "{error}");
        assert_eq!(fs::read(folder_of(&path).join("thesis.txt")).unwrap(), b"mine");
    }
}

#[test]
fn a_run_killed_while_it_cleaned_up_is_complete() {
    for name in NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        for existing in [Existing::Refuse, Existing::Resume] {
            let mut sink = begin(&path, set(0..2, 1), Existing::Discard);
            push(&mut sink, 0..2);
            sink.finish().unwrap();
            // As after a swap of two folders: the old one still lies where the samples were.
            let partial = folder_of(&path);
            fs::create_dir_all(partial.join("samples")).unwrap();
            fs::write(partial.join("run.json"), set(0..2, 1).provenance.to_json()).unwrap();
            fs::write(partial.join("progress.json"), "{\"samples\":2}").unwrap();
            let opened = open_sink(&path, set(0..2, 1), existing).unwrap();
            assert_eq!(opened.map(|sink| sink.written()), (existing == Existing::Refuse).then_some(0));
            assert!(!partial.exists());
        }
    }
}

#[test]
fn the_extension_chooses() {
    assert_eq!(OutputKind::of(Path::new("a/b.PNG")).unwrap(), OutputKind::Grid);
    assert_eq!(OutputKind::of(Path::new("samples")).unwrap(), OutputKind::Folder);
    assert_eq!(OutputKind::of(Path::new("samples.shard-1-of-2")).unwrap(), OutputKind::Folder);
    let text = OutputKind::of(Path::new("a.jpg")).unwrap_err().to_string();
    assert!(text.contains(".jpg") && text.contains(".npz"), "{text}");
}
