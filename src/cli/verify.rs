//! `warpdiff verify`: golden cases.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::device::DeviceArgs;
use crate::backend::Precision;
use crate::verify::{CheckReport, Status, find_cases, verify_case, verify_case_leniently};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Case folders, or folders of case folders.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Ignore tensors and configuration keys that are not known, with a warning, instead of refusing them.
    #[arg(long)]
    lenient: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Write the results here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    device: String,
    precision: Precision,
    checks: Vec<CheckReport>,
    passed: usize,
    failed: usize,
    skipped: usize,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let backend = args.device.backend()?;
    let (mut checks, mut unreadable) = (Vec::new(), false);
    for path in &args.paths {
        let cases = match find_cases(path) {
            Ok(cases) => cases,
            Err(error) => {
                eprintln!("error: {error}");
                unreadable = true;
                continue;
            }
        };
        for case in cases {
            let reports = if args.lenient {
                verify_case_leniently(&case, backend.as_ref(), &mut |warning| eprintln!("warning: {warning}"))
            } else {
                verify_case(&case, backend.as_ref())
            };
            match reports {
                Ok(reports) => {
                    reports.iter().filter(|r| !quiet || r.status == Status::Fail).for_each(print);
                    checks.extend(reports);
                }
                Err(error) => {
                    eprintln!("error: {}: {error}", case.display());
                    unreadable = true;
                }
            }
        }
    }
    let count = |status| checks.iter().filter(|c| c.status == status).count();
    let report = Report {
        device: backend.name().into(),
        precision: backend.precision(),
        passed: count(Status::Pass),
        failed: count(Status::Fail),
        skipped: count(Status::Skip),
        checks,
    };
    println!("{} passed, {} failed, {} skipped", report.passed, report.failed, report.skipped);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::from(match (unreadable, report.failed) {
        (true, _) => super::UNUSABLE,
        (false, 0) => 0,
        (false, _) => 1,
    }))
}

fn print(r: &CheckReport) {
    let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.2e}"));
    let status = match r.status {
        Status::Pass => "pass",
        Status::Fail => "FAIL",
        Status::Skip => "skip",
    };
    let reason = if r.reason.is_empty() { String::new() } else { format!("  {}", r.reason) };
    println!(
        "{status}  {:<28} {:<26} error {:>9}  tolerance {:>9}{reason}",
        r.case,
        r.id,
        number(r.error),
        number(r.tolerance)
    );
}
