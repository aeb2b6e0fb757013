//! `scheduler_config.json` of the VE sampler, which shares nothing with the others but the number of timesteps.

use serde_json::{Map, Value, json};

use super::config::SchedulerConfig;
use super::config_json::{invalid, read};
use super::error::{DiffusionError, Result};
use super::score_sde::ScoreSdeOptions;

/// Its keys that no other class has.
pub(super) const KEYS: [&str; 3] = ["snr", "sampling_eps", "correct_steps"];

/// Corrector steps at a level: far beyond what anybody takes.
const MAX_CORRECT_STEPS: usize = 1000;

pub(super) fn read_options(object: &Map<String, Value>, config: &mut SchedulerConfig) -> Result<()> {
    read(object, "num_train_timesteps", "a whole number of timesteps", &mut config.betas.num_train_timesteps)?;
    if config.betas.num_train_timesteps == 0 {
        return Err(DiffusionError::NoTrainTimesteps);
    }
    let mut o = ScoreSdeOptions::default();
    for (key, value) in [
        ("snr", &mut o.snr),
        ("sigma_min", &mut o.sigma_min),
        ("sigma_max", &mut o.sigma_max),
        ("sampling_eps", &mut o.sampling_eps),
    ] {
        read(object, key, "a number", value)?;
    }
    read(object, "correct_steps", "a whole number, 0 or more", &mut o.correct_steps)?;
    let limits = [
        ("snr", json!(o.snr), o.snr > 0.0 && o.snr.is_finite(), "a number above 0"),
        ("sigma_min", json!(o.sigma_min), o.sigma_min > 0.0, "a number above 0"),
        ("sigma_max", json!(o.sigma_max), o.sigma_max > o.sigma_min && o.sigma_max.is_finite(), "above sigma_min"),
        ("sampling_eps", json!(o.sampling_eps), (0.0..1.0).contains(&o.sampling_eps), "a time from 0 to below 1"),
        ("correct_steps", json!(o.correct_steps), o.correct_steps <= MAX_CORRECT_STEPS, "1000 at most"),
    ];
    if let Some((key, value, _, expected)) = limits.iter().find(|(_, _, holds, _)| !holds) {
        return Err(invalid(key, value, expected));
    }
    config.score_sde = o;
    Ok(())
}

pub(super) fn to_json(config: &SchedulerConfig) -> String {
    let o = &config.score_sde;
    let object = json!({
        "_class_name": config.sampler.class_name(),
        "num_train_timesteps": config.betas.num_train_timesteps,
        "snr": o.snr,
        "sigma_min": o.sigma_min,
        "sigma_max": o.sigma_max,
        "sampling_eps": o.sampling_eps,
        "correct_steps": o.correct_steps,
    });
    format!("{object:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::config::SamplerKind;
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut config = SchedulerConfig::new(SamplerKind::ScoreSde);
        config.betas.num_train_timesteps = 2000;
        config.score_sde =
            ScoreSdeOptions { snr: 0.1, sigma_min: 0.2, sigma_max: 30.0, sampling_eps: 1e-4, correct_steps: 2 };
        assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn values_without_a_meaning_are_refused_by_their_key() {
        for (key, value) in
            [("snr", "0"), ("sigma_min", "-1"), ("sigma_max", "0.001"), ("sampling_eps", "1"), ("correct_steps", "1e9")]
        {
            let text = format!(r#"{{"_class_name": "ScoreSdeVeScheduler", "{key}": {value}}}"#);
            let error = SchedulerConfig::from_json(&text).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
