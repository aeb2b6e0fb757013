//! Replays golden cases: a model folder, recorded inputs, and what an independent f64 implementation made of them.

mod adm;
mod case;
mod editing;
mod network;
mod tables;
mod training;

use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::backend::{Backend, BackendError, Precision};
use crate::diffusion::DiffusionError;
use crate::io::FileError;
use crate::model::ModelError;
use crate::unet::ConfigError;

pub use case::{Case, find_cases};

/// Why a case, or one of its checks, could not be run.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A file of the case cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `case.json` does not have the expected form.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A check lacks a field, or has one of another type.
    #[error("check {check}: {problem}")]
    Check {
        /// Its id.
        check: String,
        /// What is wrong.
        problem: String,
    },
    /// The model of the case is refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The configuration makes no network.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The schedule of a check is refused.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Within its tolerance.
    Pass,
    /// Outside its tolerance, or not run though it should have been.
    Fail,
    /// Not run, for a reason.
    Skip,
}

/// The outcome of one check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Name of the case.
    pub case: String,
    /// Id of the check within it.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// How it ended.
    pub status: Status,
    /// The error that was measured, in the metric of the check.
    pub error: Option<f64>,
    /// What it may be.
    pub tolerance: Option<f64>,
    /// Why it failed or was skipped; empty for a pass.
    pub reason: String,
}

/// What a check measured.
struct Measured {
    error: f64,
    tolerance: f64,
    /// Where the largest error is.
    place: String,
}

impl Measured {
    fn new(error: f64, tolerance: f64, place: impl Into<String>) -> Self {
        // A NaN compares false with everything; it must never pass.
        let error = if error.is_nan() { f64::INFINITY } else { error };
        Self { error, tolerance, place: place.into() }
    }

    /// The one that is closer to its tolerance, or beyond it by more.
    fn worse(self, other: Self) -> Self {
        if other.error / other.tolerance > self.error / self.tolerance { other } else { self }
    }
}

/// Runs every check of the case in `folder`, with its tolerances for the backend's precision.
///
/// Cases hold bf16 tolerances for model outputs only; with a bf16 backend the other checks are skipped.
///
/// # Errors
/// [`VerifyError`] if the case itself cannot be read; a check that cannot be run is a failure in its report.
pub fn verify_case(folder: &Path, backend: &dyn Backend) -> Result<Vec<CheckReport>, VerifyError> {
    let case = Case::open(folder, None)?;
    Ok(case.checks().map(|check| report(&case, check, backend)).collect())
}

/// As [`verify_case`], but ignores keys and tensors of the model that are not known, and tells `on_warning`.
///
/// # Errors
/// As [`verify_case`].
pub fn verify_case_leniently(
    folder: &Path,
    backend: &dyn Backend,
    on_warning: &mut dyn FnMut(&str),
) -> Result<Vec<CheckReport>, VerifyError> {
    let case = Case::open(folder, Some(on_warning))?;
    Ok(case.checks().map(|check| report(&case, check, backend)).collect())
}

fn report(case: &Case, check: case::Check, backend: &dyn Backend) -> CheckReport {
    let kind = check.kind().to_string();
    let base = CheckReport {
        case: case.name().to_string(),
        id: check.id().to_string(),
        kind,
        status: Status::Fail,
        error: None,
        tolerance: None,
        reason: String::new(),
    };
    let precision = backend.precision();
    if precision == Precision::Bf16 && check.value(tolerance_key(precision)).is_null() {
        return CheckReport { status: Status::Skip, reason: format!("has no tolerance for {precision}"), ..base };
    }
    let outcome = match base.kind.as_str() {
        "forward" => network::forward(case, check, backend),
        "debug_activations" => network::activations(case, check, backend),
        "sample" if check.value("diffusion").is_object() => adm::sample(case, check, backend),
        "sample" | "sample_cfg" => network::sample(case, check, backend),
        "invert" => network::invert(case, check, backend),
        "repaint" => editing::repaint(case, check, backend),
        "sde_ve" => network::score_sde(case, check, backend),
        "grad" => training::gradients(case, check, backend),
        "train" => training::steps(case, check, backend),
        "vlb" if check.value("diffusion").is_object() => adm::bound(case, check, backend),
        "vlb" => tables::bound(check),
        "classifier" => adm::classifier(case, check, backend),
        "loss" => adm::loss(case, check, backend),
        "topologies" => adm::topologies(case, check),
        "to_uint8" => adm::bytes(check),
        "schedule" if check.value("diffusion").is_object() => tables::respaced(check),
        "schedule" => tables::schedule(case, check),
        "respace_errors" => tables::respace_errors(check),
        other => Err(check.error(format!("checks of type {other:?} are not supported"))),
    };
    match outcome {
        // A ratio to 0 compares with nothing, so such a check could never fail.
        Ok(m) if m.tolerance.is_nan() || m.tolerance <= 0.0 => {
            CheckReport { reason: format!("the tolerance {} is not a positive number", m.tolerance), ..base }
        }
        Ok(m) if m.error <= m.tolerance => {
            CheckReport { status: Status::Pass, error: Some(m.error), tolerance: Some(m.tolerance), ..base }
        }
        Ok(m) => CheckReport { error: Some(m.error), tolerance: Some(m.tolerance), reason: m.place, ..base },
        Err(e) if case.optional() => CheckReport { status: Status::Skip, reason: e.to_string(), ..base },
        Err(e) => CheckReport { reason: e.to_string(), ..base },
    }
}

/// The field that holds a check's tolerance for a backend of that precision.
fn tolerance_key(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "tol_rel_fp32",
        Precision::Bf16 => "tol_rel_bf16",
    }
}

/// max|a - g| / max|g|.
fn relative_error(actual: &[f64], golden: &[f64]) -> f64 {
    if actual.len() != golden.len() {
        return f64::INFINITY;
    }
    let scale = golden.iter().fold(1e-30f64, |m, g| m.max(g.abs()));
    let worst = actual.iter().zip(golden).map(|(a, g)| (a - g).abs());
    worst.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / scale
}
