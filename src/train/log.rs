//! The record of a run: one line per step, which survives a resume.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::TrainError;
use crate::io::FileError;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Updates done so far, this one included: k, counted from 1.
    pub step: u64,
    /// Mean over the batch of what is minimised.
    pub loss: f64,
    /// Mean of L_simple, unweighted.
    pub simple: f64,
    /// Mean of the bound's term in bits/dim; 0 where the objective does not contain it.
    pub vb: f64,
    /// Global 2-norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay of the moving average in this update.
    pub ema_decay: f64,
}

const HEADER: &str = "step,loss,simple,vb,grad_norm,lr,ema_decay";

/// The text of `training/log.csv`. Numbers have as many digits as it takes to read the same f64 back.
pub(super) fn to_csv(rows: &[StepReport]) -> String {
    let mut text = format!("{HEADER}\n");
    for r in rows {
        let StepReport { step, loss, simple, vb, grad_norm, lr, ema_decay } = r;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{step},{loss},{simple},{vb},{grad_norm},{lr},{ema_decay}");
    }
    text
}

/// Reads the log of a checkpoint: exactly the steps 1 to `steps`.
///
/// # Errors
/// [`TrainError::Missing`]; [`TrainError::Malformed`] with the line.
pub(super) fn read_csv(path: &Path, steps: u64) -> Result<Vec<StepReport>, TrainError> {
    if !path.is_file() {
        return Err(TrainError::Missing { path: path.to_path_buf() });
    }
    let text = fs::read_to_string(path).map_err(FileError::os("read", path))?;
    let malformed = |line: usize, problem: String| TrainError::Malformed {
        path: path.to_path_buf(),
        problem: format!("line {line}: {problem}"),
    };
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(malformed(1, format!("expected {HEADER}")));
    }
    let mut rows = Vec::new();
    for (i, line) in lines.enumerate() {
        let row = parse(line).filter(|row| row.step == i as u64 + 1);
        rows.push(row.ok_or_else(|| malformed(i + 2, format!("{line:?} is not the record of step {}", i + 1)))?);
    }
    if rows.len() as u64 != steps {
        return Err(malformed(rows.len() + 1, format!("ends after step {}, the state is at step {steps}", rows.len())));
    }
    Ok(rows)
}

fn parse(line: &str) -> Option<StepReport> {
    let mut cells = line.split(',');
    let step = cells.next()?.parse().ok()?;
    let numbers: Vec<f64> = cells.map(|cell| cell.parse().ok()).collect::<Option<_>>()?;
    let [loss, simple, vb, grad_norm, lr, ema_decay] = numbers.try_into().ok()?;
    Some(StepReport { step, loss, simple, vb, grad_norm, lr, ema_decay })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<StepReport> {
        let x = |k: u64| 1.0 / (k as f64 + 0.3);
        let row = |k| StepReport {
            step: k,
            loss: x(k),
            simple: x(k + 1),
            vb: 1e-300,
            grad_norm: 1e7 * x(k),
            lr: 2e-4,
            ema_decay: 0.5,
        };
        (1..=5).map(row).collect()
    }

    #[test]
    fn every_bit_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        for n in [0, 1, 5] {
            fs::write(&path, to_csv(&rows()[..n])).unwrap();
            assert_eq!(read_csv(&path, n as u64).unwrap(), rows()[..n]);
        }
    }

    #[test]
    fn a_log_that_does_not_fit_is_refused_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        assert!(matches!(read_csv(&path, 0), Err(TrainError::Missing { .. })));
        let good = to_csv(&rows());
        let refused = |text: &str, steps: u64, line: &str| {
            fs::write(&path, text).unwrap();
            let error = read_csv(&path, steps).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains("log.csv"), "{error}");
        };
        refused(&good, 4, "ends after step 5");
        refused(&good[..good.len() - 2], 6, "line 6");
        refused("", 0, "line 1");
        refused(&good.replace("\n3,", "\n4,"), 5, "line 4");
        refused(&good.replace(",0.5\n", "\n"), 5, "line 2");
        refused(&good.replace(",0.5\n", ",0.5,1\n"), 5, "line 2");
        refused(&good.replace("0.0002", "x"), 5, "line 2");
    }
}
