//! Progress on the terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress of a loop: a bar on a terminal, a line now and then elsewhere, nothing when quiet.
pub(super) struct Progress {
    bar: ProgressBar,
    name: &'static str,
    unit: &'static str,
    total: u64,
    begin: Instant,
    first: u64,
    /// Time of the last line, where lines are printed.
    last_line: Option<Instant>,
}

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

impl Progress {
    /// Starts at `first` of `total`.
    pub fn new(name: &'static str, unit: &'static str, first: u64, total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) },
        );
        let template = "{prefix} {bar:30.cyan/blue} {pos}/{len} {msg} elapsed {elapsed} ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_prefix(name);
        bar.set_position(first);
        bar.reset_eta();
        let lines = !quiet && !terminal;
        let begin = Instant::now();
        Self { bar, name, unit, total, begin, first, last_line: lines.then_some(begin) }
    }

    /// Work per second since the start.
    pub fn rate(&self, position: u64) -> f64 {
        (position.saturating_sub(self.first)) as f64 / self.begin.elapsed().as_secs_f64().max(1e-9)
    }

    /// Shows how far it is; `detail` is shown beside the rate.
    pub fn at(&mut self, position: u64, detail: &str) {
        let rate = self.rate(position);
        self.bar.set_message(format!("{rate:.1} {}/s {detail}", self.unit));
        self.bar.set_position(position);
        if self.last_line.is_some_and(|t| t.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            let left = (self.total.saturating_sub(position)) as f64 / rate.max(1e-9);
            eprintln!("{} {position}/{} {rate:.1} {}/s {detail} ETA {left:.0} s", self.name, self.total, self.unit);
        }
    }

    /// Leaves the final state on the terminal.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}
