//! The forward pass of the whole network.

use super::blocks::{Attention, Builder, Resnet};
use super::{
    ClassEmbedding, ConfigError, DownBlock, ResamplerType, TimeEmbeddingType, TimeScaleShift, UNetConfig, UpBlock,
};
use crate::graph::op::TimeEmbedding;
use crate::graph::{ConvGeometry, Graph, Op, ParamSpec, ValueId};

/// The class condition.
#[derive(Clone, Copy, Debug)]
pub enum ClassInput {
    /// Indices `[N]` of type I32.
    Index(ValueId),
    /// Numbers `[N]` or vectors `[N, E]`, as [`ClassEmbedding`] says.
    Value(ValueId),
}

/// What dropout needs to draw its masks.
#[derive(Clone, Copy, Debug)]
pub struct DropoutInputs {
    /// Global index of each example, `[N]`.
    pub example_index: ValueId,
    /// The seed, `[2]`.
    pub key: ValueId,
}

/// Operands of the network.
#[derive(Clone, Copy, Debug)]
pub struct UNetInputs {
    /// x_t `[N, H, W, C]`.
    pub x: ValueId,
    /// Timesteps `[N]`, floating point.
    pub t: ValueId,
    /// Class condition, where the configuration has one.
    pub class: Option<ClassInput>,
    /// Present in training: dropout is active.
    pub dropout: Option<DropoutInputs>,
}

/// Results of the network.
#[derive(Clone, Debug)]
pub struct UNetOutputs {
    /// The model output `[N, H, W, out_channels]`.
    pub out: ValueId,
    /// Results of the submodules that diffusers names, and of those that ADM numbers (`input_blocks.0`, ..), for comparisons
    /// layer by layer.
    pub taps: Vec<(String, ValueId)>,
}

/// Elements of one layer: more fit no machine, and far from overflowing a size in bytes.
const MAX_ACTIVATIONS: usize = 1 << 44;

/// Appends the network to a graph.
///
/// # Errors
/// [`ConfigError`] if the configuration and the inputs do not fit together.
pub fn build(graph: &mut Graph, config: &UNetConfig, inputs: UNetInputs) -> Result<UNetOutputs, ConfigError> {
    config.validate()?;
    let (n, (h, w)) = (graph.shape(inputs.x).batch(), graph.shape(inputs.x).height_width());
    config.check_size(h, w)?;
    // The widest activations are the three projections of attention and two levels side by side.
    let widest = 4 * config.block_out_channels.iter().copied().max().unwrap_or(1);
    if n.checked_mul(h * w * widest).is_none_or(|elements| elements > MAX_ACTIVATIONS) {
        return Err(ConfigError::Invalid {
            key: "sample_size",
            detail: format!("{n} images of {h}x{w} at once are too many for this network; take a smaller batch"),
        });
    }
    let network = Network { taps: Vec::new(), b: Builder::new(graph, config, inputs.dropout)?, config, image: None };
    network.forward(inputs)
}

/// Appends the encoder and the middle block: what a classifier looks at. The results are those of the blocks that ADM numbers,
/// first the first convolution's, last the middle block's.
///
/// # Errors
/// As [`build`].
pub(super) fn encode(
    graph: &mut Graph,
    config: &UNetConfig,
    x: ValueId,
    t: ValueId,
) -> Result<Vec<ValueId>, ConfigError> {
    config.validate()?;
    let (h, w) = graph.shape(x).height_width();
    config.check_size(h, w)?;
    let mut network = Network { taps: Vec::new(), b: Builder::new(graph, config, None)?, config, image: None };
    let inputs = UNetInputs { x, t, class: None, dropout: None };
    let embedding = network.embedding(&inputs)?;
    network.b.set_embedding(embedding)?;
    let mut h = network.b.conv("conv_in", x, config.block_out_channels[0], ConvGeometry::SAME_3X3)?;
    let mut results = vec![h];
    for level in 0..config.block_out_channels.len() {
        h = network.down(level, h, &mut results)?;
    }
    results.push(network.middle(h)?);
    Ok(results)
}

/// A network while it is built.
pub(super) struct Network<'a> {
    pub b: Builder<'a>,
    pub config: &'a UNetConfig,
    taps: Vec<(String, ValueId)>,
    /// The image that skip blocks carry beside the network.
    pub image: Option<ValueId>,
}

