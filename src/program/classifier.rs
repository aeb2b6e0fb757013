//! A classifier of noisy images, and where its answer points.

use super::Batch;
use crate::graph::{DType, Graph, Plan, ValueId, fuse::fuse};
use crate::unet::{ClassifierConfig, ClassifierValues, ConfigError, build_classifier_gradient};

/// The classifier alone: x_t, t and a class in; logits, the class's log-probability and its gradient out.
#[derive(Clone, Debug)]
pub struct ClassifierProgram {
    /// What a backend compiles.
    pub plan: Plan,
    /// x_t `[N, H, W, C]`.
    pub x: ValueId,
    /// Timesteps `[N]`.
    pub t: ValueId,
    /// What it takes and gives beside them.
    pub values: ClassifierValues,
}

impl ClassifierProgram {
    /// Builds the program.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no network for this batch.
    pub fn new(config: &ClassifierConfig, batch: Batch) -> Result<Self, ConfigError> {
        let mut graph = Graph::new();
        let x = graph.input("x_t", [batch.n, batch.h, batch.w, config.encoder.in_channels], DType::Act);
        let t = graph.input("t", [batch.n], DType::F32);
        let values = build_classifier_gradient(&mut graph, config, x, t)?;
        graph.keep(values.gradient);
        fuse(&mut graph);
        Ok(Self { plan: Plan::new(graph), x, t, values })
    }
}
