//! One training step: noising, forward, loss, backward, clipping, AdamW and the moving average.

use std::sync::Arc;

use super::{Batch, check_channels, class_input, class_value, with_condition};
use crate::diffusion::TrainingObjective;
use crate::graph::autodiff::backward;
use crate::graph::op::{LossNoise, Noising};
use crate::graph::{AdamW, DType, Graph, Op, Plan, ValueId, fuse::fuse};
use crate::unet::{ConfigError, DropoutInputs, UNetConfig, UNetInputs, build};

/// Where x_t, t and eps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingInputs {
    /// Drawn in the step from (seed, global example index).
    Drawn,
    /// Given by the caller.
    Given,
    /// Given by the caller, with other times for the network than those of the loss: those of a respaced chain.
    GivenRespaced,
}

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainingOptions {
    /// What is minimised.
    pub objective: Arc<TrainingObjective>,
    /// How; `None` stops after the gradients.
    pub optimizer: Option<AdamW>,
    /// Where the noise comes from.
    pub inputs: TrainingInputs,
}

/// Operands of [`TrainingInputs::Given`] and [`TrainingInputs::GivenRespaced`].
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// x_t `[N, H, W, C]`.
    pub x_t: ValueId,
    /// eps `[N, H, W, C]`.
    pub eps: ValueId,
    /// t `[N]`, of the loss.
    pub t: ValueId,
    /// t `[N]`, of the network; the same value unless the inputs are [`TrainingInputs::GivenRespaced`].
    pub network_t: ValueId,
}

/// One training step as a program.
#[derive(Clone, Debug)]
pub struct TrainingProgram {
    /// What a backend compiles.
    pub plan: Plan,
    /// Clean images `[N, H, W, C]`.
    pub x0: ValueId,
    /// Global index of each example `[N]`.
    pub example_index: ValueId,
    /// The seed `[2]`.
    pub key: ValueId,
    /// Class labels, where the model takes them.
    pub class: Option<ValueId>,
    /// Learning rate, bias corrections and EMA decay: see [`AdamW`].
    pub hyper: ValueId,
    /// Inputs that replace the drawn ones.
    pub given: Option<Given>,
    /// The condition `[N, H, W, condition_channels]`, where the model has one.
    pub condition: Option<ValueId>,
    /// (loss, L_simple, bound) of each example `[N, 3]`.
    pub losses: ValueId,
    /// Global norm of the gradients before clipping, `[1]`.
    pub grad_norm: ValueId,
    /// Model output.
    pub out: ValueId,
}

impl TrainingProgram {
    /// Builds the program.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no network for this batch and objective.
    pub fn new(config: &UNetConfig, batch: Batch, options: &TrainingOptions) -> Result<Self, ConfigError> {
        check_channels(config)?;
        let objective = &options.objective;
        config.check_timesteps([(objective.schedule().num_timesteps() - 1) as f64])?;
        config.check_trainable(options.inputs == TrainingInputs::Drawn)?;
        if objective.learned_variance() != (config.out_channels == 2 * config.image_channels()) {
            return Err(ConfigError::Invalid {
                key: "out_channels",
                detail: format!(
                    "{} output channels for {} image channels do not fit the variance type: learned variances need \
                     twice the channels, fixed ones as many",
                    config.out_channels,
                    config.image_channels()
                ),
            });
        }
        let mut graph = Graph::new();
        let shape = [batch.n, batch.h, batch.w, config.image_channels()];
        let x0 = graph.input("x0", shape, DType::F32);
        let example_index = graph.input("example_index", [batch.n], DType::I32);
        let key = graph.input("key", [2], DType::I32);
        let hyper = graph.input("hyper", [AdamW::HYPER], DType::F32);
        let class = class_input(&mut graph, config, batch.n);

        let (network_x, t, given) = match options.inputs {
            TrainingInputs::Drawn => {
                let noising = Op::Noising(Noising::new(&objective.schedule().alpha_bars, false));
                let drawn = graph.push(noising, &[x0, example_index, key])?;
                (drawn[0], drawn[1], None)
            }
            TrainingInputs::Given | TrainingInputs::GivenRespaced => {
                let x_t = graph.input("x_t", shape, DType::F32);
                let eps = graph.input("eps", shape, DType::F32);
                let t = graph.input("t", [batch.n], DType::F32);
                let network_t = match options.inputs {
                    TrainingInputs::GivenRespaced => graph.input("network_t", [batch.n], DType::F32),
                    _ => t,
                };
                (graph.apply(Op::ToAct, &[x_t])?, t, Some(Given { x_t, eps, t, network_t }))
            }
        };
        let dropout = Some(DropoutInputs { example_index, key });
        let (network_x, condition) = with_condition(&mut graph, config, batch, network_x, &Op::ToAct)?;
        let network_t = given.map_or(t, |given| given.network_t);
        let net = build(&mut graph, config, UNetInputs { x: network_x, t: network_t, class, dropout })?;
        let (noise, [a, b]) = match given {
            Some(g) => (LossNoise::Given, [g.x_t, g.eps]),
            None => (LossNoise::Redrawn, [example_index, key]),
        };
        let loss = Op::DiffusionLoss { objective: Arc::clone(objective), noise };
        let loss = graph.push(loss, &[net.out, x0, a, b, t])?;
        graph.keep(loss[0]);
        graph.keep(net.out);
        graph.keep(loss[1]);
        // Before differentiating, so that fused activations are recomputed in the backward pass instead of stored.
        fuse(&mut graph);
        graph.set_scope("backward");
        backward(&mut graph, &[(net.out, loss[1])], &[])?;
        graph.set_scope("optimizer");
        let grads: Vec<ValueId> = (0..graph.params().len()).filter_map(|i| graph.grad_at(i)).collect();
        let grad_norm = graph.apply(Op::GlobalNorm, &grads)?;
        graph.keep(grad_norm);
        fuse(&mut graph);
        if let Some(optimizer) = options.optimizer {
            let operands: Vec<ValueId> = [grad_norm, hyper].into_iter().chain(grads).collect();
            graph.push(Op::AdamW(optimizer), &operands)?;
        }
        Ok(Self {
            plan: Plan::new(graph),
            x0,
            example_index,
            key,
            class: class_value(class),
            hyper,
            given,
            condition,
            losses: loss[0],
            grad_norm,
            out: net.out,
        })
    }
}
