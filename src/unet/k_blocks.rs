//! Blocks of k-diffusion: the time embedding lies in the norms, and a filter on the mirrored image resamples.

use super::ConfigError;
use super::builder::Network;
use crate::graph::{Fir, Op, ValueId};

const TAPS: [f64; 4] = [1.0, 3.0, 3.0, 1.0];
/// Channels of a group of every norm.
const GROUP: usize = 32;

fn groups(block: &str, channels: usize) -> Result<usize, ConfigError> {
    let groups = channels / GROUP;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(ConfigError::Invalid {
            key: "block_out_channels",
            detail: format!("{channels} channels of {block} make no groups of {GROUP}, which K blocks have"),
        });
    }
    Ok(groups)
}

impl Network<'_> {
    pub(super) fn k_down(
        &mut self,
        level: usize,
        mut h: ValueId,
        skips: &mut Vec<ValueId>,
    ) -> Result<ValueId, ConfigError> {
        let (out, block) = (self.config.block_out_channels[level], format!("down_blocks.{level}"));
        for j in 0..self.config.layers_per_block {
            let name = format!("{block}.resnets.{j}");
            let groups = [groups(&name, self.b.graph.shape(h).channels())?, groups(&name, out)?];
            h = self.b.conditioned_resnet(&name, h, out, groups)?;
            skips.push(h);
        }
        if level + 1 < self.config.block_out_channels.len() {
            h = self.b.graph.apply(Op::Fir(Fir::down(TAPS).mirrored()), &[h])?;
        }
        self.tap(block, h);
        Ok(h)
    }

    /// Of the results of its level it takes the last alone, and its last residual block makes the next level's width.
    pub(super) fn k_up(
        &mut self,
        level: usize,
        mut h: ValueId,
        skips: &mut Vec<ValueId>,
    ) -> Result<ValueId, ConfigError> {
        let (channels, block) = (&self.config.block_out_channels, format!("up_blocks.{level}"));
        let (levels, layers) = (channels.len(), self.config.layers_per_block);
        let width = channels[levels - 1 - level];
        let next = channels[levels - 1 - (level + 1).min(levels - 1)];
        h = self.join(&block, h, skips)?;
        skips.truncate(skips.len().saturating_sub(layers - 1));
        for j in 0..layers {
            let name = format!("{block}.resnets.{j}");
            let groups = [groups(&name, self.b.graph.shape(h).channels())?, groups(&name, width)?];
            let out = if j + 1 == layers { next } else { width };
            h = self.b.conditioned_resnet(&name, h, out, groups)?;
        }
        if level + 1 < levels {
            h = self.b.graph.apply(Op::Fir(Fir::up(TAPS).mirrored()), &[h])?;
        }
        self.tap(block, h);
        Ok(h)
    }
}
