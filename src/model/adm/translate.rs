//! Flags to configurations.

use super::{AdmNetwork, Flags, QkvOrder};
use crate::diffusion::{
    BetaConfig, Compat, PredictionType, Respaced, SamplerKind, Schedule, SchedulerConfig, VarianceType,
};
use crate::model::ModelError;
use crate::unet::{
    ClassifierConfig, ClassifierPool, ConfigError, DownBlock, ResamplerType, SampleSize, TimeScaleShift, UNetConfig,
    UpBlock,
};

/// Rows of the class embedding, a constant of the scripts.
const CLASSES: usize = 1000;

/// Far beyond every published network.
const MOST_LEVELS: usize = 16;

/// Where the attention of a network is, and how wide its levels are.
struct Levels {
    image_size: usize,
    width: usize,
    multipliers: Vec<f64>,
    /// The attention resolutions, as the flags have them.
    attention: Vec<f64>,
    /// Resampling by residual blocks.
    by_resnet: bool,
}

impl Levels {
    fn channels(&self) -> Vec<usize> {
        // Cut down, as the scripts do.
        self.multipliers.iter().map(|m| (m * self.width as f64) as usize).collect()
    }

    /// Whether level `level` has attention: its downsampling factor is the integer quotient of the image size and one of the
    /// resolutions.
    fn attends(&self, level: usize) -> bool {
        self.attention.iter().any(|&resolution| self.image_size / resolution as usize == 1 << level)
    }

    fn encoder(&self, config: UNetConfig) -> UNetConfig {
        let levels = self.multipliers.len();
        let (plain_down, plain_up) = match self.by_resnet {
            true => (DownBlock::Resnet, UpBlock::Resnet),
            false => (DownBlock::Plain, UpBlock::Plain),
        };
        let resampler = if self.by_resnet { ResamplerType::Resnet } else { ResamplerType::Conv };
        let channels = self.channels();
        UNetConfig {
            sample_size: Some(SampleSize::Side(self.image_size)),
            time_embedding_dim: Some(4 * self.width),
            sinusoid_width: (channels.first() != Some(&self.width)).then_some(self.width),
            down_block_types: (0..levels)
                .map(|level| if self.attends(level) { DownBlock::Attention } else { plain_down })
                .collect(),
            up_block_types: (0..levels)
                .rev()
                .map(|level| if self.attends(level) { UpBlock::Attention } else { plain_up })
                .collect(),
            block_out_channels: channels,
            downsample_type: resampler,
            upsample_type: resampler,
            attn_norm_num_groups: Some(32),
            ..config
        }
    }
}

pub(super) fn network(flags: &Flags) -> Result<AdmNetwork, ModelError> {
    if flags.describe_a_classifier_alone() {
        return Err(flags.refused("these are the flags of a classifier, which guides: name its file with --classifier"));
    }
    let image_size = image_size(flags)?;
    let super_resolution = flags.has("large_size");
    let learn_sigma = flags.switch("learn_sigma", false)?;
    if learn_sigma && flags.switch("sigma_small", false)? {
        return Err(
            flags.refused("learn_sigma and sigma_small contradict each other: the variance is learned or fixed")
        );
    }
    let levels = Levels {
        image_size,
        width: flags.count("num_channels", 128)?,
        multipliers: multipliers(flags, "channel_mult", image_size, super_resolution)?,
        attention: attention(flags, "attention_resolutions", "16,8")?,
        by_resnet: flags.switch("resblock_updown", false)?,
    };
    let head_width = flags.count_unless_minus_one("num_head_channels")?;
    let heads = flags.count("num_heads", 4)?;
    let decoder_heads = flags.count_unless_minus_one("num_heads_upsample")?.filter(|&n| n != heads);
    let condition = if super_resolution { 3 } else { 0 };
    let (timestep_scale, scheduler) = scheduler(flags, learn_sigma)?;
    let config = levels.encoder(UNetConfig {
        in_channels: 3 + condition,
        out_channels: if learn_sigma { 6 } else { 3 },
        layers_per_block: flags.count("num_res_blocks", 2)?,
        dropout: flags.number("dropout", 0.0)?,
        attention_head_dim: head_width,
        attention_heads: if head_width.is_none() { Some(heads) } else { None },
        decoder_attention_heads: if head_width.is_none() { decoder_heads } else { None },
        resnet_time_scale_shift: time_scale_shift(flags, "use_scale_shift_norm")?,
        num_class_embeds: match flags.switch("class_cond", false)? {
            true => Some(flags.count("num_classes", CLASSES)?),
            false => None,
        },
        timestep_scale,
        condition_channels: condition,
        ..UNetConfig::default()
    });
    let order =
        if flags.switch("use_new_attention_order", false)? { QkvOrder::PerProjection } else { QkvOrder::PerHead };
    check(flags, &config)?;
    Ok(AdmNetwork { config, scheduler, order })
}

