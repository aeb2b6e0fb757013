//! What decides the samples of a run, to be stored with them.

use serde_json::{Map, Value, json};

use super::{Conditions, LabelChoice, SampleError, SampleOptions};
use crate::diffusion::Compat;
use crate::model::ModelFolder;

impl SampleOptions {
    /// The settings of a run over `count` samples on a device, by name. Two runs with the same settings have the same samples; how
    /// many are computed at once and by how many threads is left out, since nothing depends on it unless
    /// [`super::Sampler::mixes_images`].
    ///
    /// # Errors
    /// If the model's weights cannot be read.
    pub fn settings(
        &self,
        model: &ModelFolder,
        conditions: &Conditions,
        count: usize,
        (device, precision): (&str, &str),
    ) -> Result<Map<String, Value>, SampleError> {
        let scheduler: Value = serde_json::from_str(&self.scheduler.to_json()).unwrap_or_default();
        let compat = match self.scheduler.compat {
            Compat::Paper => "paper",
            Compat::Diffusers => "diffusers",
            Compat::GuidedDiffusion => "guided-diffusion",
        };
        let label = match self.labels {
            LabelChoice::Balanced => json!("balanced"),
            LabelChoice::Only(label) => json!(label),
        };
        let mut all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model.fingerprint()?,
            "scheduler": scheduler,
            "steps": self.steps,
            "eta": self.eta,
            "compat": compat,
            "seed": self.seed,
            "label": label,
            "guidance": self.guidance,
            "guidance_rescale": self.guidance_rescale,
            "num": count,
            "device": device,
            "precision": precision,
        });
        if let Some(respacing) = &self.scheduler.respacing {
            all["respacing"] = json!(respacing);
        }
        if let Some((classifier, scale)) = &conditions.classifier {
            all["classifier"] = json!({"model": classifier.fingerprint()?, "scale": scale});
        }
        if let Some(low_res) = &conditions.low_res {
            all["low_res"] = json!(low_res.fingerprint());
        }
        match all {
            Value::Object(all) => Ok(all),
            _ => Ok(Map::new()),
        }
    }
}
