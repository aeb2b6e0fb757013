//! Which networks UNet2DModel can be, and with which keys.

use crate::unet::{ConfigError, DownBlock, UNetConfig, UpBlock};

/// The same network in keys of diffusers alone.
///
/// # Errors
/// [`ConfigError::Invalid`] with the key that diffusers lacks, and why it matters.
pub(super) fn expressed(config: &UNetConfig) -> Result<UNetConfig, ConfigError> {
    let refused = |key, detail: String| Err(refusal(key, &detail));
    if config.condition_channels > 0 {
        return refused(
            "condition_channels",
            "UNet2DModel has no low-resolution image among its inputs, and its pipelines would give none".into(),
        );
    }
    if let Some(width) = config.sinusoid_width.filter(|&width| width != config.block_out_channels[0]) {
        return refused(
            "sinusoid_width",
            format!(
                "the sinusoids of t have {width} channels, and those of UNet2DModel as many as the first block, {}",
                config.block_out_channels[0]
            ),
        );
    }
    if config.timestep_scale != 1.0 {
        return refused(
            "timestep_scale",
            format!(
                "the network reads t * {} (rescale_timesteps), and the schedulers of diffusers tell t itself",
                config.timestep_scale
            ),
        );
    }
    let attention_head_dim = match config.attention_heads {
        None => config.attention_head_dim,
        Some(heads) => Some(head_width(config, heads)?),
    };
    Ok(UNetConfig {
        sinusoid_width: None,
        attention_heads: None,
        decoder_attention_heads: None,
        attention_head_dim,
        ..config.clone()
    })
}

/// What diffusers lacks, and what to do.
fn refusal(key: &'static str, detail: &str) -> ConfigError {
    ConfigError::Invalid { key, detail: format!("{detail}; the checkpoint itself can be sampled and evaluated") }
}

/// The width of a head, where so many heads have the same in every attention layer.
fn head_width(config: &UNetConfig, heads: usize) -> Result<usize, ConfigError> {
    let decoder = config.decoder_attention_heads.unwrap_or(heads);
    let down = config.block_out_channels.iter().zip(&config.down_block_types);
    let down = down.filter(|(_, kind)| **kind == DownBlock::Attention).map(|(width, _)| width / heads);
    let up = config.block_out_channels.iter().rev().zip(&config.up_block_types);
    let up = up.filter(|(_, kind)| **kind == UpBlock::Attention).map(|(width, _)| width / decoder);
    let middle = config.block_out_channels.last().filter(|_| config.add_attention).map(|width| width / heads);
    let mut widths: Vec<usize> = down.chain(up).chain(middle).collect();
    widths.sort_unstable();
    widths.dedup();
    match widths[..] {
        [] => Ok(config.block_out_channels[0]),
        [width] => Ok(width),
        _ => Err(refusal(
            "attention_heads",
            &format!(
                "UNet2DModel has heads of one width (attention_head_dim), and {heads} heads in every layer (num_heads) are {} \
                 channels wide",
                widths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
}
