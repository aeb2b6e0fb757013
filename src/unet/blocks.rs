//! The parts that the network is made of: convolutions, norms, residual blocks, attention.

use super::{ConfigError, DropoutInputs, TimeScaleShift, UNetConfig};
use crate::graph::{ConvGeometry, Graph, Op, ParamSpec, ValueId};

/// Resampling inside a residual block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resample {
    Down,
    Up,
}

/// A residual block.
pub(super) struct Resnet {
    /// Output channels.
    pub out: usize,
    /// Factor of the final sum.
    pub scale: f64,
    /// Resampling after the first activation.
    pub resample: Option<Resample>,
}

/// An attention block.
pub(super) struct Attention {
    /// Number of heads, where it is not the width of a head that is given.
    pub heads: Option<usize>,
    /// Groups of the norm before it, if there is one.
    pub groups: Option<usize>,
    /// Factor of the final sum.
    pub scale: f64,
}

/// Appends layers with diffusers' parameter names.
pub(super) struct Builder<'a> {
    pub graph: &'a mut Graph,
    config: &'a UNetConfig,
    dropout: Option<DropoutInputs>,
    dropout_layers: u32,
    /// SiLU of the embedding, which every residual block starts from.
    activated_embedding: Option<ValueId>,
}

impl<'a> Builder<'a> {
    pub fn new(
        graph: &'a mut Graph,
        config: &'a UNetConfig,
        dropout: Option<DropoutInputs>,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            graph,
            config,
            dropout: dropout.filter(|_| config.dropout > 0.0),
            dropout_layers: 0,
            activated_embedding: None,
        })
    }

    pub fn set_embedding(&mut self, embedding: ValueId) -> Result<(), ConfigError> {
        self.activated_embedding = Some(self.graph.silu(embedding)?);
        Ok(())
    }

    fn vector(&mut self, name: &str, leaf: &str, len: usize) -> ValueId {
        self.graph.param(ParamSpec::plain(format!("{name}.{leaf}"), &[len]))
    }

    pub fn conv(&mut self, name: &str, x: ValueId, out: usize, g: ConvGeometry) -> Result<ValueId, ConfigError> {
        self.graph.set_scope(name);
        let c = self.graph.shape(x).channels();
        let weight = self.graph.param(ParamSpec::conv(format!("{name}.weight"), out, c, g.kernel));
        let bias = self.vector(name, "bias", out);
        Ok(self.graph.conv2d(x, weight, Some(bias), g)?)
    }

    fn linear(&mut self, name: &str, x: ValueId, out: usize) -> Result<ValueId, ConfigError> {
        self.graph.set_scope(name);
        let i = self.graph.shape(x).channels();
        let weight = self.graph.param(ParamSpec::plain(format!("{name}.weight"), &[out, i]));
        let bias = self.vector(name, "bias", out);
        Ok(self.graph.linear(x, weight, Some(bias))?)
    }

    /// `linear_2(silu(linear_1(x)))`.
    pub fn mlp(&mut self, name: &str, x: ValueId, width: usize) -> Result<ValueId, ConfigError> {
        let h = self.linear(&format!("{name}.linear_1"), x, width)?;
        let h = self.graph.silu(h)?;
        self.linear(&format!("{name}.linear_2"), h, width)
    }

    pub fn norm(
        &mut self,
        name: &str,
        x: ValueId,
        scale_shift: Option<ValueId>,
        groups: usize,
    ) -> Result<ValueId, ConfigError> {
        self.graph.set_scope(name);
        let c = self.graph.shape(x).channels();
        let gamma = self.vector(name, "weight", c);
        let beta = self.vector(name, "bias", c);
        Ok(self.graph.group_norm(x, gamma, beta, scale_shift, groups, self.config.norm_eps)?)
    }

    fn resample(&mut self, how: Resample, x: ValueId) -> Result<ValueId, ConfigError> {
        let op = match how {
            Resample::Down => Op::AvgPool2x,
            Resample::Up => Op::Upsample2x,
        };
        Ok(self.graph.apply(op, &[x])?)
    }

    /// Two convolutions with norm and SiLU before each, the time embedding between them, and a shortcut.
    pub fn resnet(&mut self, name: &str, x: ValueId, r: Resnet) -> Result<ValueId, ConfigError> {
        let groups = self.config.groups()?;
        let c = self.graph.shape(x).channels();
        let mut h = self.norm(&format!("{name}.norm1"), x, None, groups)?;
        h = self.graph.silu(h)?;
        let mut shortcut = x;
        if let Some(how) = r.resample {
            h = self.resample(how, h)?;
            shortcut = self.resample(how, x)?;
        }
        h = self.conv(&format!("{name}.conv1"), h, r.out, ConvGeometry::SAME_3X3)?;

        let norm2 = format!("{name}.norm2");
        match (self.config.resnet_time_scale_shift, self.activated_embedding) {
            (TimeScaleShift::Default, Some(emb)) => {
                let p = self.linear(&format!("{name}.time_emb_proj"), emb, r.out)?;
                h = self.graph.apply(Op::AddPerImage, &[h, p])?;
                h = self.norm(&norm2, h, None, groups)?;
            }
            (TimeScaleShift::ScaleShift, Some(emb)) => {
                let p = self.linear(&format!("{name}.time_emb_proj"), emb, 2 * r.out)?;
                h = self.norm(&norm2, h, Some(p), groups)?;
            }
            (_, None) => unreachable!("the embedding is set before the first block"),
        }
        h = self.graph.silu(h)?;
        h = self.drop_out(h)?;
        h = self.conv(&format!("{name}.conv2"), h, r.out, ConvGeometry::SAME_3X3)?;

        if c != r.out {
            let name = format!("{name}.conv_shortcut");
            self.graph.set_scope(&*name);
            let weight = self.graph.param(ParamSpec::pointwise(format!("{name}.weight"), r.out, c));
            let bias = self.vector(&name, "bias", r.out);
            shortcut = self.graph.linear(shortcut, weight, Some(bias))?;
        }
        self.scaled_sum(h, shortcut, r.scale)
    }

    fn drop_out(&mut self, h: ValueId) -> Result<ValueId, ConfigError> {
        let Some(inputs) = self.dropout else { return Ok(h) };
        let op = Op::Dropout { p: self.config.dropout, layer: self.dropout_layers };
        self.dropout_layers += 1;
        Ok(self.graph.apply(op, &[h, inputs.example_index, inputs.key])?)
    }

    fn scaled_sum(&mut self, h: ValueId, shortcut: ValueId, scale: f64) -> Result<ValueId, ConfigError> {
        let sum = self.graph.add(h, shortcut)?;
        if scale == 1.0 {
            return Ok(sum);
        }
        Ok(self.graph.scale(sum, scale)?)
    }

    /// Self-attention over the pixels; one product makes q, k and v.
    pub fn attention(&mut self, name: &str, x: ValueId, a: Attention) -> Result<ValueId, ConfigError> {
        let c = self.graph.shape(x).channels();
        let heads = self.heads(name, c, a.heads)?;
        let mut h = x;
        if let Some(groups) = a.groups {
            if groups == 0 || !c.is_multiple_of(groups) {
                return Err(ConfigError::Invalid {
                    key: "attn_norm_num_groups",
                    detail: format!("{c} channels do not divide into {groups} groups"),
                });
            }
            h = self.norm(&format!("{name}.group_norm"), x, None, groups)?;
        }
        self.graph.set_scope(format!("{name}.qkv"));
        let part = |leaf: &str| ["to_q", "to_k", "to_v"].map(|p| format!("{name}.{p}.{leaf}"));
        let weight = ParamSpec::stacked(format!("{name}.qkv.weight"), &part("weight"), &[c, c]);
        let bias = ParamSpec::stacked(format!("{name}.qkv.bias"), &part("bias"), &[c]);
        let (weight, bias) = (self.graph.param(weight), self.graph.param(bias));
        let qkv = self.graph.linear(h, weight, Some(bias))?;
        self.graph.set_scope(name);
        h = self.graph.apply(Op::Attention { heads }, &[qkv])?;
        h = self.linear(&format!("{name}.to_out.0"), h, c)?;
        self.scaled_sum(h, x, a.scale)
    }

    /// The heads of an attention layer of `c` channels: so many, or of the configuration's width.
    fn heads(&self, name: &str, c: usize, heads: Option<usize>) -> Result<usize, ConfigError> {
        match heads {
            Some(heads) if heads > 0 && c.is_multiple_of(heads) => return Ok(heads),
            Some(heads) => {
                return Err(ConfigError::Invalid {
                    key: "attention_heads",
                    detail: format!("{c} channels of {name} do not divide into {heads} heads"),
                });
            }
            None => {}
        }
        let width = self.config.attention_head_dim.unwrap_or(c);
        if width == 0 || !c.is_multiple_of(width) {
            return Err(ConfigError::Invalid {
                key: "attention_head_dim",
                detail: format!("{c} channels of {name} do not divide into heads of {width}"),
            });
        }
        Ok(c / width)
    }
}
