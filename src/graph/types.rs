//! Element types of the operands of every operation.

use super::op::{Epilogue, LossNoise, NoiseSource};
use super::{DType, Op};

impl Op {
    /// The element type that each operand must have, in the order of the operands.
    ///
    /// Activations and their gradients are [`DType::Act`]; parameters, statistics, timesteps and what a sampler or the
    /// loss computes with are [`DType::F32`]. The types are part of an operation's meaning: a kernel reads its operand
    /// without asking, so a state of a sampler enters the network through [`Op::ToAct`] alone.
    ///
    /// [`Op::GlobalNorm`] and [`Op::AdamW`] take any number of gradients; `operands` is how many operands there are.
    pub fn operand_types(&self, operands: usize) -> Vec<DType> {
        use DType::{Act, F32, I32};
        let some = |on: bool| usize::from(on);
        match self {
            Op::TimeEmbedding(_) | Op::TimestepIndex { .. } | Op::ToAct | Op::RepeatBatch => vec![F32],
            Op::Constant { .. } => Vec::new(),
            Op::FourierEmbedding => vec![F32, F32],
            Op::Embedding => vec![F32, I32],
            Op::EmbeddingGrad { .. } => vec![Act, I32],
            Op::Linear(e) | Op::Conv2d(_, e) => [vec![Act, F32], epilogue(e)].concat(),
            Op::LinearDgrad { residual } | Op::ConvDgrad { residual, .. } => {
                [vec![Act, F32], vec![Act; some(*residual)]].concat()
            }
            Op::LinearWgrad { .. } | Op::ConvWgrad { .. } => vec![Act, Act],
            Op::GroupNorm(n) => [vec![Act, F32, F32], vec![Act; some(n.modulated)]].concat(),
            Op::GroupNormGrad(n) => [vec![Act, Act, F32, F32], vec![Act; some(n.modulated)], vec![F32]].concat(),
            Op::AttentionGrad { .. } => vec![Act, Act, Act, F32],
            Op::Attention { .. }
            | Op::Upsample2x
            | Op::Upsample2xGrad
            | Op::AvgPool2x
            | Op::AvgPool2xGrad
            | Op::Fir(_)
            | Op::Slice { .. }
            | Op::Activation(_)
            | Op::SumPixels
            | Op::SpreadPixels { .. }
            | Op::AbsMax
            | Op::Affine { .. } => vec![Act],
            Op::PoolTokens => vec![Act, F32],
            Op::PoolTokensGrad { .. } | Op::FirstToken | Op::FirstTokenGrad { .. } => vec![Act],
            Op::LogProbability => vec![Act, I32],
            Op::Concat | Op::ActivationGrad(_) | Op::Add | Op::AddPerImage => vec![Act, Act],
            Op::DivideByTime => vec![Act, F32],
            Op::Dropout { .. } => vec![Act, I32, I32],
            Op::Noising(_) => vec![F32, I32, I32],
            Op::DiffusionLoss { noise: LossNoise::Given, .. } => vec![Act, F32, F32, F32, F32],
            Op::DiffusionLoss { noise: LossNoise::Redrawn, .. } => vec![Act, F32, I32, I32, F32],
            Op::StepTimestep { .. } | Op::Advance => vec![I32],
            Op::SamplerStep(s) => {
                let history = s.table.history();
                let more = some(s.noise == NoiseSource::Given) + some(history.x0_prev2) + some(history.saved);
                let gradient = vec![Act; some(s.classifier_scale.is_some())];
                [vec![F32, Act, F32, I32, I32, I32], vec![F32; more], gradient].concat()
            }
            Op::GlobalNorm | Op::AdamW(_) => vec![F32; operands],
        }
    }
}

fn epilogue(e: &Epilogue) -> Vec<DType> {
    [(e.bias, DType::F32), (e.per_image, DType::Act), (e.residual, DType::Act)]
        .into_iter()
        .filter_map(|(used, dtype)| used.then_some(dtype))
        .collect()
}
