//! The operations of a network that are no products, with the numbers that their operands should hold.

use super::program::Fill;
use crate::graph::{Graph, GroupNorm, LossNoise, Node, Op, Shape};

/// Operations that are measured by one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Forward noising, and the loss, which draws the noise again.
    Noise,
    /// Group norm with what is fused to it, forward and backward.
    Norm,
    /// Attention, forward and backward.
    Attention,
    /// The update of a sampler.
    SamplerStep,
    /// The norm of all gradients; AdamW with the moving average.
    Optim,
    /// Embeddings of timesteps and classes.
    Embedding,
    /// Whatever reads and writes each element once.
    Elementwise,
}

impl Family {
    /// All of them, the most telling first.
    pub const ALL: [Self; 7] =
        [Self::Norm, Self::Attention, Self::SamplerStep, Self::Noise, Self::Optim, Self::Elementwise, Self::Embedding];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Norm => "norm",
            Self::Attention => "attention",
            Self::SamplerStep => "sampler-step",
            Self::Optim => "optim",
            Self::Embedding => "embedding",
            Self::Elementwise => "elementwise",
        }
    }

    /// The family of an operation; `None` for products, counters, constants and what only measures.
    pub fn of(op: &Op) -> Option<Self> {
        Some(match op {
            Op::Noising(_) | Op::DiffusionLoss { .. } => Self::Noise,
            Op::GroupNorm(_) | Op::GroupNormGrad(_) => Self::Norm,
            Op::Attention { .. } | Op::AttentionGrad { .. } => Self::Attention,
            Op::SamplerStep(_) => Self::SamplerStep,
            Op::GlobalNorm | Op::AdamW(_) => Self::Optim,
            Op::TimeEmbedding(_)
            | Op::FourierEmbedding
            | Op::TimestepIndex { .. }
            | Op::Embedding
            | Op::EmbeddingGrad { .. } => Self::Embedding,
            Op::Upsample2x
            | Op::Upsample2xGrad
            | Op::AvgPool2x
            | Op::AvgPool2xGrad
            | Op::Fir(_)
            | Op::Concat
            | Op::Slice { .. }
            | Op::Activation(_)
            | Op::ActivationGrad(_)
            | Op::Add
            | Op::AddPerImage
            | Op::SumPixels
            | Op::SpreadPixels { .. }
            | Op::Affine { .. }
            | Op::DivideByTime
            | Op::Dropout { .. }
            | Op::ToAct
            | Op::RepeatBatch
            | Op::PoolTokens
            | Op::PoolTokensGrad { .. }
            | Op::FirstToken
            | Op::FirstTokenGrad { .. }
            | Op::LogProbability => Self::Elementwise,
            Op::Linear(_)
            | Op::LinearDgrad { .. }
            | Op::LinearWgrad { .. }
            | Op::Conv2d(..)
            | Op::ConvDgrad { .. }
            | Op::ConvWgrad { .. }
            | Op::AbsMax
            | Op::Constant { .. }
            | Op::StepTimestep { .. }
            | Op::Advance => return None,
        })
    }
}

/// An operation with the shapes of its operands.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Where it belongs.
    pub family: Family,
    /// Its shape: the same for the same work.
    pub name: String,
    /// Which of the operations of that shape.
    pub pass: &'static str,
    /// What is computed.
    pub op: Op,
    /// Of its operands; of the optimiser's, the parameters'.
    pub shapes: Vec<Shape>,
    /// Whether it is measured behind a convolution that made its operand, and may have left something for it.
    pub behind_product: bool,
}

impl Operation {
    /// The operation of a node, if it belongs to a family.
    pub fn of(graph: &Graph, node: &Node) -> Option<Self> {
        let family = Family::of(&node.op)?;
        let shapes: Vec<Shape> = match family {
            Family::Optim => graph.params().iter().map(|p| p.shape).collect(),
            _ => node.inputs.iter().map(|&v| graph.shape(v)).collect(),
        };
        let result = node.outputs.first().map(|&v| graph.shape(v));
        Some(Self::new(family, node.op.clone(), shapes, result))
    }

    fn new(family: Family, op: Op, shapes: Vec<Shape>, result: Option<Shape>) -> Self {
        let (name, pass) = (name(&op, &shapes, result), pass(&op));
        Self { family, name, pass, op, shapes, behind_product: false }
    }

    /// Attention on `[n, t, 1, 3c]` projections, forward and backward.
    pub fn attention([n, tokens, channels, heads]: [usize; 4]) -> [Self; 2] {
        let (qkv, out) = (Shape::new(&[n, tokens, 1, 3 * channels]), Shape::new(&[n, tokens, 1, channels]));
        let sums = Shape::new(&[n, heads, tokens]);
        [(Op::Attention { heads }, vec![qkv]), (Op::AttentionGrad { heads }, vec![out, qkv, out, sums])]
            .map(|(op, shapes)| Self::new(Family::Attention, op, shapes, None))
    }

    /// A group norm of `[n, h, w, c]` images, forward and backward.
    pub fn norm(x: [usize; 4], norm: GroupNorm) -> [Self; 2] {
        let (x, channels) = (Shape::new(&x), Shape::new(&x[3..]));
        let statistics = Shape::new(&[x.batch(), norm.groups, 2]);
        let modulation = norm.modulated.then(|| Shape::new(&[x.batch(), 2 * x.channels()]));
        let operands = [x, channels, channels].into_iter().chain(modulation);
        let gradient = [x].into_iter().chain(operands.clone()).chain([statistics]);
        [(Op::GroupNorm(norm), operands.collect()), (Op::GroupNormGrad(norm), gradient.collect())]
            .map(|(op, shapes)| Self::new(Family::Norm, op, shapes, None))
    }

