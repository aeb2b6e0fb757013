//! `warpdiff bench compare`: what became slower or faster between two reports.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::bench::change::{Change, Comparison, Measured, Verdict};
use crate::io::atomic::write_file;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The report to compare with.
    before: PathBuf,
    /// The new report.
    after: PathBuf,
    /// How far medians must be apart to count, in percent. The ranges between the quartiles must not overlap, either.
    #[arg(long, default_value_t = 3.0, value_name = "PERCENT")]
    threshold: f64,
    /// Exit with 1 if a line became slower.
    #[arg(long)]
    fail_on_regression: bool,
    /// Compare reports of different devices, too.
    #[arg(long)]
    any_device: bool,
    /// Show lines that did not change, too.
    #[arg(long)]
    all: bool,
    /// Write the comparison here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    if !(args.threshold.is_finite() && args.threshold >= 0.0) {
        bail!("--threshold {}: name a percentage of at least 0", args.threshold);
    }
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    if before.precision != after.precision {
        bail!(
            "{} is in {}, {} in {}: measure both in one precision",
            args.before.display(),
            before.precision,
            args.after.display(),
            after.precision
        );
    }
    if before.device != after.device && !args.any_device {
        bail!(
            "{} was measured on {}, {} on {}; --any-device compares them all the same",
            args.before.display(),
            before.device,
            args.after.display(),
            after.device
        );
    }
    let comparison = Comparison::new(&before, &after, args.threshold / 100.0);
    if comparison.changes.is_empty() {
        bail!("{} and {} have no line in common", args.before.display(), args.after.display());
    }
    print(args, &comparison, quiet);
    if let Some(path) = &args.json {
        let text = serde_json::json!({
            "schema": 1, "threshold_percent": args.threshold, "before": about(&before), "after": about(&after),
            "slower": comparison.count(Verdict::Slower), "faster": comparison.count(Verdict::Faster),
            "comparison": comparison,
        });
        write_file(path, |file| writeln!(file, "{text:#}"))?;
    }
    let failed = args.fail_on_regression && comparison.count(Verdict::Slower) > 0;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(path: &Path) -> Result<Measured> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Measured::parse(&text).with_context(|| path.display().to_string())
}

fn about(report: &Measured) -> serde_json::Value {
    serde_json::json!({
        "device": report.device, "precision": report.precision, "commit": report.commit, "date": report.date,
        "lines": report.lines.len(),
    })
}

fn print(args: &Args, comparison: &Comparison, quiet: bool) {
    let shown: Vec<&Change> =
        comparison.changes.iter().filter(|change| args.all || change.verdict != Verdict::Same).collect();
    if !quiet && !shown.is_empty() {
        println!("{:<60} {:>12} {:>12} {:>8}", "line", "us before", "us after", "change");
    }
    for change in shown {
        let key = &change.key;
        let batch = key.batch.map_or(String::new(), |n| format!(" batch {n}"));
        let line = format!("{}{batch} {} {}", key.family, key.name, key.pass);
        let verdict = match change.verdict {
            Verdict::Slower => "  slower",
            Verdict::Faster => "  faster",
            Verdict::Same => "",
        };
        let percent = 100.0 * (change.ratio - 1.0);
        println!("{line:<60} {:>12.2} {:>12.2} {percent:>+7.1}%{verdict}", change.before.median, change.after.median);
    }
    for (family, lines, mean) in comparison.families() {
        println!("{family}: {lines} lines, on average {:+.1}% time", 100.0 * (mean - 1.0));
    }
    let [slower, faster, same] = [Verdict::Slower, Verdict::Faster, Verdict::Same].map(|v| comparison.count(v));
    println!("{slower} slower, {faster} faster, {same} within {} % or the noise", args.threshold);
    if !comparison.gone.is_empty() || !comparison.new.is_empty() {
        println!("{} lines are only in the first, {} only in the second", comparison.gone.len(), comparison.new.len());
    }
}