pub(super) fn classifier(flags: &Flags) -> Result<ClassifierConfig, ModelError> {
    let image_size = image_size(flags)?;
    let levels = Levels {
        image_size,
        width: flags.count("classifier_width", 128)?,
        multipliers: multipliers(flags, "classifier_channel_mult", image_size, false)?,
        attention: attention(flags, "classifier_attention_resolutions", "32,16,8")?,
        by_resnet: flags.switch("classifier_resblock_updown", true)?,
    };
    let pool = match flags.text("classifier_pool", "attention").as_str() {
        "attention" => ClassifierPool::Attention,
        "spatial" => ClassifierPool::Spatial,
        other => {
            let problem = format!("classifier_pool = {other:?} is not supported; supported: attention, spatial");
            return Err(flags.refused(problem));
        }
    };
    let (timestep_scale, _) = scheduler(flags, false)?;
    let encoder = levels.encoder(UNetConfig {
        layers_per_block: flags.count("classifier_depth", 2)?,
        attention_head_dim: Some(flags.count("classifier_num_head_channels", 64)?),
        resnet_time_scale_shift: time_scale_shift(flags, "classifier_use_scale_shift_norm")?,
        timestep_scale,
        ..UNetConfig::default()
    });
    check(flags, &encoder)?;
    Ok(ClassifierConfig { encoder, pool, classes: flags.count("num_classes", CLASSES)? })
}

fn time_scale_shift(flags: &Flags, key: &str) -> Result<TimeScaleShift, ModelError> {
    Ok(if flags.switch(key, true)? { TimeScaleShift::ScaleShift } else { TimeScaleShift::Default })
}

/// The side of the images: `image_size`, or `large_size` of super-resolution.
fn image_size(flags: &Flags) -> Result<usize, ModelError> {
    if !flags.has("large_size") {
        if flags.has("small_size") {
            return Err(flags.refused("small_size without large_size: super-resolution has both"));
        }
        return flags.count("image_size", 64);
    }
    let (large, small) = (flags.count("large_size", 256)?, flags.count("small_size", 64)?);
    if flags.has("image_size") {
        return Err(flags.refused("image_size and large_size contradict each other: super-resolution has the latter"));
    }
    if small >= large {
        return Err(flags.refused(format!("small_size = {small} is not below large_size = {large}")));
    }
    Ok(large)
}

