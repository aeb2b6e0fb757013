//! Runs of any length: batch by batch into a file or a folder, from where an interrupted one left off.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use super::Args;
use crate::cli::interrupt;
use crate::cli::progress::Progress;
use crate::io::ImageBatch;
use crate::io::partial::Existing;
use crate::io::provenance::Provenance;
use crate::io::sink::{OutputKind, SampleSet, SampleSink, open_sink};
use crate::layout::nhwc_to_nchw;
use crate::sample::{Drawn, SampleError, Sampler};

/// A part of a run: number `index`, counted from 1, of `count` parts that differ in length by at most one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    pub count: u32,
}

impl Shard {
    /// The samples of this part of a run over `samples`.
    pub fn range(self, samples: usize) -> Range<usize> {
        let bound = |i: u32| (samples as u128 * u128::from(i) / u128::from(self.count)) as usize;
        bound(self.index - 1)..bound(self.index)
    }

    /// The name of this part's output: `samples.npz` becomes `samples.shard-2-of-8.npz`.
    pub fn name(self, out: &Path) -> PathBuf {
        let mut name = out.file_stem().unwrap_or_default().to_os_string();
        name.push(format!(".shard-{}-of-{}", self.index, self.count));
        if let Some(extension) = out.extension() {
            name.push(".");
            name.push(extension);
        }
        out.with_file_name(name)
    }
}

/// How a run ended.
pub(super) enum End {
    /// The output has its name; how many samples were drawn for that, 0 if it had it already.
    Complete(usize),
    /// Somebody asked to stop; what to say about that.
    Interrupted(String),
}

/// Draws the samples `range` of a run with these settings and writes them to `out`, tensors as floats and the others as bytes.
pub(super) fn stream(
    args: &Args,
    out: &Path,
    range: Range<usize>,
    settings: Map<String, Value>,
    sampler: &mut Sampler,
    quiet: bool,
) -> Result<End> {
    let [channels, height, width] = sampler.image_shape();
    let labels = sampler.labels(range.clone())?;
    let provenance = Provenance { settings, range: range.clone() };
    let set = SampleSet { channels, height, width, labels, provenance };
    let existing = if args.resume { Existing::Resume } else { Existing::Refuse };
    let Some(mut sink) = open_sink(out, set, existing)? else { return Ok(End::Complete(0)) };
    let missing = range.len() - sink.written();
    let work = |samples: usize| (samples * sampler.steps()) as u64;
    let mut progress = Progress::new("sampling", "evals", work(sink.written()), work(range.len()), quiet || args.json);
    match draw(out, range, sampler, &mut sink, &mut progress) {
        Ok(true) => {
            sink.finish()?;
            progress.finish();
            Ok(End::Complete(missing))
        }
        Ok(false) => {
            sink.save()?;
            Ok(End::Interrupted(kept(&sink)))
        }
        Err(error) => {
            if sink.saved().0 > 0 {
                eprintln!("{}", kept(&sink));
            }
            Err(error)
        }
    }
}

/// Draws what is missing; false if somebody asked to stop.
fn draw(
    out: &Path,
    range: Range<usize>,
    sampler: &mut Sampler,
    sink: &mut SampleSink,
    progress: &mut Progress,
) -> Result<bool> {
    let [channels, height, width] = sampler.image_shape();
    let floats = OutputKind::of(out)? == OutputKind::Tensors;
    let written = sink.written();
    draw_batches(sampler, range.start + written..range.end, written, progress, &mut |drawn| {
        let count = drawn.indices().len();
        if floats {
            let images = nhwc_to_nchw(&drawn.images()?, [count, channels, height, width]);
            sink.push(ImageBatch::new(&images, channels, height, width))?;
        } else {
            sink.push(ImageBatch::from_bytes(&drawn.pictures()?, channels, height, width))?;
        }
        Ok(())
    })
}

/// Draws `samples` in batches, after `before` others of this run; false if somebody asked to stop, when what was drawn has
/// been handed over.
pub(super) fn draw_batches(
    sampler: &mut Sampler,
    samples: Range<usize>,
    before: usize,
    progress: &mut Progress,
    hand_over: &mut dyn FnMut(Drawn) -> Result<()>,
) -> Result<bool> {
    let (end, batch) = (samples.end, sampler.batch());
    let batches = samples.step_by(batch).map(|first| first..end.min(first + batch));
    let before = before * sampler.steps();
    let mut go_on = |evaluations| {
        progress.at((before + evaluations) as u64, "");
        !interrupt::asked()
    };
    match sampler.stream(batches, &mut go_on, hand_over) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.downcast_ref(), Some(SampleError::Stopped)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn kept(sink: &SampleSink) -> String {
    match sink.saved() {
        (0, _) => "nothing was written".into(),
        (samples, folder) => {
            format!("{samples} samples are safe in {}; the same command with --resume goes on", folder.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_a_run_without_gap_or_overlap() {
        for (samples, count) in [(10, 3), (50_000, 7), (5, 5), (u32::MAX as usize, 64)] {
            let ranges: Vec<_> = (1..=count).map(|index| Shard { index, count }.range(samples)).collect();
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, samples));
            assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
            let (short, long) = (samples / count as usize, samples.div_ceil(count as usize));
            assert!(ranges.iter().all(|r| r.len() == short || r.len() == long), "{ranges:?}");
        }
    }

    #[test]
    fn shards_are_named_after_the_whole() {
        let shard = Shard { index: 2, count: 8 };
        assert_eq!(shard.name(Path::new("a/s.npz")), Path::new("a/s.shard-2-of-8.npz"));
        assert_eq!(shard.name(Path::new("a/s")), Path::new("a/s.shard-2-of-8"));
    }
}