    /// The norm behind a convolution of the same shape, whose statistics it may be given; `None` of other operations.
    pub fn behind_product(&self) -> Option<Self> {
        let is_norm = matches!(self.op, Op::GroupNorm(_));
        is_norm.then(|| Self { pass: "given", behind_product: true, ..self.clone() })
    }

    /// Whether it works on all parameters at once.
    pub fn is_optimizer(&self) -> bool {
        self.family == Family::Optim
    }

    /// What an operand should hold.
    pub(super) fn fill(&self, operand: usize) -> Fill {
        let count = self.shapes.get(operand).map_or(1, |s| s.numel() as u32);
        let indices = || Fill::Integers((0..count).collect());
        let timesteps = |most: usize| Fill::Numbers((0..count).map(|i| (i as usize * 37 % most) as f32).collect());
        let key = || Fill::Integers(vec![1, 0]);
        let image = Fill::Near { mean: 0.0, deviation: 0.5 };
        match (&self.op, operand) {
            (Op::GroupNormGrad(_), last) if last + 1 == self.shapes.len() => Fill::Near { mean: 1.0, deviation: 0.1 },
            // The sum over T tokens of exp of a standard normal.
            (Op::AttentionGrad { .. }, 3) => {
                Fill::Near { mean: (self.shapes[1].pixels() as f32).ln() + 0.5, deviation: 0.1 }
            }
            (Op::Noising(_), 0) | (Op::DiffusionLoss { .. }, 1) => image,
            (Op::Noising(_) | Op::Dropout { .. } | Op::Embedding, 1) | (Op::SamplerStep(_), 4) => indices(),
            (Op::Noising(_) | Op::Dropout { .. }, 2) | (Op::SamplerStep(_), 5) => key(),
            (Op::DiffusionLoss { noise: LossNoise::Redrawn, .. }, 2) => indices(),
            (Op::DiffusionLoss { noise: LossNoise::Redrawn, .. }, 3) => key(),
            (Op::DiffusionLoss { objective, .. }, 4) => timesteps(objective.schedule().num_timesteps()),
            (Op::EmbeddingGrad { vocabulary }, 1) => {
                Fill::Integers((0..count).map(|i| i % (*vocabulary).max(1) as u32).collect())
            }
            // The middle of the table: multistep samplers have their history by then.
            (Op::SamplerStep(s), 3) => Fill::Integers(vec![s.table.rows.len() as u32 / 2]),
            (Op::TimeEmbedding(_), 0) => timesteps(1000),
            (Op::FourierEmbedding, 0) | (Op::DivideByTime, 1) => Fill::Near { mean: 10.0, deviation: 0.1 },
            (Op::AdamW(_), 0) => Fill::Numbers(vec![1.0]),
            // So small a step that weights stay what they are over any number of runs.
            (Op::AdamW(_), 1) => Fill::Numbers(vec![1e-9, 0.1, 0.001, 0.9999]),
            _ => Fill::Normal,
        }
    }
}

/// The operations of a family among the nodes of a graph, with how often they are there, in the order of their first use.
pub fn operations(graph: &Graph, family: Family) -> Vec<(Operation, usize)> {
    let mut all: Vec<(Operation, usize)> = Vec::new();
    for node in graph.nodes().iter().filter(|node| Family::of(&node.op) == Some(family)) {
        let Some(operation) = Operation::of(graph, node) else { continue };
        match all.iter_mut().find(|(known, _)| (&known.name, known.pass) == (&operation.name, operation.pass)) {
            Some((_, count)) => *count += 1,
            None => all.push((operation, 1)),
        }
    }
    all
}

fn pass(op: &Op) -> &'static str {
    match op {
        Op::GroupNorm(_) | Op::Attention { .. } => "forward",
        Op::GroupNormGrad(_) | Op::AttentionGrad { .. } => "backward",
        Op::DiffusionLoss { .. } => "loss",
        Op::SamplerStep(_) => "step",
        Op::GlobalNorm => "norm",
        other => other.name(),
    }
}

fn name(op: &Op, operands: &[Shape], result: Option<Shape>) -> String {
    let image = |s: &Shape| {
        let (h, w) = s.height_width();
        format!("n{}h{h}w{w}c{}", s.batch(), s.channels())
    };
    let norm = |x: &Shape, n: &GroupNorm| {
        let (silu, modulated) = (if n.silu { ".silu" } else { "" }, if n.modulated { ".modulated" } else { "" });
        format!("{}g{}{silu}{modulated}", image(x), n.groups)
    };
    let attention = |x: &Shape, heads: usize| format!("n{}t{}c{}h{heads}", x.batch(), x.pixels(), x.channels() / 3);
    match op {
        Op::GroupNorm(n) => norm(&operands[0], n),
        Op::GroupNormGrad(n) => norm(&operands[1], n),
        Op::Attention { heads } => attention(&operands[0], *heads),
        Op::AttentionGrad { heads } => attention(&operands[1], *heads),
        Op::Noising(_) => image(&operands[0]),
        Op::DiffusionLoss { objective, .. } => {
            format!("{}{}", image(&operands[1]), if objective.learned_variance() { ".learned" } else { "" })
        }
        Op::SamplerStep(_) => image(&operands[0]),
        Op::GlobalNorm | Op::AdamW(_) => format!("p{}", operands.iter().map(Shape::numel).sum::<usize>()),
        _ => {
            let operands = operands.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
            result.map_or(operands.clone(), |y| format!("{operands}>{y}"))
        }
    }
}