/// Widths of the levels as multiples of the first width; by the size of the images where the flag does not say them.
fn multipliers(
    flags: &Flags,
    key: &'static str,
    image_size: usize,
    super_resolution: bool,
) -> Result<Vec<f64>, ModelError> {
    let given = flags.numbers(key)?;
    if given.len() > MOST_LEVELS {
        return Err(flags.refused(format!("{key} has {} levels, at most {MOST_LEVELS} make sense", given.len())));
    }
    if !given.is_empty() {
        return Ok(given);
    }
    let known: &[f64] = match (image_size, super_resolution) {
        (512, false) => &[0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        (256, _) | (512, true) => &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
        (128, _) => &[1.0, 1.0, 2.0, 3.0, 4.0],
        (64, _) => &[1.0, 2.0, 3.0, 4.0],
        (32, _) => &[1.0, 2.0, 2.0, 2.0],
        _ => {
            let problem =
                format!("{key} has no default for images of {image_size} pixels (32, 64, 128, 256, 512 have); add it");
            return Err(flags.refused(problem));
        }
    };
    Ok(known.to_vec())
}

fn attention(flags: &Flags, key: &str, default: &str) -> Result<Vec<f64>, ModelError> {
    if !flags.has(key) {
        return Ok(default.split(',').filter_map(|n| n.parse().ok()).collect());
    }
    let resolutions = flags.numbers(key)?;
    match resolutions.iter().find(|n| n.fract() != 0.0) {
        None => Ok(resolutions),
        Some(fraction) => Err(flags.refused(format!("{key}: {fraction} is not a whole number of pixels"))),
    }
}

/// The factor of the timesteps, and the noise schedule with sampling as the scripts do it.
pub(super) fn scheduler(flags: &Flags, learn_sigma: bool) -> Result<(f64, SchedulerConfig), ModelError> {
    let steps = flags.count("diffusion_steps", 1000)?;
    let betas = match flags.text("noise_schedule", "linear").as_str() {
        "linear" => BetaConfig::adm_linear(steps),
        "cosine" => BetaConfig::cosine(steps),
        other => {
            let problem = format!("noise_schedule = {other:?} is not supported; supported: linear, cosine");
            return Err(flags.refused(problem));
        }
    };
    // The two projects differ in the default, and with 1000 steps it makes no difference.
    if steps != 1000 && !flags.has("rescale_timesteps") {
        return Err(flags.refused(
            "rescale_timesteps is not given, and its default is True in improved-diffusion and False in guided-diffusion; \
             add it",
        ));
    }
    let rescaled = flags.switch("rescale_timesteps", false)?;
    let schedule = Schedule::new(&betas).map_err(|e| flags.refused(format!("diffusion_steps = {steps}: {e}")))?;
    let respacing = flags.text("timestep_respacing", "");
    Respaced::new(&schedule, &respacing).map_err(|e| flags.refused(format!("timestep_respacing: {e}")))?;
    let variance_type = match (learn_sigma, flags.switch("sigma_small", false)?) {
        (true, _) => VarianceType::LearnedRange,
        (false, true) => VarianceType::FixedSmall,
        (false, false) => VarianceType::FixedLarge,
    };
    let predicts_x0 = flags.switch("predict_xstart", false)?;
    let sampler = if flags.switch("use_ddim", false)? { SamplerKind::Ddim } else { SamplerKind::Ddpm };
    let scheduler = SchedulerConfig {
        betas,
        prediction_type: if predicts_x0 { PredictionType::Sample } else { PredictionType::Epsilon },
        variance_type,
        clip_sample: flags.switch("clip_denoised", true)?,
        compat: Compat::GuidedDiffusion,
        respacing: (!respacing.is_empty()).then_some(respacing),
        ..SchedulerConfig::new(sampler)
    };
    Ok((if rescaled { 1000.0 / steps as f64 } else { 1.0 }, scheduler))
}

/// What the configuration itself refuses, in terms of flags where they have names of their own.
fn check(flags: &Flags, config: &UNetConfig) -> Result<(), ModelError> {
    let problem = |error: ConfigError| {
        let text = error.to_string();
        let flag = [
            ("attention_head_dim", "num_head_channels"),
            ("decoder_attention_heads", "num_heads_upsample"),
            ("attention_heads", "num_heads"),
            ("block_out_channels", "num_channels and channel_mult"),
            ("layers_per_block", "num_res_blocks"),
            ("sample_size", "image_size and channel_mult"),
            ("num_class_embeds", "num_classes"),
        ];
        let named = flag.iter().find_map(|(key, flag)| text.strip_prefix(key).map(|rest| format!("{flag}{rest}")));
        flags.refused(named.unwrap_or(text))
    };
    config.validate().map_err(problem)?;
    let parameters = crate::program::parameters(config);
    parameters.map(|_| ()).map_err(problem)
}
