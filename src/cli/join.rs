//! `warpdiff join`: the shards of a run as one output, as if it had been made in one piece.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::progress::Progress;
use crate::io::partial::Existing;
use crate::io::provenance::Provenance;
use crate::io::sample_source::SampleSource;
use crate::io::sink::{OutputKind, SampleSet, open_sink};

#[derive(clap::Args)]
pub(super) struct Args {
    /// The outputs of `sample --shard`, in any order.
    #[arg(required = true)]
    shards: Vec<PathBuf>,
    /// Where all samples go, in the format of the shards.
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let kind = OutputKind::of(&args.out)?;
    let mut sources = Vec::new();
    for path in &args.shards {
        if OutputKind::of(path)? != kind {
            bail!("{} is not of the format of {}; shards are joined as they are", path.display(), args.out.display());
        }
        sources.push(SampleSource::open(path)?);
    }
    sources.sort_by_key(|source| source.provenance().range.start);
    let count = check(&sources)?;
    let Some(first) = sources.first() else { bail!("there is nothing to join") };
    let [channels, height, width] = first.image_shape();
    let mut labels = first.labelled().then(Vec::new);
    for source in &mut sources {
        if let (Some(labels), Some(more)) = (&mut labels, source.labels()?) {
            labels.extend(more);
        }
    }
    let settings = sources[0].provenance().settings.clone();
    let set = SampleSet { channels, height, width, labels, provenance: Provenance { settings, range: 0..count } };
    let Some(mut sink) = open_sink(&args.out, set, Existing::Discard)? else { return Ok(ExitCode::SUCCESS) };
    let mut progress = Progress::new("joining", "samples", 0, count as u64, quiet);
    for source in &mut sources {
        while source.next(&mut |images| sink.push(images))? {
            progress.at(sink.written() as u64, "");
        }
    }
    sink.finish()?;
    progress.finish();
    if !quiet {
        eprintln!("{count} samples of {} shards -> {}", args.shards.len(), args.out.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that the sorted sources make up one whole run; returns its length.
fn check(sources: &[SampleSource]) -> Result<usize> {
    let Some(first) = sources.first() else { return Ok(0) };
    let Some(count) = first.provenance().settings.get("num").and_then(serde_json::Value::as_u64) else {
        bail!("{} does not say how many samples its run has", first.path().display());
    };
    let mut next = 0;
    for source in sources {
        let range = source.provenance().range.clone();
        let here = Provenance { range: range.clone(), ..first.provenance().clone() };
        let differences = source.provenance().differences(&here);
        let path = source.path().display();
        if !differences.is_empty() {
            bail!("{path} is of another run than {} ({})", first.path().display(), differences.join("; "));
        }
        if source.image_shape() != first.image_shape() || source.labelled() != first.labelled() {
            bail!("{path} has samples of another shape than {}", first.path().display());
        }
        if range.start > next {
            bail!("the samples {next}..{} are missing; give the shard that holds them, too", range.start);
        }
        if range.start < next {
            bail!("{path} begins with sample {}, which another shard holds already", range.start);
        }
        next = range.end;
    }
    if next as u64 != count {
        bail!("the samples {next}..{count} are missing; give the shard that holds them, too");
    }
    Ok(next)
}
