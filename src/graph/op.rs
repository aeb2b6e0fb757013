//! The whole vocabulary of operations. Fused forms are operations too.
//!
//! Notation: `N` samples, `H`x`W` pixels, `C` input and `K` output channels, `T` = H·W tokens, `E` embedding width.
//! Activations are NHWC, convolution weights K·R·S·C, linear weights O·I.

use std::sync::Arc;

use super::{Activation, Fir};
use crate::diffusion::{Guidance, StepTable, TrainingObjective};
use crate::levels::Levels;

/// Geometry of a 2-D convolution, apart from its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Kernel height R and width S.
    pub kernel: (usize, usize),
    /// Step between output pixels, the same in both directions.
    pub stride: usize,
    /// Zero padding `(top, left, bottom, right)`.
    pub padding: (usize, usize, usize, usize),
}

impl ConvGeometry {
    /// 3x3, stride 1, one pixel of padding on every side: keeps H and W.
    pub const SAME_3X3: Self = Self { kernel: (3, 3), stride: 1, padding: (1, 1, 1, 1) };

    /// Output height and width for an `h`x`w` input, or `None` if the kernel does not fit.
    pub fn output_size(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        let (top, left, bottom, right) = self.padding;
        let padded = (h + top + bottom, w + left + right);
        let free = (padded.0.checked_sub(self.kernel.0)?, padded.1.checked_sub(self.kernel.1)?);
        Some((free.0 / self.stride + 1, free.1 / self.stride + 1))
    }
}

/// What a convolution or linear layer does to its result before storing it:
/// `y = (x*w + bias + per_image + residual) * scale`.
///
/// Each flag adds one input, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// A bias per output channel, `[K]`.
    pub bias: bool,
    /// A vector per sample, `[N, K]`: the time embedding.
    pub per_image: bool,
    /// A tensor of the output's shape.
    pub residual: bool,
    /// A constant factor, applied last.
    pub scale: f64,
}

impl Epilogue {
    /// Nothing but an optional bias.
    pub fn bias(bias: bool) -> Self {
        Self { bias, per_image: false, residual: false, scale: 1.0 }
    }

    /// Number of inputs after `x` and `w`.
    pub fn inputs(&self) -> usize {
        usize::from(self.bias) + usize::from(self.per_image) + usize::from(self.residual)
    }
}

/// Group normalisation over `(H, W, C/groups)`, with what is fused to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Applies SiLU to the result.
    pub silu: bool,
    /// `y * (1 + scale) + shift` before SiLU, `(scale, shift)` the halves of an `[N, 2C]` input.
    pub modulated: bool,
}

/// The sinusoidal embedding of a timestep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeEmbedding {
    /// Width; an odd width ends in a zero.
    pub dim: usize,
    /// `[cos, sin]` instead of `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Frequencies are `scale exp(-ln(10000) i / (dim/2 - freq_shift))`.
    pub freq_shift: f64,
    /// Multiplies the timestep, which comes to the same as multiplying the frequencies.
    pub scale: f64,
}

/// Where a sampling step takes its noise from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseSource {
    /// Drawn in the kernel from (seed, sample index, step, element).
    Philox,
    /// One more input, `[N, H, W, C]`, which the caller fills before each step.
    Given,
}

/// The fused sampling step: guidance, x_0, clipping, learned variance, noise and the update, in one pass.
///
/// Operands: x, model, previous x_0, step, sample index, key, then what is used of z, second previous x_0, saved state
/// ([`StepTable::history`]) and a classifier's gradient. Results: x_next, x_0, then what is used of the picture and of both
/// states' next values.
#[derive(Clone, Debug)]
pub struct SamplerStep {
    /// One row of coefficients per step.
    pub table: Arc<StepTable>,
    /// Classifier-free guidance; the model output then holds the conditional half, then the unconditional.
    pub guidance: Option<Guidance>,
    /// Where z comes from.
    pub noise: NoiseSource,
    /// Whether x_next as a picture is a result, too: bytes `[N, H, W, C]`, each [`Levels::byte`] of the stored f32. It is that
    /// of every step and not of the last alone, so that the picture is x's whenever it is read.
    pub picture: Option<Levels>,
    /// Scale of a classifier's gradient, which then is the last operand.
    pub classifier_scale: Option<f64>,
}