impl Network<'_> {
    pub fn tap(&mut self, name: impl Into<String>, value: ValueId) {
        self.taps.push((name.into(), value));
    }

    fn forward(mut self, inputs: UNetInputs) -> Result<UNetOutputs, ConfigError> {
        let cfg = self.config;
        let first = cfg.block_out_channels[0];
        let embedding = self.embedding(&inputs)?;
        self.b.set_embedding(embedding)?;

        let mut x = inputs.x;
        if cfg.center_input_sample {
            x = self.b.graph.apply(Op::Affine { mul: 2.0, add: -1.0 }, &[x])?;
        }
        let mut h = self.b.conv("conv_in", x, first, ConvGeometry::SAME_3X3)?;
        self.tap("conv_in", h);
        let mut skips = vec![h];
        self.image = Some(x);
        for level in 0..cfg.block_out_channels.len() {
            h = self.down(level, h, &mut skips)?;
        }
        for (i, &skip) in skips.iter().enumerate() {
            self.tap(format!("input_blocks.{i}"), skip);
        }
        if cfg.mid_block_type.is_some() {
            h = self.middle(h)?;
        }
        self.image = None;
        for level in 0..cfg.block_out_channels.len() {
            h = self.up(level, h, &mut skips)?;
        }
        h = self.b.norm("conv_norm_out", h, None, cfg.groups(first))?;
        self.tap("conv_norm_out", h);
        h = self.b.graph.silu(h)?;
        let mut out = self.b.conv("conv_out", h, cfg.out_channels, ConvGeometry::SAME_3X3)?;
        if let Some(image) = self.image {
            out = self.b.graph.add(out, image)?;
        }
        if cfg.time_embedding_type == TimeEmbeddingType::Fourier {
            out = self.b.graph.apply(Op::DivideByTime, &[out, inputs.t])?;
        }
        Ok(UNetOutputs { out, taps: self.taps })
    }

    /// The time embedding plus the class embedding, `[N, E]`.
    fn embedding(&mut self, inputs: &UNetInputs) -> Result<ValueId, ConfigError> {
        let cfg = self.config;
        let e = cfg.embedding_width();
        let table = self.time_table();
        let projected = self.projected(inputs.t, cfg.timestep_scale, table)?;
        let time = self.b.mlp("time_embedding", projected, e)?;
        self.tap("time_embedding", time);
        let class = match (cfg.class_embed_type, cfg.num_class_embeds, inputs.class) {
            (None, None, None) => return Ok(time),
            (None, Some(rows), Some(ClassInput::Index(index))) => {
                let table = self.b.graph.param(ParamSpec::plain("class_embedding.weight", &[rows, e]));
                self.b.graph.apply(Op::Embedding, &[table, index])?
            }
            (Some(ClassEmbedding::Timestep), _, Some(ClassInput::Value(v))) => {
                let projected = self.projected(v, 1.0, table)?;
                self.b.mlp("class_embedding", projected, e)?
            }
            (Some(ClassEmbedding::Identity), _, Some(ClassInput::Value(v))) => v,
            _ => {
                return Err(ConfigError::Invalid {
                    key: "num_class_embeds",
                    detail: "class labels do not fit the model: they are missing, or it takes none".into(),
                });
            }
        };
        Ok(self.b.graph.add(time, class)?)
    }

    /// The parameter of the time embedding's first layer: frequencies or rows.
    fn time_table(&mut self) -> Option<ValueId> {
        let c0 = self.config.block_out_channels[0];
        let dims = match (self.config.time_embedding_type, self.config.num_train_timesteps) {
            (TimeEmbeddingType::Fourier, _) => vec![c0],
            (TimeEmbeddingType::Learned, Some(rows)) => vec![rows, c0],
            _ => return None,
        };
        Some(self.b.graph.param(ParamSpec::plain("time_proj.weight", &dims)))
    }

    /// The first layer of the time embedding, of times or of labels that are embedded as times are.
    fn projected(&mut self, t: ValueId, scale: f64, table: Option<ValueId>) -> Result<ValueId, ConfigError> {
        let cfg = self.config;
        Ok(match (table, cfg.time_embedding_type, cfg.num_train_timesteps) {
            (Some(table), TimeEmbeddingType::Learned, Some(count)) => {
                let index = self.b.graph.apply(Op::TimestepIndex { count }, &[t])?;
                self.b.graph.apply(Op::Embedding, &[table, index])?
            }
            (Some(frequencies), ..) => self.b.graph.apply(Op::FourierEmbedding, &[t, frequencies])?,
            (None, ..) => {
                let sinusoids = TimeEmbedding {
                    dim: cfg.sinusoid_width(),
                    flip_sin_to_cos: cfg.flip_sin_to_cos,
                    freq_shift: cfg.freq_shift,
                    scale,
                };
                self.b.graph.apply(Op::TimeEmbedding(sinusoids), &[t])?
            }
        })
    }

    fn resnet(&mut self, name: &str, x: ValueId, out: usize, scale: f64) -> Result<ValueId, ConfigError> {
        self.resampling_resnet(name, x, out, scale, None)
    }

    fn resampling_resnet(
        &mut self,
        name: &str,
        x: ValueId,
        out: usize,
        scale: f64,
        resample: Option<Op>,
    ) -> Result<ValueId, ConfigError> {
        let groups = [self.b.graph.shape(x).channels(), out].map(|c| self.config.groups(c));
        self.b.resnet(name, x, Resnet { out, groups, scale, resample, project: false })
    }

    fn attention(&mut self, name: &str, x: ValueId, heads: Option<usize>) -> Result<ValueId, ConfigError> {
        let groups = Some(self.config.groups(self.b.graph.shape(x).channels()));
        self.b.attention(name, x, Attention { heads, groups, scale: 1.0 })
    }

    fn down(&mut self, level: usize, mut h: ValueId, skips: &mut Vec<ValueId>) -> Result<ValueId, ConfigError> {
        let cfg = self.config;
        let (kind, out) = (cfg.down_block_types[level], cfg.block_out_channels[level]);
        match kind {
            DownBlock::Skip | DownBlock::AttentionSkip => return self.skip_down(level, kind, h, skips),
            DownBlock::K => return self.k_down(level, h, skips),
            DownBlock::Plain | DownBlock::Attention | DownBlock::Resnet => {}
        }
        let block = format!("down_blocks.{level}");
        for j in 0..cfg.layers_per_block {
            h = self.resnet(&format!("{block}.resnets.{j}"), h, out, 1.0)?;
            if kind == DownBlock::Attention {
                h = self.attention(&format!("{block}.attentions.{j}"), h, cfg.attention_heads)?;
            }
            skips.push(h);
        }
        if level + 1 < cfg.block_out_channels.len() {
            let by_resnet = kind == DownBlock::Resnet
                || kind == DownBlock::Attention && cfg.downsample_type == ResamplerType::Resnet;
            let name = format!("{block}.downsamplers.0");
            h = if by_resnet {
                self.resampling_resnet(&name, h, out, 1.0, Some(Op::AvgPool2x))?
            } else {
                let pad = cfg.downsample_padding;
                let geometry = ConvGeometry { kernel: (3, 3), stride: 2, padding: (pad, pad, 1, 1) };
                self.b.conv(&format!("{name}.conv"), h, out, geometry)?
            };
            skips.push(h);
        }
        self.tap(block, h);
        Ok(h)
    }

    fn middle(&mut self, h: ValueId) -> Result<ValueId, ConfigError> {
        let cfg = self.config;
        let scale = 1.0 / cfg.mid_block_scale_factor;
        let out = self.b.graph.shape(h).channels();
        let mut h = self.resnet("mid_block.resnets.0", h, out, scale)?;
        if cfg.add_attention {
            // Under scale_shift diffusers leaves the norm out unless it is given its own groups.
            let default = match cfg.resnet_time_scale_shift {
                TimeScaleShift::Default => Some(cfg.groups(out)),
                TimeScaleShift::ScaleShift => None,
            };
            let groups = cfg.attn_norm_num_groups.or(default);
            h = self.b.attention(
                "mid_block.attentions.0",
                h,
                Attention { heads: cfg.attention_heads, groups, scale },
            )?;
        }
        h = self.resnet("mid_block.resnets.1", h, out, scale)?;
        self.tap("mid_block", h);
        Ok(h)
    }

    /// The newest of the encoder's results beside h.
    pub fn join(&mut self, block: &str, h: ValueId, skips: &mut Vec<ValueId>) -> Result<ValueId, ConfigError> {
        // Each level pops what its mirror image pushed; K blocks push and pop less than the others.
        let Some(skip) = skips.pop() else {
            return Err(ConfigError::Invalid {
                key: "up_block_types",
                detail: format!("{block} takes more results than the encoder has left; K blocks go with K blocks"),
            });
        };
        Ok(self.b.graph.apply(Op::Concat, &[h, skip])?)
    }

    fn up(&mut self, level: usize, mut h: ValueId, skips: &mut Vec<ValueId>) -> Result<ValueId, ConfigError> {
        let cfg = self.config;
        let levels = cfg.block_out_channels.len();
        let (kind, out) = (cfg.up_block_types[level], cfg.block_out_channels[levels - 1 - level]);
        match kind {
            UpBlock::Skip | UpBlock::AttentionSkip => return self.skip_up(level, kind, h, skips),
            UpBlock::K => return self.k_up(level, h, skips),
            UpBlock::Plain | UpBlock::Attention | UpBlock::Resnet => {}
        }
        let first = level * (cfg.layers_per_block + 1);
        let heads = cfg.decoder_attention_heads.or(cfg.attention_heads);
        let block = format!("up_blocks.{level}");
        for j in 0..=cfg.layers_per_block {
            h = self.join(&block, h, skips)?;
            h = self.resnet(&format!("{block}.resnets.{j}"), h, out, 1.0)?;
            if kind == UpBlock::Attention {
                h = self.attention(&format!("{block}.attentions.{j}"), h, heads)?;
            }
            if j < cfg.layers_per_block {
                self.tap(format!("output_blocks.{}", first + j), h);
            }
        }
        if level + 1 < levels {
            let by_resnet =
                kind == UpBlock::Resnet || kind == UpBlock::Attention && cfg.upsample_type == ResamplerType::Resnet;
            let name = format!("{block}.upsamplers.0");
            h = if by_resnet {
                self.resampling_resnet(&name, h, out, 1.0, Some(Op::Upsample2x))?
            } else {
                h = self.b.graph.apply(Op::Upsample2x, &[h])?;
                self.b.conv(&format!("{name}.conv"), h, out, ConvGeometry::SAME_3X3)?
            };
        }
        self.tap(format!("output_blocks.{}", first + cfg.layers_per_block), h);
        self.tap(block, h);
        Ok(h)
    }
}
