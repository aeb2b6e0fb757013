//! Networks that are known by name.

use clap::ValueEnum;

use crate::unet::{DownBlock, SampleSize, UNetConfig, UpBlock};

/// A network known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// The 35.7 M-parameter network of DDPM for 32x32 images.
    #[value(name = "ddpm-cifar10-32")]
    DdpmCifar10,
    /// 0.7 M parameters for 8x8 images: trains in minutes on two cores.
    DigitsSmall,
    /// 5 M parameters for images of 16 to 64 pixels: a first model on a CPU.
    Small32,
}

impl Preset {
    /// The smallest network that suits images of this size.
    pub fn for_size(h: usize, w: usize) -> Self {
        if h.max(w) <= 12 { Preset::DigitsSmall } else { Preset::Small32 }
    }

    /// The network's configuration.
    pub fn config(self) -> UNetConfig {
        match self {
            Preset::DdpmCifar10 => UNetConfig {
                sample_size: Some(SampleSize::Side(32)),
                block_out_channels: vec![128, 256, 256, 256],
                down_block_types: vec![DownBlock::Plain, DownBlock::Attention, DownBlock::Plain, DownBlock::Plain],
                up_block_types: vec![UpBlock::Plain, UpBlock::Plain, UpBlock::Attention, UpBlock::Plain],
                norm_eps: 1e-6,
                attention_head_dim: None,
                downsample_padding: 0,
                flip_sin_to_cos: false,
                freq_shift: 1.0,
                ..UNetConfig::default()
            },
            Preset::Small32 => UNetConfig {
                sample_size: Some(SampleSize::Side(32)),
                block_out_channels: vec![64, 96, 128],
                layers_per_block: 1,
                down_block_types: vec![DownBlock::Plain, DownBlock::Plain, DownBlock::Attention],
                up_block_types: vec![UpBlock::Attention, UpBlock::Plain, UpBlock::Plain],
                attention_head_dim: Some(32),
                ..UNetConfig::default()
            },
            Preset::DigitsSmall => UNetConfig {
                sample_size: Some(SampleSize::Side(8)),
                in_channels: 1,
                out_channels: 1,
                block_out_channels: vec![32, 64],
                layers_per_block: 1,
                down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
                up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
                ..UNetConfig::default()
            },
        }
    }
}
