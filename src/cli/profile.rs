//! `warpdiff profile`: where the time of a network goes, step by step.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::device::{Device, DeviceArgs};
use super::explain::table;
use super::network;
use super::presets::Preset;
use super::roof::RoofArgs;
use crate::backend::gpu::driver::cuda::Cuda;
use crate::bench::roof::Roof;
use crate::io::atomic::write_file;
use crate::profile::{self, Line, Profile, Subject, chrome, html};

/// Lines of a table in the terminal.
const MOST_LINES: usize = 20;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A model folder; its weights are not read, since no time depends on them.
    model: Option<PathBuf>,
    /// A network known by name.
    #[arg(long, value_enum, default_value = "ddpm-cifar10-32", conflicts_with = "model")]
    preset: Preset,
    /// Images at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// A training step rather than one evaluation.
    #[arg(long)]
    train: bool,
    /// Runs to take the medians of.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10000))]
    runs: u32,
    /// Write one page with roofline, timeline and tables, which a browser opens without a network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the steps in the trace event format, for Perfetto and chrome://tracing.
    #[arg(long, value_name = "FILE")]
    chrome_trace: Option<PathBuf>,
    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the command that has Nsight Compute look at this kernel (the slowest if none is named), and nothing else.
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "")]
    ncu: Option<String>,
    #[command(flatten)]
    roof: RoofArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &Args, quiet: bool) -> Result<ExitCode> {
    let (name, config) = network::named(args.model.as_deref(), args.preset)?;
    let backend = args.device.backend()?;
    let batch = network::batch(&config, args.batch as usize);
    let mut exe = if args.train {
        network::training(&config, batch, backend.as_ref())?
    } else {
        network::inference(&config, batch, |plan| backend.compile(plan))?
    };
    let device = match args.device.device {
        Device::Cuda => Cuda::probe()?.limits.name,
        _ => backend.name().to_string(),
    };
    let step = if args.train { "training step" } else { "evaluation" };
    let subject = Subject {
        title: format!("{name}, {step} at batch {}, {}x{}", batch.n, batch.h, batch.w),
        roof: Roof::measured(&device, backend.precision()).overridden(args.roof.given()),
        device,
        batch: batch.n,
    };
    let profile = profile::measure(exe.as_mut(), subject, args.runs as usize)?;
    if let Some(kernel) = &args.ncu {
        println!("{}", ncu(&profile, kernel, env::args().collect())?);
        return Ok(ExitCode::SUCCESS);
    }
    let files = [
        (&args.html, html::page(&profile)),
        (&args.chrome_trace, format!("{}\n", chrome::trace(&profile))),
        (&args.json, format!("{:#}\n", as_json(&profile))),
    ];
    for (path, text) in files {
        if let Some(path) = path {
            write_file(path, |file| file.write_all(text.as_bytes()))?;
        }
    }
    super::print(&as_text(&profile))?;
    if !quiet && args.html.is_none() {
        println!("\n--html FILE writes roofline, timeline and all steps as one page.");
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(profile: &Profile) -> serde_json::Value {
    serde_json::json!({
        "schema": 1, "profile": profile, "operations": profile.operations(), "kernels": profile.kernels(),
        "images_per_second": profile.images_per_second(),
    })
}

fn as_text(p: &Profile) -> String {
    let roof = if p.roof.is_known() { format!("; roofs: {}", p.roof.source) } else { String::new() };
    let mut text = format!("{} on {}, {}{roof}\n\n", p.title, p.device, p.precision);
    text += &lines("operation", "kernels", &p.operations());
    let kernels = p.kernels();
    if !kernels.is_empty() {
        text += "\n";
        text += &lines("kernel", "operations", &kernels);
    }
    let floors: f64 = p.operations().iter().filter_map(|l| l.floor_us).sum();
    let floor = if p.roof.is_known() { format!(", floor {floors:.0} us") } else { String::new() };
    text += &format!(
        "\none run {:.0} us ({:.1} images/s); {} steps {:.0} us, {:.0} us between them{floor}: medians of {} runs",
        p.run_us,
        p.images_per_second(),
        p.steps.len(),
        p.steps_us,
        (p.run_us - p.steps_us).max(0.0),
        p.runs,
    );
    if p.overhead_us > 0.0 {
        text += &format!("; {:.2} us a step for taking its time are left out", p.overhead_us);
    }
    text += "\n";
    if let Some(next) = p.operations().into_iter().max_by(|a, b| gain(a).total_cmp(&gain(b))) {
        let Line { name, shape, us, .. } = &next;
        text += &match next.over_floor_us {
            Some(gain) => format!("most to gain: {name} {shape}, {gain:.0} of {us:.0} us\n"),
            None => format!("slowest: {name} {shape}, {us:.0} us\n"),
        };
    }
    text
}

/// What a line would save at its floor; where no roof is known, all of it.
fn gain(line: &Line) -> f64 {
    line.over_floor_us.unwrap_or(line.us)
}

fn lines(name: &str, detail: &str, all: &[Line]) -> String {
    let number = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.1}"));
    let row = |l: &Line| {
        let cells = [
            l.name.clone(),
            l.shape.clone(),
            l.detail.clone(),
            l.count.to_string(),
            format!("{:.1}", l.us),
            format!("{:.1}", l.percent),
            format!("{:.2}", l.tflops),
            format!("{:.1}", l.gbs),
            number(l.floor_us),
            number(l.roof_percent),
        ];
        (' ', cells)
    };
    let rows: Vec<_> = all.iter().take(MOST_LINES).map(row).collect();
    let heading = [name, "shape", detail, "count", "us", "%", "TFLOP/s", "GB/s", "floor us", "% of roof"];
    let mut text = table::table(heading, &rows, 3);
    if all.len() > MOST_LINES {
        let rest = &all[MOST_LINES..];
        let us: f64 = rest.iter().map(|l| l.us).sum();
        let percent: f64 = rest.iter().map(|l| l.percent).sum();
        text += &format!("  and {} more: {us:.1} us, {percent:.1} %\n", rest.len());
    }
    text
}

/// The line that profiles the slowest launch of a kernel in a later run of the same command.
fn ncu(profile: &Profile, kernel: &str, command: Vec<String>) -> Result<String> {
    let kernels = profile.kernels();
    let Some(slowest) = kernels.first() else {
        bail!("Nsight Compute looks at kernels on a GPU: add --device cuda");
    };
    let name = if kernel.is_empty() { &slowest.name } else { kernel };
    let launches: Vec<_> = profile.steps.iter().filter(|s| s.kernel.as_deref() == Some(name)).collect();
    let Some((at, step)) = launches.iter().enumerate().max_by(|a, b| a.1.us.total_cmp(&b.1.us)) else {
        let known: Vec<&str> = kernels.iter().map(|l| l.name.as_str()).collect();
        bail!("no kernel {name:?} in this run; those are {}", known.join(", "));
    };
    // The first run loads what the second finds loaded.
    let skip = launches.len() + at;
    let mut rest = command.into_iter().peekable();
    let mut words = Vec::new();
    while let Some(word) = rest.next() {
        if word == "--ncu" {
            rest.next_if(|next| next == kernel && !kernel.is_empty());
        } else if !word.starts_with("--ncu=") {
            words.push(quoted(&word));
        }
    }
    Ok(format!(
        "# {} of {}: {:.1} us\nncu --set full --graph-profiling node --kernel-name {name} --launch-skip {skip} \
         --launch-count 1 --export {name} {}",
        step.operation,
        step.scope,
        step.us,
        words.join(" ")
    ))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
