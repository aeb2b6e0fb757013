//! Networks that are known by name.

use super::{DownBlock, SampleSize, UNetConfig, UpBlock};

/// The 35.7 M-parameter network of DDPM for CIFAR-10 (2006.11239): what google/ddpm-cifar10-32 holds.
pub fn ddpm_cifar10_32() -> UNetConfig {
    UNetConfig {
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
    }
}

/// 0.7 M parameters for grey 8x8 images: trains in minutes on two cores.
pub fn digits_small() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(8)),
        in_channels: 1,
        out_channels: 1,
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        ..UNetConfig::default()
    }
}

/// A few million parameters for images of 16 to 64 pixels: a first model on a CPU.
pub fn small_32() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(32)),
        block_out_channels: vec![64, 96, 128],
        layers_per_block: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain, UpBlock::Plain],
        attention_head_dim: Some(32),
        ..UNetConfig::default()
    }
}

/// The 113.7 M-parameter network of DDPM for 256x256 images (2006.11239): what google/ddpm-celebahq-256,
/// google/ddpm-church-256 and google/ddpm-bedroom-256 hold.
pub fn ddpm_256() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(256)),
        block_out_channels: vec![128, 128, 256, 256, 512, 512],
        down_block_types: vec![
            DownBlock::Plain,
            DownBlock::Plain,
            DownBlock::Plain,
            DownBlock::Plain,
            DownBlock::Attention,
            DownBlock::Plain,
        ],
        up_block_types: vec![
            UpBlock::Plain,
            UpBlock::Attention,
            UpBlock::Plain,
            UpBlock::Plain,
            UpBlock::Plain,
            UpBlock::Plain,
        ],
        norm_eps: 1e-6,
        attention_head_dim: None,
        downsample_padding: 0,
        flip_sin_to_cos: false,
        freq_shift: 1.0,
        ..UNetConfig::default()
    }
}
