//! Reading and writing `scheduler_config.json`.
//!
//! The reader is strict where the result would change: an unknown class, an unknown key or a value that is not
//! implemented is an error. Keys that cannot change the result are skipped: those that start with `_`, those of
//! another supported class, and a few retired ones.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::config::{Algorithm, DpmSolverOptions, SamplerKind, SchedulerConfig, SigmaSpacing, SolverType, UniPcType};
use super::error::{DiffusionError, Result};
use super::parameterization::PredictionType;
use super::schedule::Schedule;
use super::score_sde_json;
use super::timesteps::TimestepSpacing;
use super::variance::VarianceType;

/// The name of DDPMScheduler before diffusers 0.2.
const LEGACY_CLASS: &str = "GaussianDDPMScheduler";
const SHARED_KEYS: [&str; 12] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
];
const DDPM_KEYS: [&str; 3] = ["variance_type", "clip_sample", "clip_sample_range"];
const DDIM_KEYS: [&str; 4] = ["set_alpha_to_one", "set_alpha_to_zero", "clip_sample", "clip_sample_range"];
const DPM_SOLVER_KEYS: [&str; 8] = [
    "variance_type",
    "algorithm_type",
    "solver_order",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "final_sigmas_type",
    "lambda_min_clipped",
];
const UNIPC_KEYS: [&str; 4] = ["predict_x0", "disable_corrector", "solver_p", "shift_terminal"];
const SIGMA_KEYS: [&str; 8] = [
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "sigma_min",
    "sigma_max",
    "interpolation_type",
    "timestep_type",
];
/// Switches that select a time discretisation of which only `false` is implemented.
const SWITCHES_OFF: [&str; 2] = ["use_flow_sigmas", "use_dynamic_shifting"];
/// Retired keys, keys of classes that old files were converted from, and keys read only behind a switch that must be
/// off.
const HARMLESS_KEYS: [&str; 6] =
    ["tensor_format", "timestep_values", "skip_prk_steps", "num_inference_steps", "flow_shift", "time_shift_type"];

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`. The bare words `Infinity`, `-Infinity` and `NaN`, which Python
    /// writes, are accepted.
    ///
    /// # Errors
    /// Invalid JSON, an unsupported class, a key of the wrong type or with a value that is not implemented, an unknown
    /// key, or betas that are no noise schedule. The message names class, key and value.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_value(&serde_json::from_str(&quote_bare_floats(text))?)
    }

    /// As [`from_json`](Self::from_json), but leaves out keys that nobody knows. The second result is these, with their values.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), but for unknown keys.
    pub fn from_json_lenient(text: &str) -> Result<(Self, Vec<String>)> {
        let mut value: Value = serde_json::from_str(&quote_bare_floats(text))?;
        let mut ignored = Vec::new();
        if let Some(object) = value.as_object_mut() {
            for key in unknown_keys(object) {
                let value = object.remove(&key).unwrap_or_default();
                ignored.push(format!("{key} = {value}"));
            }
        }
        Ok((Self::from_value(&value)?, ignored))
    }

    /// Reads a parsed `scheduler_config.json`.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_value(value: &Value) -> Result<Self> {
        let object = value.as_object().ok_or_else(|| {
            DiffusionError::Malformed(
                "expected a JSON object with `_class_name` and the scheduler's options".to_owned(),
            )
        })?;
        let class = match object.get("_class_name") {
            Some(Value::String(class)) => class.as_str(),
            Some(other) => return Err(invalid("_class_name", other, "a string")),
            None => {
                return Err(DiffusionError::Malformed(format!(
                    "`_class_name` is missing: add it, one of {}",
                    super::config::SUPPORTED_CLASSES
                )));
            }
        };
        let legacy = class == LEGACY_CLASS;
        let sampler = match class {
            LEGACY_CLASS => SamplerKind::Ddpm,
            other => *SamplerKind::ALL
                .iter()
                .find(|kind| kind.class_name() == other)
                .ok_or_else(|| DiffusionError::UnsupportedScheduler { class: other.to_owned() })?,
        };
        if let Some(key) = unknown_keys(object).into_iter().next() {
            let value = object.get(&key).unwrap_or(&Value::Null).to_string();
            return Err(DiffusionError::UnknownKey { key, value });
        }

        let mut config = Self::new(sampler);
        if sampler == SamplerKind::ScoreSde {
            score_sde_json::read_options(object, &mut config)?;
            return Ok(config);
        }
        read_shared(object, legacy, &mut config)?;
        match sampler {
            SamplerKind::Ddpm => read(object, "variance_type", VARIANCE_TYPES, &mut config.variance_type)?,
            SamplerKind::Ddim => read(object, "set_alpha_to_one", SWITCH, &mut config.set_alpha_to_one)?,
            SamplerKind::DdimInverse => {
                // The older name, under which the class still takes it.
                read(object, "set_alpha_to_zero", SWITCH, &mut config.set_alpha_to_one)?;
                read(object, "set_alpha_to_one", SWITCH, &mut config.set_alpha_to_one)?;
            }
            SamplerKind::DpmSolverPp | SamplerKind::DpmSolverSinglestep => read_dpm_solver(object, &mut config)?,
            SamplerKind::UniPc => read_unipc(object, &mut config)?,
            SamplerKind::Euler | SamplerKind::Heun => read_sigmas(object, &mut config)?,
            SamplerKind::EulerAncestral | SamplerKind::ScoreSde => {}
        }
        config.check_limits()?;
        // Builds the tables once so that a bad schedule is refused where it is read, not when it is first used.
        Schedule::new(&config.betas)?;
        Ok(config)
    }

    /// The text of a `scheduler_config.json` with the keys of this sampler's class, all of them written out.
    pub fn to_json(&self) -> String {
        if self.sampler == SamplerKind::ScoreSde {
            return score_sde_json::to_json(self);
        }
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
        put("_class_name", json!(self.sampler.class_name()));
        put("num_train_timesteps", json!(self.betas.num_train_timesteps));
        put("beta_start", json!(self.betas.beta_start));
        put("beta_end", json!(self.betas.beta_end));
        put("beta_schedule", json!(self.betas.schedule));
        put("trained_betas", json!(self.betas.trained_betas));
        put("prediction_type", json!(self.prediction_type));
        put("thresholding", json!(self.thresholding));
        put("dynamic_thresholding_ratio", json!(self.dynamic_thresholding_ratio));
        put("sample_max_value", json!(self.sample_max_value));
        put("timestep_spacing", json!(self.spacing()));
        put("steps_offset", json!(self.steps_offset));
        put("rescale_betas_zero_snr", json!(self.betas.rescale_zero_terminal_snr));
        if matches!(self.sampler, SamplerKind::Ddpm | SamplerKind::Ddim | SamplerKind::DdimInverse | SamplerKind::Heun)
        {
            put("clip_sample", json!(self.clip_sample));
            put("clip_sample_range", json!(self.clip_sample_range));
        }
        match self.sampler {
            SamplerKind::Ddpm => {
                put("variance_type", json!(self.variance_type));
            }
            SamplerKind::Ddim | SamplerKind::DdimInverse => {
                put("set_alpha_to_one", json!(self.set_alpha_to_one));
            }
            SamplerKind::DpmSolverPp | SamplerKind::DpmSolverSinglestep => {
                let learned = self.variance_type.is_learned().then_some(self.variance_type);
                put("variance_type", json!(learned));
                put("algorithm_type", json!(self.dpm_solver.algorithm));
                put("solver_order", json!(self.dpm_solver.solver_order));
                put("solver_type", json!(self.dpm_solver.solver_type));
                put("lower_order_final", json!(self.dpm_solver.lower_order_final));
                if self.sampler == SamplerKind::DpmSolverPp {
                    put("euler_at_final", json!(self.dpm_solver.euler_at_final));
                }
                put("final_sigmas_type", json!(self.dpm_solver.final_sigmas_type));
                // -inf has no JSON form; it is what a missing key means.
                if self.dpm_solver.lambda_min_clipped.is_finite() {
                    put("lambda_min_clipped", json!(self.dpm_solver.lambda_min_clipped));
                }
            }
            SamplerKind::UniPc => {
                put("solver_order", json!(self.dpm_solver.solver_order));
                put("solver_type", json!(self.unipc.solver_type));
                put("predict_x0", json!(self.unipc.predict_x0));
                put("disable_corrector", json!(self.unipc.disable_corrector));
                put("lower_order_final", json!(self.dpm_solver.lower_order_final));
                put("final_sigmas_type", json!(self.dpm_solver.final_sigmas_type));
            }
            SamplerKind::Euler => {
                let (linear, continuous) = (!self.sigmas.log_linear, self.sigmas.continuous);
                put("interpolation_type", json!(if linear { "linear" } else { "log_linear" }));
                put("timestep_type", json!(if continuous { "continuous" } else { "discrete" }));
                put("final_sigmas_type", json!(self.dpm_solver.final_sigmas_type));
            }
            SamplerKind::EulerAncestral | SamplerKind::Heun | SamplerKind::ScoreSde => {}
        }
        for (key, spacing) in SigmaSpacing::SWITCHES {
            if has_spacing(self.sampler, spacing) {
                put(key, json!(self.sigmas.spacing == spacing));
            }
        }
        if has_sigma_limits(self.sampler) {
            put("sigma_min", json!(self.sigmas.sigma_min));
            put("sigma_max", json!(self.sigmas.sigma_max));
        }
        format!("{:#}\n", Value::Object(object))
    }

    fn check_limits(&self) -> Result<()> {
        let limits = [
            ("clip_sample_range", self.clip_sample_range, self.clip_sample_range > 0.0, "a number above 0"),
            ("sample_max_value", self.sample_max_value, self.sample_max_value > 0.0, "a number above 0"),
            (
                "dynamic_thresholding_ratio",
                self.dynamic_thresholding_ratio,
                (0.0..=1.0).contains(&self.dynamic_thresholding_ratio),
                "a quantile from 0 to 1",
            ),
        ];
        match limits.iter().find(|(.., holds, _)| !holds) {
            Some((key, value, _, expected)) => Err(invalid(key, &json!(value), expected)),
            None => Ok(()),
        }
    }
}

const SWITCH: &str = "true or false";
const VARIANCE_TYPES: &str = "fixed_small, fixed_small_log, fixed_large, fixed_large_log, learned or learned_range";

fn unknown_keys(object: &Map<String, Value>) -> Vec<String> {
    let legacy = object.get("_class_name").is_some_and(|class| class == LEGACY_CLASS);
    let known: [&[&str]; 9] = [
        &SHARED_KEYS,
        &DDPM_KEYS,
        &DDIM_KEYS,
        &DPM_SOLVER_KEYS,
        &UNIPC_KEYS,
        &SIGMA_KEYS,
        &score_sde_json::KEYS,
        &SWITCHES_OFF,
        &HARMLESS_KEYS,
    ];
    let legacy_keys = ["timesteps", "clip_predicted_image"];
    let accepted = |key: &str| {
        key.starts_with('_')
            || key == "predict_epsilon"
            || (legacy && legacy_keys.contains(&key))
            || known.iter().any(|keys| keys.contains(&key))
    };
    object.keys().filter(|key| !accepted(key)).cloned().collect()
}

fn read_shared(object: &Map<String, Value>, legacy: bool, config: &mut SchedulerConfig) -> Result<()> {
    let number = "a number";
    let switch = "true or false";
    let betas = &mut config.betas;
    let count = "a whole number of timesteps";
    read(object, "num_train_timesteps", count, &mut betas.num_train_timesteps)?;
    if legacy {
        read(object, "timesteps", count, &mut betas.num_train_timesteps)?;
        read(object, "clip_predicted_image", switch, &mut config.clip_sample)?;
    }
    read(object, "beta_start", number, &mut betas.beta_start)?;
    read(object, "beta_end", number, &mut betas.beta_end)?;
    let curves = "linear, scaled_linear, squaredcos_cap_v2, sigmoid or laplace";
    read(object, "beta_schedule", curves, &mut betas.schedule)?;
    read(object, "trained_betas", "null or a list of numbers", &mut betas.trained_betas)?;
    read(object, "rescale_betas_zero_snr", switch, &mut betas.rescale_zero_terminal_snr)?;

    let mut predict_epsilon = true;
    read(object, "predict_epsilon", switch, &mut predict_epsilon)?;
    if !predict_epsilon {
        config.prediction_type = PredictionType::Sample;
    }
    let predictions = "epsilon, sample or v_prediction";
    read(object, "prediction_type", predictions, &mut config.prediction_type)?;
    if object.contains_key("timestep_spacing") {
        let mut spacing = TimestepSpacing::Leading;
        read(object, "timestep_spacing", "leading, linspace or trailing", &mut spacing)?;
        config.timestep_spacing = Some(spacing);
    }
    read(object, "steps_offset", "a whole number, 0 or more", &mut config.steps_offset)?;
    read(object, "clip_sample", switch, &mut config.clip_sample)?;
    read(object, "clip_sample_range", number, &mut config.clip_sample_range)?;
    read(object, "thresholding", switch, &mut config.thresholding)?;
    read(object, "dynamic_thresholding_ratio", number, &mut config.dynamic_thresholding_ratio)?;
    read(object, "sample_max_value", number, &mut config.sample_max_value)
}

/// The classes that read a switch of a spacing.
fn has_spacing(sampler: SamplerKind, spacing: SigmaSpacing) -> bool {
    use SamplerKind::{DpmSolverPp, DpmSolverSinglestep, Euler, Heun, UniPc};
    match spacing {
        SigmaSpacing::Timesteps => true,
        SigmaSpacing::Lu => sampler == DpmSolverPp,
        _ => matches!(sampler, DpmSolverPp | DpmSolverSinglestep | UniPc | Euler | Heun),
    }
}

/// The classes that read `sigma_min` and `sigma_max`.
fn has_sigma_limits(sampler: SamplerKind) -> bool {
    matches!(sampler, SamplerKind::UniPc | SamplerKind::Euler)
}

fn unsupported(object: &Map<String, Value>, key: &str, remedy: &str) -> DiffusionError {
    DiffusionError::UnsupportedValue {
        key: key.to_owned(),
        value: object.get(key).unwrap_or(&Value::Null).to_string(),
        remedy: remedy.to_owned(),
    }
}

/// The spacing of noise levels, and where they end.
fn read_sigmas(object: &Map<String, Value>, config: &mut SchedulerConfig) -> Result<()> {
    for key in SWITCHES_OFF {
        let mut on = Some(false);
        read(object, key, SWITCH, &mut on)?;
        if on == Some(true) {
            return Err(unsupported(object, key, "set it to false: the noise levels then follow timestep_spacing"));
        }
    }
    let sampler = config.sampler;
    for (key, spacing) in SigmaSpacing::SWITCHES.into_iter().filter(|(_, spacing)| has_spacing(sampler, *spacing)) {
        let mut on = Some(false);
        read(object, key, SWITCH, &mut on)?;
        if on == Some(true) {
            if config.sigmas.spacing != SigmaSpacing::Timesteps {
                return Err(unsupported(object, key, "another use_*_sigmas is true as well: keep one"));
            }
            config.sigmas.spacing = spacing;
        }
    }
    if has_sigma_limits(sampler) {
        for (key, limit) in [("sigma_min", &mut config.sigmas.sigma_min), ("sigma_max", &mut config.sigmas.sigma_max)] {
            read(object, key, "null or a number above 0", limit)?;
            if let Some(value) = limit.filter(|sigma| !(*sigma > 0.0 && sigma.is_finite())) {
                return Err(invalid(key, &json!(value), "null or a number above 0"));
            }
        }
    }
    if sampler == SamplerKind::Euler {
        config.sigmas.log_linear = one_of(object, "interpolation_type", ["linear", "log_linear"])?;
        config.sigmas.continuous = one_of(object, "timestep_type", ["discrete", "continuous"])?;
    }
    if sampler != SamplerKind::Heun {
        read(object, "final_sigmas_type", "zero or sigma_min", &mut config.dpm_solver.final_sigmas_type)?;
    }
    Ok(())
}

/// Whether a key holds the second of two words; the first is the default.
fn one_of(object: &Map<String, Value>, key: &str, [first, second]: [&str; 2]) -> Result<bool> {
    let mut word = first.to_owned();
    let expected = format!("{first} or {second}");
    read(object, key, &expected, &mut word)?;
    match word.as_str() {
        word if word == first => Ok(false),
        word if word == second => Ok(true),
        _ => Err(unsupported(object, key, &format!("use {expected}"))),
    }
}

fn read_order(object: &Map<String, Value>, options: &mut DpmSolverOptions) -> Result<()> {
    read(object, "solver_order", "1, 2 or 3", &mut options.solver_order)?;
    if !matches!(options.solver_order, 1..=3) {
        return Err(unsupported(object, "solver_order", "use 1, 2 or 3"));
    }
    read(object, "lower_order_final", SWITCH, &mut options.lower_order_final)
}

fn read_unipc(object: &Map<String, Value>, config: &mut SchedulerConfig) -> Result<()> {
    read_sigmas(object, config)?;
    read_order(object, &mut config.dpm_solver)?;
    read(object, "predict_x0", SWITCH, &mut config.unipc.predict_x0)?;
    let mut solver_type = "bh2".to_owned();
    read(object, "solver_type", "a string", &mut solver_type)?;
    config.unipc.solver_type = match solver_type.as_str() {
        "bh1" => UniPcType::Bh1,
        // The last three name rules of other solvers and mean bh2 here.
        "bh2" | "midpoint" | "heun" | "logrho" => UniPcType::Bh2,
        _ => return Err(unsupported(object, "solver_type", "use bh1 or bh2")),
    };
    let steps = "a list of step numbers, 0 or more";
    read(object, "disable_corrector", steps, &mut config.unipc.disable_corrector)?;
    for (key, remedy) in [
        ("solver_p", "set it to null: the predictor is UniPC's own"),
        ("shift_terminal", "set it to null: it belongs to use_flow_sigmas"),
    ] {
        if object.get(key).is_some_and(|value| !value.is_null()) {
            return Err(unsupported(object, key, remedy));
        }
    }
    Ok(())
}

fn read_dpm_solver(object: &Map<String, Value>, config: &mut SchedulerConfig) -> Result<()> {
    read_sigmas(object, config)?;
    let options = &mut config.dpm_solver;
    read_order(object, options)?;
    let mut algorithm = "dpmsolver++".to_owned();
    read(object, "algorithm_type", "a string", &mut algorithm)?;
    options.algorithm = match algorithm.as_str() {
        // `deis` is read as dpmsolver++ by the software that writes these files.
        "dpmsolver++" | "deis" => Algorithm::OdeX0,
        "sde-dpmsolver++" => Algorithm::SdeX0,
        "dpmsolver" => Algorithm::OdeEps,
        "sde-dpmsolver" => Algorithm::SdeEps,
        _ => {
            return Err(unsupported(
                object,
                "algorithm_type",
                "use dpmsolver++, sde-dpmsolver++, dpmsolver or sde-dpmsolver",
            ));
        }
    };
    let mut solver_type = "midpoint".to_owned();
    read(object, "solver_type", "a string", &mut solver_type)?;
    options.solver_type = match solver_type.as_str() {
        // The last three name rules of other solvers and mean midpoint here.
        "midpoint" | "logrho" | "bh1" | "bh2" => SolverType::Midpoint,
        "heun" => SolverType::Heun,
        _ => return Err(unsupported(object, "solver_type", "use midpoint or heun")),
    };
    if config.sampler == SamplerKind::DpmSolverPp {
        read(object, "euler_at_final", SWITCH, &mut options.euler_at_final)?;
    }
    options.lambda_min_clipped = match object.get("lambda_min_clipped") {
        None | Some(Value::Null) => f64::NEG_INFINITY,
        Some(value) => match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
        .filter(|lambda: &f64| !lambda.is_nan() && *lambda < f64::INFINITY)
        .ok_or_else(|| invalid("lambda_min_clipped", value, "a number, \"-inf\" or null"))?,
    };
    super::dpm_solver::check(config)?;
    let mut variance_type: Option<VarianceType> = None;
    read(object, "variance_type", VARIANCE_TYPES, &mut variance_type)?;
    config.variance_type = variance_type.unwrap_or_default();
    Ok(())
}

/// Overwrites `target` with the value of `key` if the key is there.
pub(super) fn read<T: DeserializeOwned>(
    object: &Map<String, Value>,
    key: &str,
    expected: &str,
    target: &mut T,
) -> Result<()> {
    if let Some(value) = object.get(key) {
        *target = serde_json::from_value(value.clone()).map_err(|_| invalid(key, value, expected))?;
    }
    Ok(())
}

pub(super) fn invalid(key: &str, value: &Value, expected: &str) -> DiffusionError {
    DiffusionError::InvalidValue { key: key.to_owned(), value: value.to_string(), expected: expected.to_owned() }
}

/// Puts quotes around the bare words by which Python writes non-finite numbers, outside strings.
fn quote_bare_floats(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].iter().find(|word| rest.starts_with(**word));
        if let (false, Some(word)) = (in_string, word) {
            out.push('"');
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        if next == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && next == '\\' && !escaped;
        out.push(next);
        rest = &rest[next.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaSchedule, FinalSigmas, SigmaOptions, UniPcOptions};

    fn error(text: &str) -> String {
        SchedulerConfig::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn a_sparse_old_file_takes_the_class_defaults() {
        let config = SchedulerConfig::from_json(
            r#"{"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
                "beta_start": 0.0001, "clip_sample": true, "num_train_timesteps": 1000, "trained_betas": null,
                "variance_type": "fixed_large"}"#,
        )
        .unwrap();
        let expected =
            SchedulerConfig { variance_type: VarianceType::FixedLarge, ..SchedulerConfig::new(SamplerKind::Ddpm) };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_legacy_class_has_its_own_keys() {
        let config = SchedulerConfig::from_json(
            r#"{"_class_name": "GaussianDDPMScheduler", "timesteps": 50, "clip_predicted_image": false,
                "tensor_format": "np", "predict_epsilon": false}"#,
        )
        .unwrap();
        assert_eq!(config.betas.num_train_timesteps, 50);
        assert_eq!((config.clip_sample, config.prediction_type), (false, PredictionType::Sample));
        assert!(error(r#"{"_class_name": "DDPMScheduler", "timesteps": 50}"#).contains("unknown key `timesteps`"));
    }

    #[test]
    fn every_written_config_reads_back() {
        for sampler in SamplerKind::ALL {
            // It has no timesteps to space.
            if sampler == SamplerKind::ScoreSde {
                continue;
            }
            let mut config = SchedulerConfig::new(sampler);
            config.timestep_spacing = Some(sampler.default_spacing());
            assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
        }
        let mut config = SchedulerConfig {
            prediction_type: PredictionType::VPrediction,
            variance_type: VarianceType::LearnedRange,
            timestep_spacing: Some(TimestepSpacing::Trailing),
            steps_offset: 1,
            thresholding: true,
            dynamic_thresholding_ratio: 0.9,
            sample_max_value: 2.5,
            dpm_solver: DpmSolverOptions {
                algorithm: Algorithm::SdeX0,
                solver_order: 3,
                solver_type: SolverType::Heun,
                lower_order_final: false,
                euler_at_final: true,
                final_sigmas_type: FinalSigmas::SigmaMin,
                lambda_min_clipped: -5.1,
            },
            ..SchedulerConfig::new(SamplerKind::DpmSolverPp)
        };
        config.betas.schedule = BetaSchedule::ScaledLinear;
        config.betas.num_train_timesteps = 3;
        config.betas.trained_betas = Some(vec![0.1, 0.2, 0.3]);
        config.betas.rescale_zero_terminal_snr = true;
        assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
        let ddim = SchedulerConfig { clip_sample: false, clip_sample_range: 1.5, set_alpha_to_one: false, ..config }
            .with_sampler(SamplerKind::Ddim);
        let read = SchedulerConfig::from_json(&ddim.to_json()).unwrap();
        let carried = SchedulerConfig { variance_type: ddim.variance_type, dpm_solver: ddim.dpm_solver, ..read };
        assert_eq!(carried, ddim);
    }

    #[test]
    fn lambda_min_clipped_has_many_spellings() {
        for text in ["-Infinity", "\"-inf\"", "\"-Infinity\"", "null"] {
            let text = format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": {text}}}"#);
            let config = SchedulerConfig::from_json(&text).unwrap();
            assert_eq!(config.dpm_solver.lambda_min_clipped, f64::NEG_INFINITY);
        }
        for text in ["NaN", "Infinity", "\"low\"", "true"] {
            let text = format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": {text}}}"#);
            assert!(error(&text).contains("`lambda_min_clipped` is"), "{text}");
        }
        assert_eq!(
            quote_bare_floats(r#"{"a\"NaN": "NaN", "b": [-Infinity]}"#),
            r#"{"a\"NaN": "NaN", "b": ["-Infinity"]}"#
        );
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        let dpm = |rest: &str| format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", {rest}}}"#);
        let ddpm = |rest: &str| format!(r#"{{"_class_name": "DDPMScheduler", {rest}}}"#);
        let of = |class: &str, rest: &str| format!(r#"{{"_class_name": "{class}", {rest}}}"#);
        for (text, words) in [
            (r#"{"_class_name": "PNDMScheduler"}"#.to_owned(), ["PNDMScheduler", "DDIMScheduler"]),
            (dpm(r#""solver_order": 4"#), ["`solver_order` = 4", "use 1, 2 or 3"]),
            (dpm(r#""algorithm_type": "rk""#), ["`algorithm_type`", "sde-dpmsolver++"]),
            (dpm(r#""algorithm_type": "dpmsolver""#), ["final_sigmas_type", "sigma_min"]),
            (dpm(r#""use_flow_sigmas": true"#), ["`use_flow_sigmas` = true", "false"]),
            (dpm(r#""use_karras_sigmas": true, "use_lu_lambdas": true"#), ["`use_lu_lambdas` = true", "keep one"]),
            (of("UniPCMultistepScheduler", r#""solver_type": "bh3""#), ["`solver_type`", "bh2"]),
            (of("UniPCMultistepScheduler", r#""solver_p": "x""#), ["`solver_p`", "null"]),
            (of("UniPCMultistepScheduler", r#""disable_corrector": [-1]"#), ["`disable_corrector`", "[-1]"]),
            (of("EulerDiscreteScheduler", r#""sigma_min": 0.0"#), ["`sigma_min`", "above 0"]),
            (of("EulerDiscreteScheduler", r#""interpolation_type": "cubic""#), ["`interpolation_type`", "log_linear"]),
            (of("EulerDiscreteScheduler", r#""timestep_type": 3"#), ["`timestep_type`", "continuous"]),
            (of("HeunDiscreteScheduler", r#""beta_schedule": "exp""#), ["`beta_schedule`", "exp"]),
            (of("HeunDiscreteScheduler", r#""use_flow_sigmas": true"#), ["`use_flow_sigmas`", "false"]),
            (dpm(r#""solver_type": "rk4""#), ["`solver_type`", "rk4"]),
            (ddpm(r#""prediction_type": "velocity""#), ["`prediction_type`", "velocity"]),
            (ddpm(r#""beta_schedule": "quadratic""#), ["`beta_schedule`", "quadratic"]),
            (ddpm(r#""num_train_timesteps": 0"#), ["num_train_timesteps", "0"]),
            (ddpm(r#""num_train_timesteps": -4"#), ["`num_train_timesteps`", "-4"]),
            (ddpm(r#""beta_end": 1.7"#), ["beta[", "beta_end"]),
            (ddpm(r#""steps_offset": -1"#), ["`steps_offset`", "-1"]),
            (ddpm(r#""clip_sample_range": 0.0"#), ["`clip_sample_range`", "above 0"]),
            (ddpm(r#""dynamic_thresholding_ratio": 1.2"#), ["`dynamic_thresholding_ratio`", "1.2"]),
            (ddpm(r#""noise_power": 2"#), ["`noise_power`", "2"]),
            (ddpm(r#""trained_betas": [0.1, 0.2]"#), ["trained_betas has 2", "1000"]),
            ("[]".to_owned(), ["JSON object", "_class_name"]),
            ("{}".to_owned(), ["`_class_name`", "DDPMScheduler"]),
            ("{".to_owned(), ["not valid JSON", "line 1"]),
        ] {
            let message = error(&text);
            assert!(words.iter().all(|word| message.contains(word)), "{text} gave: {message}");
        }
    }

    #[test]
    fn keys_of_the_other_classes_are_skipped() {
        let text = r#"{"_class_name": "DDIMScheduler", "variance_type": "fixed_large", "solver_order": 3}"#;
        assert_eq!(SchedulerConfig::from_json(text).unwrap(), SchedulerConfig::new(SamplerKind::Ddim));
    }

    #[test]
    fn every_key_of_the_sigma_samplers_is_read() {
        let read = |class: &str, rest: &str| {
            SchedulerConfig::from_json(&format!(r#"{{"_class_name": "{class}", {rest}}}"#)).unwrap()
        };
        let euler = read(
            "EulerDiscreteScheduler",
            r#""interpolation_type": "log_linear", "timestep_type": "continuous", "use_exponential_sigmas": true,
               "sigma_min": 0.1, "sigma_max": 40, "final_sigmas_type": "sigma_min", "use_karras_sigmas": null"#,
        );
        let sigmas = SigmaOptions {
            spacing: SigmaSpacing::Exponential,
            sigma_min: Some(0.1),
            sigma_max: Some(40.0),
            log_linear: true,
            continuous: true,
        };
        assert_eq!((euler.sigmas, euler.dpm_solver.final_sigmas_type), (sigmas, FinalSigmas::SigmaMin));
        assert_eq!(SchedulerConfig::from_json(&euler.to_json()).unwrap().sigmas, sigmas);
        let heun = read("HeunDiscreteScheduler", r#""use_karras_sigmas": true, "clip_sample": true"#);
        assert_eq!((heun.sigmas.spacing, heun.clip_sample), (SigmaSpacing::Karras, true));
        assert_eq!((heun.betas.beta_start, heun.betas.beta_end), (0.00085, 0.012));
        let unipc = read(
            "UniPCMultistepScheduler",
            r#""solver_order": 3, "solver_type": "bh1", "predict_x0": false, "disable_corrector": [0, 2],
               "lower_order_final": false, "final_sigmas_type": "sigma_min", "solver_p": null"#,
        );
        let options = UniPcOptions { solver_type: UniPcType::Bh1, predict_x0: false, disable_corrector: vec![0, 2] };
        assert_eq!(unipc.unipc, options);
        assert_eq!((unipc.dpm_solver.solver_order, unipc.dpm_solver.lower_order_final), (3, false));
        assert_eq!(SchedulerConfig::from_json(&unipc.to_json()).unwrap().unipc, options);
        let inverse = read("DDIMInverseScheduler", r#""set_alpha_to_zero": false"#);
        assert_eq!((inverse.sampler, inverse.set_alpha_to_one), (SamplerKind::DdimInverse, false));
        let single = read("DPMSolverSinglestepScheduler", r#""algorithm_type": "sde-dpmsolver++", "solver_order": 3"#);
        assert_eq!((single.dpm_solver.algorithm, single.dpm_solver.lower_order_final), (Algorithm::SdeX0, false));
    }
}
