//! The noised classifier of ADM (2105.05233, section 4.3): the encoder half of the U-Net and a pool.

use super::builder::encode;
use super::{ConfigError, UNetConfig};
use crate::graph::{Activation, DType, Graph, Op, ParamSpec, ValueId, fuse::fuse};

/// What makes a vector of the encoder's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassifierPool {
    /// Attention of the mean over all pixels to every pixel, with learned positions.
    Attention,
    /// The means over the pixels of every block's result, and a network of two layers.
    Spatial,
}

/// Width of the hidden layer of [`ClassifierPool::Spatial`].
const HIDDEN: usize = 2048;

/// A classifier of noisy images.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierConfig {
    /// The encoder: its levels, its middle block and its time embedding. What it says of a decoder is not read.
    pub encoder: UNetConfig,
    /// The pool.
    pub pool: ClassifierPool,
    /// Number of classes.
    pub classes: usize,
}

/// What the names of a classifier's parameters begin with: it may stand in a graph beside the network that it guides.
pub const CLASSIFIER_PREFIX: &str = "classifier.";

impl ClassifierConfig {
    /// The parameters, in the order of every program.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no network.
    pub fn parameters(&self) -> Result<Vec<ParamSpec>, ConfigError> {
        let (h, w) = self.size()?;
        let mut graph = Graph::new();
        let x = graph.input("x", [1, h, w, self.encoder.in_channels], DType::Act);
        let t = graph.input("t", [1], DType::F32);
        build_classifier(&mut graph, self, x, t)?;
        Ok(graph.params().to_vec())
    }

    /// Height and width of the images: those that the pool's positions are for.
    ///
    /// # Errors
    /// Where the configuration does not say them.
    pub fn size(&self) -> Result<(usize, usize), ConfigError> {
        let detail = || "a classifier is for images of one size, and the configuration does not say it".into();
        self.encoder.height_width().ok_or_else(|| ConfigError::Invalid { key: "sample_size", detail: detail() })
    }
}

/// Appends the classifier: x `[N, H, W, C]` and t `[N]` in, logits `[N, classes]` out.
///
/// # Errors
/// [`ConfigError`] if configuration and images do not fit together.
pub fn build_classifier(
    graph: &mut Graph,
    config: &ClassifierConfig,
    x: ValueId,
    t: ValueId,
) -> Result<ValueId, ConfigError> {
    let from = graph.mark();
    let results = encode(graph, &config.encoder, x, t)?;
    let logits = match (config.pool, results.last()) {
        (ClassifierPool::Attention, Some(&h)) => attention_pool(graph, config, h)?,
        _ => spatial_pool(graph, config, &results)?,
    };
    graph.prefix_since(from, CLASSIFIER_PREFIX);
    Ok(logits)
}

/// A layer over the means of all blocks' results, ReLU, and another layer.
fn spatial_pool(graph: &mut Graph, config: &ClassifierConfig, results: &[ValueId]) -> Result<ValueId, ConfigError> {
    graph.set_scope("out");
    let mut features = None;
    for &result in results {
        let sum = graph.apply(Op::SumPixels, &[result])?;
        let mean = graph.scale(sum, 1.0 / graph.shape(result).pixels() as f64)?;
        features = Some(match features {
            None => mean,
            Some(before) => graph.apply(Op::Concat, &[before, mean])?,
        });
    }
    let Some(features) = features else {
        return Err(ConfigError::Invalid { key: "classifier", detail: "its encoder has no block".into() });
    };
    let hidden = linear(graph, "out.0", features, HIDDEN, &[])?;
    let hidden = graph.apply(Op::Activation(Activation::Relu), &[hidden])?;
    linear(graph, "out.2", hidden, config.classes, &[])
}

fn attention_pool(graph: &mut Graph, config: &ClassifierConfig, h: ValueId) -> Result<ValueId, ConfigError> {
    let c = graph.shape(h).channels();
    graph.set_scope("out.0");
    let [gamma, beta] = ["weight", "bias"].map(|leaf| graph.param(ParamSpec::plain(format!("out.0.{leaf}"), &[c])));
    let encoder = &config.encoder;
    let h = graph.group_norm(h, gamma, beta, None, encoder.groups(c), encoder.norm_eps)?;
    let h = graph.silu(h)?;
    let width = config.encoder.attention_head_dim.unwrap_or(c);
    if width == 0 || !c.is_multiple_of(width) {
        return Err(ConfigError::Invalid {
            key: "attention_head_dim",
            detail: format!("{c} channels of the pool do not divide into heads of {width}"),
        });
    }
    graph.set_scope("out.2");
    let positions = ParamSpec::plain("out.2.positional_embedding", &[c, graph.shape(h).pixels() + 1]);
    let positions = graph.param(positions);
    let tokens = graph.apply(Op::PoolTokens, &[h, positions])?;
    let qkv = linear(graph, "out.2.qkv_proj", tokens, 3 * c, &[1])?;
    let mixed = graph.apply(Op::Attention { heads: c / width }, &[qkv])?;
    let first = graph.apply(Op::FirstToken, &[mixed])?;
    linear(graph, "out.2.c_proj", first, config.classes, &[1])
}

/// A linear layer; the file's weight has `kernel` as its last extents, where it is a convolution of one element there.
fn linear(graph: &mut Graph, name: &str, x: ValueId, out: usize, kernel: &[usize]) -> Result<ValueId, ConfigError> {
    graph.set_scope(name);
    let c = graph.shape(x).channels();
    let mut weight = ParamSpec::plain(format!("{name}.weight"), &[out, c]);
    weight.parts[0].file_shape.extend(kernel);
    let weight = graph.param(weight);
    let bias = graph.param(ParamSpec::plain(format!("{name}.bias"), &[out]));
    Ok(graph.linear(x, weight, Some(bias))?)
}

/// What a classifier says of a batch, and where it points.
#[derive(Clone, Copy, Debug)]
pub struct ClassifierValues {
    /// Class of each image `[N]`, to be written.
    pub label: ValueId,
    /// Logits `[N, classes]`.
    pub logits: ValueId,
    /// log p(label | x_t) `[N]`.
    pub log_probability: ValueId,
    /// Its gradient with respect to x_t `[N, H, W, C]`.
    pub gradient: ValueId,
}

/// Appends the classifier with the gradient of a class's log-probability with respect to the images. The graph up to here is
/// fused, as before every differentiation.
///
/// # Errors
/// [`ConfigError`] if configuration and images do not fit together.
pub fn build_classifier_gradient(
    graph: &mut Graph,
    config: &ClassifierConfig,
    x: ValueId,
    t: ValueId,
) -> Result<ClassifierValues, ConfigError> {
    let logits = build_classifier(graph, config, x, t)?;
    let label = graph.input("classifier_label", [graph.shape(x).batch()], DType::I32);
    let scored = graph.push(Op::LogProbability, &[logits, label])?;
    scored.iter().chain([&logits]).for_each(|&value| graph.keep(value));
    fuse(graph);
    let previous = graph.set_scope("classifier.backward");
    let gradients = crate::graph::autodiff::backward_to(graph, &[(logits, scored[1])], &[x])?;
    graph.set_scope(previous);
    let Some(gradient) = gradients[0] else {
        let detail = "its result does not depend on the image".into();
        return Err(ConfigError::Invalid { key: "classifier", detail });
    };
    Ok(ClassifierValues { label, logits, log_probability: scored[0], gradient })
}
