//! The parts that the network is made of: convolutions, norms, residual blocks, attention.

use super::{ConfigError, DropoutInputs, TimeScaleShift, UNetConfig};
use crate::graph::{ConvGeometry, Graph, Op, ParamSpec, ValueId};

/// A residual block.
pub(super) struct Resnet {
    /// Output channels.
    pub out: usize,
    /// Groups of the first and of the second norm.
    pub groups: [usize; 2],
    /// Factor of the final sum.
    pub scale: f64,
    /// Resampling after the first activation, and of the shortcut.
    pub resample: Option<Op>,
    /// A convolution in the shortcut even where the channels stay what they are.
    pub project: bool,
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
    /// The time embedding, and the activation function of it, which most residual blocks start from.
    embedding: Option<(ValueId, ValueId)>,
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
            embedding: None,
        })
    }

    pub fn set_embedding(&mut self, embedding: ValueId) -> Result<(), ConfigError> {
        self.embedding = Some((embedding, self.graph.activation(self.config.act_fn, embedding)?));
        Ok(())
    }

    /// The time embedding as it is, and activated.
    fn embedding(&self) -> (ValueId, ValueId) {
        self.embedding.unwrap_or_else(|| unreachable!("the embedding is set before the first block"))
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

    /// A convolution of 1x1 pixels, which is a linear layer over the channels.
    pub fn pointwise(&mut self, name: &str, x: ValueId, out: usize, bias: bool) -> Result<ValueId, ConfigError> {
        self.graph.set_scope(name);
        let c = self.graph.shape(x).channels();
        let weight = self.graph.param(ParamSpec::pointwise(format!("{name}.weight"), out, c));
        let bias = bias.then(|| self.vector(name, "bias", out));
        Ok(self.graph.linear(x, weight, bias)?)
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

    /// A norm without parameters of its own: `x (1 + scale) + shift` of the normalised x, both from the time embedding.
    fn conditioned_norm(&mut self, name: &str, x: ValueId, groups: usize) -> Result<ValueId, ConfigError> {
        let c = self.graph.shape(x).channels();
        let scale_shift = self.linear(&format!("{name}.linear"), self.embedding().0, 2 * c)?;
        self.graph.set_scope(name);
        let gamma = self.graph.apply(Op::Constant { len: c, value: 1.0 }, &[])?;
        let beta = self.graph.apply(Op::Constant { len: c, value: 0.0 }, &[])?;
        Ok(self.graph.group_norm(x, gamma, beta, Some(scale_shift), groups, self.config.norm_eps)?)
    }

    /// Two convolutions with norm and activation before each, the time embedding in the norms, and a shortcut.
    pub fn conditioned_resnet(
        &mut self,
        name: &str,
        x: ValueId,
        out: usize,
        groups: [usize; 2],
    ) -> Result<ValueId, ConfigError> {
        let act = self.config.act_fn;
        let mut h = self.conditioned_norm(&format!("{name}.norm1"), x, groups[0])?;
        h = self.graph.activation(act, h)?;
        h = self.conv(&format!("{name}.conv1"), h, out, ConvGeometry::SAME_3X3)?;
        h = self.conditioned_norm(&format!("{name}.norm2"), h, groups[1])?;
        h = self.graph.activation(act, h)?;
        h = self.drop_out(h)?;
        h = self.conv(&format!("{name}.conv2"), h, out, ConvGeometry::SAME_3X3)?;
        let shortcut = match self.graph.shape(x).channels() == out {
            true => x,
            false => self.pointwise(&format!("{name}.conv_shortcut"), x, out, false)?,
        };
        self.scaled_sum(h, shortcut, 1.0)
    }

    /// Two convolutions with norm and activation before each, the time embedding between them, and a shortcut.
    pub fn resnet(&mut self, name: &str, x: ValueId, r: Resnet) -> Result<ValueId, ConfigError> {
        let act = self.config.act_fn;
        let c = self.graph.shape(x).channels();
        let mut h = self.norm(&format!("{name}.norm1"), x, None, r.groups[0])?;
        h = self.graph.activation(act, h)?;
        let mut shortcut = x;
        if let Some(resample) = r.resample {
            h = self.graph.apply(resample.clone(), &[h])?;
            shortcut = self.graph.apply(resample, &[x])?;
        }
        h = self.conv(&format!("{name}.conv1"), h, r.out, ConvGeometry::SAME_3X3)?;

        let (norm2, emb) = (format!("{name}.norm2"), self.embedding().1);
        match self.config.resnet_time_scale_shift {
            TimeScaleShift::Default => {
                let p = self.linear(&format!("{name}.time_emb_proj"), emb, r.out)?;
                h = self.graph.apply(Op::AddPerImage, &[h, p])?;
                h = self.norm(&norm2, h, None, r.groups[1])?;
            }
            TimeScaleShift::ScaleShift => {
                let p = self.linear(&format!("{name}.time_emb_proj"), emb, 2 * r.out)?;
                h = self.norm(&norm2, h, Some(p), r.groups[1])?;
            }
        }
        h = self.graph.activation(act, h)?;
        h = self.drop_out(h)?;
        h = self.conv(&format!("{name}.conv2"), h, r.out, ConvGeometry::SAME_3X3)?;

        if c != r.out || r.project {
            shortcut = self.pointwise(&format!("{name}.conv_shortcut"), shortcut, r.out, true)?;
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