impl SamplerStep {
    /// Positions of the second previous x_0 and of the saved state among the operands.
    pub fn history_operands(&self) -> [Option<usize>; 2] {
        self.history_from(6 + usize::from(self.noise == NoiseSource::Given))
    }

    /// Positions of both states' next values among the results.
    pub fn history_results(&self) -> [Option<usize>; 2] {
        self.history_from(2 + usize::from(self.picture.is_some()))
    }

    /// Position of a classifier's gradient among the operands.
    pub fn gradient_operand(&self) -> Option<usize> {
        let history = self.table.history();
        let given = usize::from(self.noise == NoiseSource::Given);
        let states = usize::from(history.x0_prev2) + usize::from(history.saved);
        self.classifier_scale.map(|_| 6 + given + states)
    }

    fn history_from(&self, first: usize) -> [Option<usize>; 2] {
        let history = self.table.history();
        let second = first + usize::from(history.x0_prev2);
        [history.x0_prev2.then_some(first), history.saved.then_some(second)]
    }
}

/// Forward noising, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, in one pass.
///
/// t and eps are drawn from (seed, example index), in full precision.
#[derive(Clone, Debug)]
pub struct Noising {
    /// Row t holds `(sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t))`, the coefficients of x_0 and eps.
    pub rows: Arc<Vec<(f64, f64)>>,
    /// Whether eps is a result, too. The loss does not need it: see [`LossNoise::Redrawn`].
    pub eps: bool,
}

impl Noising {
    /// Noising by a schedule's alpha_bars.
    pub fn new(alpha_bars: &[f64], eps: bool) -> Self {
        Self { rows: Arc::new(alpha_bars.iter().map(|a| (a.sqrt(), (1.0 - a).sqrt())).collect()), eps }
    }
}

/// Where the loss takes x_t and eps from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossNoise {
    /// Both are operands.
    Given,
    /// Computed again from (seed, example index), as [`Op::Noising`] drew them but in full precision whatever the
    /// activations are, so that eps never lies in memory.
    Redrawn,
}

/// AdamW with global-norm clipping and an exponential moving average, over all parameters at once.
///
/// The values that change from step to step come from an input of [`AdamW::HYPER`] numbers:
/// learning rate, `1 - beta1^k`, `1 - beta2^k`, EMA decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
}

impl AdamW {
    /// Length of the input that holds the per-step values.
    pub const HYPER: usize = 4;
}

