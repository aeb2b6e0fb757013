//! The graphs that the loops replay: one forward pass, one sampling step, one training step.

mod classifier;
mod forward;
mod sampling;
mod training;

pub use classifier::ClassifierProgram;
pub use forward::ForwardProgram;
pub use sampling::{Guide, SamplingOptions, SamplingProgram};
pub use training::{Given, TrainingInputs, TrainingOptions, TrainingProgram};

use crate::graph::{DType, Graph, Op, ParamSpec, ValueId};
use crate::unet::{ClassEmbedding, ClassInput, ConfigError, UNetConfig};

/// Batch size and image size of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Samples, N.
    pub n: usize,
    /// Image height.
    pub h: usize,
    /// Image width.
    pub w: usize,
}

impl Batch {
    /// Elements of a batch of `channels`-channel images.
    pub fn numel(&self, channels: usize) -> usize {
        self.n * self.h * self.w * channels
    }
}

/// The parameters of a network, in the order in which every program has them.
///
/// # Errors
/// [`ConfigError`] if the configuration makes no network.
pub fn parameters(config: &UNetConfig) -> Result<Vec<ParamSpec>, ConfigError> {
    // They do not depend on the images' size, so a small one will do; the coarsest level needs two pixels to be mirrored.
    let side = (2usize << (config.block_out_channels.len().clamp(1, 16) - 1)).min(1 << 13);
    let network = ForwardProgram::new(config, Batch { n: 1, h: side, w: side }, false)?;
    Ok(network.plan.graph().params().to_vec())
}

/// The class-label input that a model takes, for `n` samples.
fn class_input(graph: &mut Graph, config: &UNetConfig, n: usize) -> Option<ClassInput> {
    let value = |v: ValueId| Some(ClassInput::Value(v));
    match (config.class_embed_type, config.num_class_embeds) {
        (None, None) => None,
        (None, Some(_)) => Some(ClassInput::Index(graph.input("class_labels", [n], DType::I32))),
        (Some(ClassEmbedding::Timestep), _) => value(graph.input("class_labels", [n], DType::F32)),
        (Some(ClassEmbedding::Identity), _) => {
            value(graph.input("class_labels", [n, config.embedding_width()], DType::Act))
        }
    }
}

fn class_value(class: Option<ClassInput>) -> Option<ValueId> {
    class.map(|c| match c {
        ClassInput::Index(v) | ClassInput::Value(v) => v,
    })
}

/// The network's input: x_t as an activation, with the condition's channels behind it where the model has one. The second
/// result is the input that takes the condition, f32 `[N, H, W, condition_channels]`.
fn with_condition(
    graph: &mut Graph,
    config: &UNetConfig,
    batch: Batch,
    x: ValueId,
    to_act: &Op,
) -> Result<(ValueId, Option<ValueId>), ConfigError> {
    if config.condition_channels == 0 {
        return Ok((x, None));
    }
    let shape = [batch.n, batch.h, batch.w, config.condition_channels];
    let condition = graph.input("condition", shape, DType::F32);
    let activation = graph.apply(to_act.clone(), &[condition])?;
    Ok((graph.apply(Op::Concat, &[x, activation])?, Some(condition)))
}

/// Channels of the image: those of the output, without variance channels.
fn check_channels(config: &UNetConfig) -> Result<(), ConfigError> {
    let (i, o) = (config.image_channels(), config.out_channels);
    if o == i || o == 2 * i {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        key: "out_channels",
        detail: format!("{o} is neither the {i} channels of the image nor twice that (a learned variance)"),
    })
}
