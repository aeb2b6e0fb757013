//! Blocks that carry an image beside the network, as in NCSN++ (2011.13456): the encoder adds the filtered input to its
//! features at each level, the decoder adds to an image that it doubles level by level.

use std::f64::consts::FRAC_1_SQRT_2;

use super::blocks::{Attention, Resnet};
use super::builder::Network;
use super::{ConfigError, DownBlock, UpBlock};
use crate::graph::{ConvGeometry, Fir, Op, ValueId};

/// The filter of both halves.
const TAPS: [f64; 4] = [1.0, 3.0, 3.0, 1.0];
/// Every sum of a residual and its shortcut is divided by sqrt(2).
const SCALE: f64 = FRAC_1_SQRT_2;
/// Channels of the image.
const IMAGE: usize = 3;

/// Groups of a norm over so many channels.
fn groups(channels: usize) -> usize {
    (channels / 4).min(32)
}

impl Network<'_> {
    fn skip_attention(&mut self, name: &str, h: ValueId) -> Result<ValueId, ConfigError> {
        self.b.attention(name, h, Attention { heads: None, groups: Some(32), scale: SCALE })
    }

    pub(super) fn skip_down(
        &mut self,
        level: usize,
        kind: DownBlock,
        mut h: ValueId,
        skips: &mut Vec<ValueId>,
    ) -> Result<ValueId, ConfigError> {
        let (out, block) = (self.config.block_out_channels[level], format!("down_blocks.{level}"));
        for j in 0..self.config.layers_per_block {
            let groups = [self.b.graph.shape(h).channels(), out].map(groups);
            let resnet = Resnet { out, groups, scale: SCALE, resample: None, project: false };
            h = self.b.resnet(&format!("{block}.resnets.{j}"), h, resnet)?;
            if kind == DownBlock::AttentionSkip {
                h = self.skip_attention(&format!("{block}.attentions.{j}"), h)?;
            }
            skips.push(h);
        }
        if level + 1 < self.config.block_out_channels.len() {
            let filter = Op::Fir(Fir::down(TAPS));
            let groups = [groups(out); 2];
            let resnet = Resnet { out, groups, scale: SCALE, resample: Some(filter.clone()), project: true };
            h = self.b.resnet(&format!("{block}.resnet_down"), h, resnet)?;
            if let Some(image) = self.image {
                let image = self.b.graph.apply(filter, &[image])?;
                let features = self.b.pointwise(&format!("{block}.skip_conv"), image, out, true)?;
                h = self.b.graph.add(features, h)?;
                self.image = Some(image);
            }
            skips.push(h);
        }
        self.tap(block, h);
        Ok(h)
    }

    pub(super) fn skip_up(
        &mut self,
        level: usize,
        kind: UpBlock,
        mut h: ValueId,
        skips: &mut Vec<ValueId>,
    ) -> Result<ValueId, ConfigError> {
        let levels = self.config.block_out_channels.len();
        let (out, block) = (self.config.block_out_channels[levels - 1 - level], format!("up_blocks.{level}"));
        for j in 0..=self.config.layers_per_block {
            let before = self.b.graph.shape(h).channels();
            h = self.join(&block, h, skips)?;
            let joined = self.b.graph.shape(h).channels();
            let first = match kind {
                // Published code divides the skip's channels alone by four, and networks are trained with that.
                UpBlock::AttentionSkip => (before + (joined - before) / 4).min(32),
                _ => groups(joined),
            };
            let resnet = Resnet { out, groups: [first, groups(out)], scale: SCALE, resample: None, project: false };
            h = self.b.resnet(&format!("{block}.resnets.{j}"), h, resnet)?;
        }
        if kind == UpBlock::AttentionSkip {
            h = self.skip_attention(&format!("{block}.attentions.0"), h)?;
        }
        let filter = Op::Fir(Fir::up(TAPS));
        if let Some(image) = self.image {
            self.image = Some(self.b.graph.apply(filter.clone(), &[image])?);
        }
        if level + 1 < levels {
            let mut image = self.b.norm(&format!("{block}.skip_norm"), h, None, groups(out))?;
            image = self.b.graph.silu(image)?;
            image = self.b.conv(&format!("{block}.skip_conv"), image, IMAGE, ConvGeometry::SAME_3X3)?;
            self.image = Some(match self.image {
                Some(sum) => self.b.graph.add(sum, image)?,
                None => image,
            });
            let resnet = Resnet { out, groups: [groups(out); 2], scale: SCALE, resample: Some(filter), project: true };
            h = self.b.resnet(&format!("{block}.resnet_up"), h, resnet)?;
        }
        self.tap(block, h);
        Ok(h)
    }
}