/// An operation of the graph. The comment of each gives `inputs -> outputs`.
#[derive(Clone, Debug)]
pub enum Op {
    /// `t [N] -> [N, dim]`.
    TimeEmbedding(TimeEmbedding),
    /// `t [N], w [F] -> [N, 2F]`: `[sin, cos](2 pi w ln t)`.
    FourierEmbedding,
    /// `t [N] -> [N]`: the row of a table of timesteps that belongs to t, the nearest of the rows there are.
    TimestepIndex {
        /// Rows of the table.
        count: usize,
    },
    /// `nothing -> [len]`: the same f32 number everywhere, for a norm without parameters of its own.
    Constant {
        /// Number of elements.
        len: usize,
        /// Their value.
        value: f64,
    },
    /// `table [V, E], index [N] -> [N, E]`.
    Embedding,
    /// `dy [N, E], index [N] -> dtable [V, E]`.
    EmbeddingGrad {
        /// Rows of the table, V.
        vocabulary: usize,
    },
    /// `x [.., I], w [O, I], epilogue.. -> [.., O]`.
    Linear(Epilogue),
    /// `dy [.., O], w [O, I] -> dx [.., I]`; with a residual: `dx + residual`.
    LinearDgrad {
        /// Adds a tensor of the result's shape: another branch's gradient.
        residual: bool,
    },
    /// `dy [.., O], x [.., I] -> dw [O, I]`, and `db [O]` with a bias.
    LinearWgrad {
        /// Whether the bias gradient is computed too.
        bias: bool,
    },
    /// `x [N,H,W,C], w [K,R,S,C], epilogue.. -> [N,H',W',K]`.
    Conv2d(ConvGeometry, Epilogue),
    /// `dy [N,H',W',K], w [K,R,S,C] -> dx [N,H,W,C]`; with a residual: `dx + residual`.
    ConvDgrad {
        /// Geometry of the forward convolution.
        geometry: ConvGeometry,
        /// H and W of the forward input.
        input_size: (usize, usize),
        /// Adds a tensor of the result's shape: another branch's gradient.
        residual: bool,
    },
    /// `dy [N,H',W',K], x [N,H,W,C] -> dw [K,R,S,C]`, and `db [K]` with a bias.
    ConvWgrad {
        /// Geometry of the forward convolution.
        geometry: ConvGeometry,
        /// Whether the bias gradient is computed too.
        bias: bool,
    },
    /// `x [N,H,W,C], gamma [C], beta [C], (scale_shift [N,2C]) -> y, statistics [N, groups, 2]` (mean, 1/std).
    GroupNorm(GroupNorm),
    /// `dy, x, gamma, beta, (scale_shift), statistics -> dx, dgamma, dbeta, (dscale_shift)`.
    GroupNormGrad(GroupNorm),
    /// `qkv [N,H,W,3C] -> out [N,H,W,C], log-sum-exp [N, heads, T]`; heads are contiguous slices of C.
    Attention {
        /// Number of heads; divides C.
        heads: usize,
    },
    /// `dout, qkv, out, log-sum-exp -> dqkv`.
    AttentionGrad {
        /// Number of heads.
        heads: usize,
    },
    /// `[N,H,W,C] -> [N,2H,2W,C]`, nearest neighbour.
    Upsample2x,
    /// `[N,2H,2W,C] -> [N,H,W,C]`: sums of 2x2 patches.
    Upsample2xGrad,
    /// `[N,2H,2W,C] -> [N,H,W,C]`: means of 2x2 patches.
    AvgPool2x,
    /// `[N,H,W,C] -> [N,2H,2W,C]`: a quarter of the value to each of four pixels.
    AvgPool2xGrad,
    /// `[N,H,W,C] -> [N,2H,2W,C]` or the reverse; its gradient is the [transposed](Fir::transposed) operation.
    Fir(Fir),
    /// `a [.., Ca], b [.., Cb] -> [.., Ca+Cb]`.
    Concat,
    /// `[.., C] -> [.., len]`, channels `start..start+len`.
    Slice {
        /// First channel.
        start: usize,
        /// Number of channels.
        len: usize,
    },
    /// `x -> f(x)`.
    Activation(Activation),
    /// `dy, x -> dx`.
    ActivationGrad(Activation),
    /// `a, b -> a + b`.
    Add,
    /// `x [N,H,W,C], v [N,C] -> x + v` at every pixel.
    AddPerImage,
    /// `[N,H,W,C] -> [N,C]`: sums over the pixels.
    SumPixels,
    /// `[N,C] -> [N,H,W,C]`: the vector of an image at each of its pixels, the gradient of their sum.
    SpreadPixels {
        /// H and W.
        size: (usize, usize),
    },
    /// `x [..] -> [1]`: the largest magnitude, in f32; NaN if there is one.
    AbsMax,
    /// `x -> mul * x + add`.
    Affine {
        /// Factor.
        mul: f64,
        /// Summand.
        add: f64,
    },
    /// `x [N,..], t [N] -> x / t`.
    DivideByTime,
    /// `x, example_index [N], key [2] -> x` with elements zeroed with probability p, the rest divided by 1-p.
    Dropout {
        /// Probability of a zero.
        p: f64,
        /// Distinguishes the dropout layers of a network.
        layer: u32,
    },
    /// `x [..] -> x`: an f32 value rounded to an activation, the way of states and images into the network.
    ToAct,
    /// `x [N,..] -> [2N,..]`: an f32 batch twice, as activations, for classifier-free guidance.
    RepeatBatch,
    /// `x0 [N,H,W,C], example_index [N], key [2] -> x_t [N,H,W,C], t [N], (eps [N,H,W,C])`: x_t an activation, t and
    /// eps f32.
    Noising(Noising),
    /// `out [N,H,W,C or 2C], x0, .., t [N] -> per-example (loss, simple, vb) [N,3], dout`; the loss is the mean over the
    /// batch, dout its gradient. Between x0 and t: `x_t, eps` if they are given, `example_index [N], key [2]` if they
    /// are drawn again.
    DiffusionLoss {
        /// What is minimised.
        objective: Arc<TrainingObjective>,
        /// Where x_t and eps come from.
        noise: LossNoise,
    },
    /// `step [1] -> t [N]`: the timestep of a row of a step table, for every sample.
    StepTimestep {
        /// One row of coefficients per step.
        table: Arc<StepTable>,
        /// Number of samples, N.
        batch: usize,
    },
    /// `x, model, x0_prev, step [1], sample_index [N], key [2], (z) -> x_next, x0, (picture)`.
    SamplerStep(SamplerStep),
    /// `x [N,H,W,C], positions [C,T+1] -> [N,1,T+1,C]`, T = H·W: the mean of the pixels, then each of them, plus a vector for
    /// each place. The tokens of ADM's attention pool.
    PoolTokens,
    /// `dy [N,1,T+1,C] -> dx [N,H,W,C]`.
    PoolTokensGrad {
        /// H and W of x.
        size: (usize, usize),
    },
    /// `[N,1,T,C] -> [N,C]`: the first token.
    FirstToken,
    /// `dy [N,C] -> [N,1,T,C]`: zeros but for the first token.
    FirstTokenGrad {
        /// T.
        tokens: usize,
    },
    /// `logits [N,K], label [N] -> log p [N], dlogits [N,K]`: the log-probability of a class, and its gradient.
    LogProbability,
    /// `step [1] -> step + 1`.
    Advance,
    /// `gradients.. -> [1]`: the 2-norm over every gradient.
    GlobalNorm,
    /// `norm [1], hyper [4], gradients.. -> nothing`: updates parameters, moments and EMA in place.
    AdamW(AdamW),
}

