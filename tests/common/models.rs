//! Small models with random weights.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use warpdiff::backend::{Executable, Store};
use warpdiff::diffusion::{BetaConfig, SamplerKind, SchedulerConfig, VarianceType};
use warpdiff::graph::{Activation, ParamId, ParamSpec};
use warpdiff::model::save_model;
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::unet::{DownBlock, SampleSize, TimeEmbeddingType, UNetConfig, UpBlock, initial_weights};

/// 8x8, one channel, two levels of 8 channels; three classes and a null class.
pub fn tiny() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(8)),
        in_channels: 1,
        out_channels: 1,
        block_out_channels: vec![8, 8],
        layers_per_block: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Plain],
        up_block_types: vec![UpBlock::Plain, UpBlock::Plain],
        norm_num_groups: Some(4),
        attention_head_dim: Some(4),
        num_class_embeds: Some(4),
        null_class: Some(3),
        ..UNetConfig::default()
    }
}

/// As [`tiny`], without classes.
pub fn unconditional() -> UNetConfig {
    UNetConfig { num_class_embeds: None, null_class: None, ..tiny() }
}

/// 16x16, wide enough for the Winograd kernels, with attention at both ends.
pub fn wide() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(16)),
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![16, 32],
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        attention_head_dim: Some(16),
        norm_num_groups: Some(8),
        ..tiny()
    }
}

/// 12x20, with learned variances, scale-shift norms, and residual blocks that resample.
pub fn oblong() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::HeightWidth([12, 20])),
        in_channels: 2,
        out_channels: 4,
        block_out_channels: vec![8, 16, 16],
        down_block_types: vec![DownBlock::Resnet, DownBlock::Attention, DownBlock::Plain],
        up_block_types: vec![UpBlock::Plain, UpBlock::Attention, UpBlock::Resnet],
        resnet_time_scale_shift: warpdiff::unet::TimeScaleShift::ScaleShift,
        ..tiny()
    }
}

/// 4x4 in three channels: an image beside the network, with attention at the coarser level.
pub fn skip() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(4)),
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![32, 32],
        down_block_types: vec![DownBlock::Skip, DownBlock::AttentionSkip],
        up_block_types: vec![UpBlock::AttentionSkip, UpBlock::Skip],
        norm_num_groups: None,
        attention_head_dim: Some(16),
        ..tiny()
    }
}

/// 4x4, two residual blocks a level, the time embedding in norms without parameters.
pub fn conditioned_norms() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(4)),
        block_out_channels: vec![32, 32],
        layers_per_block: 2,
        down_block_types: vec![DownBlock::K, DownBlock::K],
        up_block_types: vec![UpBlock::K, UpBlock::K],
        act_fn: Activation::Gelu,
        attention_head_dim: Some(32),
        ..tiny()
    }
}

/// 4x4, a table of a thousand timesteps.
pub fn learned_times() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(4)),
        time_embedding_type: TimeEmbeddingType::Learned,
        num_train_timesteps: Some(1000),
        ..tiny()
    }
}

/// A DDPM schedule of `timesteps` steps that fits the model.
pub fn scheduler(config: &UNetConfig, timesteps: usize) -> SchedulerConfig {
    let learned = config.out_channels == 2 * config.in_channels;
    SchedulerConfig {
        betas: BetaConfig { num_train_timesteps: timesteps, ..BetaConfig::default() },
        variance_type: if learned { VarianceType::LearnedRange } else { VarianceType::FixedSmall },
        ..SchedulerConfig::new(SamplerKind::Ddpm)
    }
}

/// Initial weights with everything that starts as 0 or 1 shaken, in multiples of 2^-12.
pub fn random_weights(params: &[ParamSpec], seed: u64) -> Vec<Vec<f32>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut shake = |v: f32| ((v + rng.random_range(-0.1..0.1f32)) * 4096.0).round() / 4096.0;
    (0..params.len()).map(|i| initial_weights(params, i, seed).into_iter().map(&mut shake).collect()).collect()
}

pub fn params(config: &UNetConfig) -> Vec<ParamSpec> {
    let (h, w) = config.height_width().unwrap();
    ForwardProgram::new(config, Batch { n: 1, h, w }, false).unwrap().plan.graph().params().to_vec()
}

/// Writes a model folder with random weights.
pub fn save(folder: &Path, config: &UNetConfig, timesteps: usize) {
    let params = params(config);
    save_model(folder, config, &scheduler(config, timesteps), &params, &random_weights(&params, 7)).unwrap();
}

/// Loads random weights into an executable, and into the moving average where there is one.
pub fn load_random(exe: &mut dyn Executable, seed: u64) {
    let weights = random_weights(exe.plan().graph().params(), seed);
    for (i, data) in weights.iter().enumerate() {
        exe.write_param(Store::Params, ParamId::new(i), data).unwrap();
    }
}

/// Seeded normal-like noise in multiples of 2^-10.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| (rng.random_range(-1.5..1.5f32) * 1024.0).round() / 1024.0).collect()
}
