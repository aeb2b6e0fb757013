//! Values of options that the library knows by name.

use serde::de::DeserializeOwned;

use super::sample::Shard;
use crate::diffusion::{BetaSchedule, PredictionType};
use crate::sample::LabelChoice;

fn known<T: DeserializeOwned>(name: &str, accepted: &str) -> Result<T, String> {
    serde_json::from_value(name.into()).map_err(|_| format!("{name:?} is not known; {accepted} are"))
}

/// A noise schedule.
pub(super) fn schedule(name: &str) -> Result<BetaSchedule, String> {
    let name = if name == "cosine" { "squaredcos_cap_v2" } else { name };
    known(name, "linear, scaled_linear, squaredcos_cap_v2 (cosine), sigmoid")
}

/// What a network predicts.
pub(super) fn prediction(name: &str) -> Result<PredictionType, String> {
    let name = if name == "v" { "v_prediction" } else { name };
    known(name, "epsilon, sample, v_prediction")
}

/// A class, or all in turn.
pub(super) fn label(text: &str) -> Result<LabelChoice, String> {
    if text == "balanced" {
        return Ok(LabelChoice::Balanced);
    }
    text.parse().map(LabelChoice::Only).map_err(|_| format!("{text:?} is neither a class number nor \"balanced\""))
}

/// A part of a run, `2/8`.
pub(super) fn shard(text: &str) -> Result<Shard, String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((index, count)) if 1 <= index && index <= count => Ok(Shard { index, count }),
        _ => Err(format!("{text:?} is no shard; of eight they are 1/8, 2/8, .. 8/8")),
    }
}