impl Op {
    /// A short name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::TimeEmbedding(_) => "time_embedding",
            Op::FourierEmbedding => "fourier_embedding",
            Op::TimestepIndex { .. } => "timestep_index",
            Op::Constant { .. } => "constant",
            Op::Embedding => "embedding",
            Op::EmbeddingGrad { .. } => "embedding_grad",
            Op::Linear(_) => "linear",
            Op::LinearDgrad { .. } => "linear_dgrad",
            Op::LinearWgrad { .. } => "linear_wgrad",
            Op::Conv2d(..) => "conv2d",
            Op::ConvDgrad { .. } => "conv2d_dgrad",
            Op::ConvWgrad { .. } => "conv2d_wgrad",
            Op::GroupNorm(_) => "group_norm",
            Op::GroupNormGrad(_) => "group_norm_grad",
            Op::Attention { .. } => "attention",
            Op::AttentionGrad { .. } => "attention_grad",
            Op::Upsample2x => "upsample2x",
            Op::Upsample2xGrad => "upsample2x_grad",
            Op::AvgPool2x => "avg_pool2x",
            Op::AvgPool2xGrad => "avg_pool2x_grad",
            Op::Fir(f) if f.up => "fir_upsample2x",
            Op::Fir(_) => "fir_downsample2x",
            Op::Concat => "concat",
            Op::Slice { .. } => "slice",
            Op::Activation(f) => f.name(),
            Op::ActivationGrad(f) => f.gradient_name(),
            Op::Add => "add",
            Op::AddPerImage => "add_per_image",
            Op::SumPixels => "sum_pixels",
            Op::SpreadPixels { .. } => "spread_pixels",
            Op::AbsMax => "abs_max",
            Op::Affine { .. } => "affine",
            Op::DivideByTime => "divide_by_time",
            Op::Dropout { .. } => "dropout",
            Op::ToAct => "to_act",
            Op::RepeatBatch => "repeat_batch",
            Op::Noising(_) => "noising",
            Op::DiffusionLoss { .. } => "diffusion_loss",
            Op::StepTimestep { .. } => "step_timestep",
            Op::SamplerStep(_) => "sampler_step",
            Op::PoolTokens => "pool_tokens",
            Op::PoolTokensGrad { .. } => "pool_tokens_grad",
            Op::FirstToken => "first_token",
            Op::FirstTokenGrad { .. } => "first_token_grad",
            Op::LogProbability => "log_probability",
            Op::Advance => "advance",
            Op::GlobalNorm => "global_norm",
            Op::AdamW(_) => "adamw",
        }
    }

    /// Whether the operation has an effect beyond its outputs, so that it must be kept.
    pub fn has_side_effect(&self) -> bool {
        matches!(self, Op::AdamW(_))
    }
}
