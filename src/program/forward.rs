//! One evaluation of the network.

use super::{Batch, class_input, class_value};
use crate::graph::{DType, Graph, Plan, ValueId, fuse::fuse};
use crate::unet::{ConfigError, UNetConfig, UNetInputs, build};

/// The network alone: x_t and t in, model output out.
#[derive(Clone, Debug)]
pub struct ForwardProgram {
    /// What a backend compiles.
    pub plan: Plan,
    /// x_t `[N, H, W, in_channels]`.
    pub x: ValueId,
    /// Timesteps `[N]`.
    pub t: ValueId,
    /// Class labels, where the model takes them.
    pub class: Option<ValueId>,
    /// Model output `[N, H, W, out_channels]`.
    pub out: ValueId,
    /// Results of submodules; readable only if they were asked for.
    pub taps: Vec<(String, ValueId)>,
}

impl ForwardProgram {
    /// Builds the program; with `taps`, results of submodules stay readable.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no network for this batch.
    pub fn new(config: &UNetConfig, batch: Batch, taps: bool) -> Result<Self, ConfigError> {
        let mut graph = Graph::new();
        let x = graph.input("x_t", [batch.n, batch.h, batch.w, config.in_channels], DType::Act);
        let t = graph.input("t", [batch.n], DType::F32);
        let class = class_input(&mut graph, config, batch.n);
        let net = build(&mut graph, config, UNetInputs { x, t, class, dropout: None })?;
        graph.keep(net.out);
        if taps {
            net.taps.iter().for_each(|(_, v)| graph.keep(*v));
        }
        fuse(&mut graph);
        Ok(Self { x, t, class: class_value(class), out: net.out, taps: net.taps, plan: Plan::new(graph) })
    }
}
