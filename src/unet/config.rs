//! `config.json` of a UNet2DModel.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ConfigError, DownBlock, UpBlock};
use crate::graph::Activation;

/// Side length of the images, or height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// Square images.
    Side(usize),
    /// `[height, width]`.
    HeightWidth([usize; 2]),
}

/// How the timestep enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeEmbeddingType {
    /// Sinusoids of t.
    #[default]
    Positional,
    /// Sinusoids of ln t at fixed random frequencies; t is a noise level, and the output is divided by it.
    Fourier,
    /// A row of a table for each of `num_train_timesteps` timesteps.
    Learned,
}

/// How the time embedding acts inside a residual block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added between the two convolutions.
    #[default]
    Default,
    /// Scales and shifts the second norm.
    ScaleShift,
}

/// How an attention block of the encoder or decoder resamples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResamplerType {
    /// By a convolution.
    #[default]
    Conv,
    /// By a residual block.
    Resnet,
}

/// What `class_labels` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbedding {
    /// Numbers, embedded as timesteps are.
    Timestep,
    /// Vectors as wide as the time embedding.
    Identity,
}

/// Configuration of a UNet2DModel; the keys and defaults of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Image size; height and width must be multiples of `2^(levels - 1)`.
    pub sample_size: Option<SampleSize>,
    /// Channels of x_t.
    pub in_channels: usize,
    /// Channels of the output: twice the image's when the variance is learned.
    pub out_channels: usize,
    /// Maps x to 2x - 1 first.
    pub center_input_sample: bool,
    /// How the timestep enters.
    pub time_embedding_type: TimeEmbeddingType,
    /// Width of the time embedding; four times the first block's by default.
    pub time_embedding_dim: Option<usize>,
    /// Offset in the sinusoids' frequencies.
    pub freq_shift: f64,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    /// Encoder blocks, finest first.
    pub down_block_types: Vec<DownBlock>,
    /// Whether there is a middle block.
    pub mid_block_type: Option<String>,
    /// Decoder blocks, coarsest first.
    pub up_block_types: Vec<UpBlock>,
    /// Channels per level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per encoder level; the decoder has one more.
    pub layers_per_block: usize,
    /// Divides the sums of the middle block.
    pub mid_block_scale_factor: f64,
    /// 1, or 0 for one pixel of padding at the right and bottom only.
    pub downsample_padding: usize,
    /// Resampling of encoder blocks with attention.
    pub downsample_type: ResamplerType,
    /// Resampling of decoder blocks with attention.
    pub upsample_type: ResamplerType,
    /// Dropout in residual blocks, while training.
    pub dropout: f64,
    /// Activation of the residual blocks; everything else has SiLU.
    #[serde(deserialize_with = "any_case")]
    pub act_fn: Activation,
    /// Channels of an attention head; all of them when absent.
    pub attention_head_dim: Option<usize>,
    /// Groups of the group norms; of a network of skip blocks `min(C / 4, 32)` when absent.
    pub norm_num_groups: Option<usize>,
    /// Groups of the norm before the middle attention.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance of every group norm.
    pub norm_eps: f64,
    /// How the time embedding acts.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// What class labels are, unless they are indices.
    pub class_embed_type: Option<ClassEmbedding>,
    /// Rows of the class embedding.
    pub num_class_embeds: Option<usize>,
    /// Rows of a learned time embedding.
    pub num_train_timesteps: Option<usize>,
    /// The class that stands for "no class" in classifier-free guidance. A key of ours: diffusers has no such rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_class: Option<usize>,
    /// Width of the sinusoids of t, where it is not that of the first block. A key of ours, as those below: they are what the
    /// networks of ADM and Improved DDPM have and UNet2DModel has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sinusoid_width: Option<usize>,
    /// Attention heads of every layer, however wide it is, instead of a head's width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_heads: Option<usize>,
    /// The same for the decoder, where it has another number than the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_attention_heads: Option<usize>,
    /// Multiplies t before it is embedded: 1000 / T for networks that were trained with `rescale_timesteps`.
    #[serde(skip_serializing_if = "is_one")]
    pub timestep_scale: f64,
    /// Input channels behind those of x_t that hold a condition: the low-resolution image of super-resolution.
    #[serde(skip_serializing_if = "is_zero")]
    pub condition_channels: usize,
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl Default for UNetConfig {
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_type: TimeEmbeddingType::Positional,
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: vec![DownBlock::Plain, DownBlock::Attention, DownBlock::Attention, DownBlock::Attention],
            mid_block_type: Some("UNetMidBlock2D".into()),
            up_block_types: vec![UpBlock::Attention, UpBlock::Attention, UpBlock::Attention, UpBlock::Plain],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: ResamplerType::Conv,
            upsample_type: ResamplerType::Conv,
            dropout: 0.0,
            act_fn: Activation::Silu,
            attention_head_dim: Some(8),
            norm_num_groups: Some(32),
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
            null_class: None,
            sinusoid_width: None,
            attention_heads: None,
            decoder_attention_heads: None,
            timestep_scale: 1.0,
            condition_channels: 0,
        }
    }
}

/// Limits far beyond every published network. They keep sizes of tensors from overflowing and plans from growing without
/// bound before anything else can refuse a damaged configuration.
const MAX_LEVELS: usize = 16;
const MAX_LAYERS: usize = 64;
const MAX_IMAGE_CHANNELS: usize = 4096;
const MAX_WIDTH: usize = 1 << 14;
const MAX_EMBEDDING: usize = 1 << 16;
const MAX_CLASSES: usize = 1 << 24;
const MAX_SIDE: usize = 1 << 13;

const BLOCKS: &str = "DownBlock2D, AttnDownBlock2D, ResnetDownsampleBlock2D, SkipDownBlock2D, AttnSkipDownBlock2D, \
                      KDownBlock2D / UpBlock2D, AttnUpBlock2D, ResnetUpsampleBlock2D, SkipUpBlock2D, \
                      AttnSkipUpBlock2D, KUpBlock2D";

impl UNetConfig {
    /// The defaults, but with a value for every key that is left out where it says nothing.
    fn with_every_key() -> Self {
        Self {
            null_class: Some(0),
            sinusoid_width: Some(0),
            attention_heads: Some(0),
            decoder_attention_heads: Some(0),
            timestep_scale: 0.0,
            condition_channels: 1,
            ..Self::default()
        }
    }

    /// Parses and checks the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key and what would be accepted.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        match Self::from_json_lenient(text)? {
            (config, unknown) if unknown.is_empty() => Ok(config),
            (_, unknown) => Err(ConfigError::UnknownKeys { keys: unknown.join(", ") }),
        }
    }

    /// As [`from_json`](Self::from_json), but leaves out keys that nobody knows. The second result is these, with their values.
    ///
    /// # Errors
    /// [`ConfigError`], but for unknown keys.
    pub fn from_json_lenient(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let mut map: Map<String, Value> = serde_json::from_str(text)?;
        check_class(&map)?;
        rename_old_keys(&mut map);
        strip_old_prefixes(&mut map);
        check_enums(&map)?;
        let default = serde_json::to_value(Self::with_every_key())?;
        let unknown = unknown_keys(&map, &default);
        // An absent key takes its default, and so does a null one whose default is not null.
        map.retain(|key, value| !value.is_null() || default.get(key).is_none_or(|d| d.is_null() || nullable(key)));
        let config: Self = serde_json::from_value(Value::Object(map))?;
        config.validate()?;
        Ok((config, unknown))
    }

    /// The text of a `config.json` that diffusers loads.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.insert("_class_name".into(), "UNet2DModel".into());
            map.insert("_diffusers_version".into(), "0.42.0".into());
        }
        format!("{value:#}\n")
    }

    /// Checks everything that does not need the graph.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, detail: String| Err(ConfigError::Invalid { key, detail });
        let levels = self.block_out_channels.len();
        if levels == 0 {
            return invalid("block_out_channels", "is empty; give one width per level".into());
        }
        if levels > MAX_LEVELS {
            return invalid("block_out_channels", format!("has {levels} levels, at most {MAX_LEVELS} make sense"));
        }
        for (key, len) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if len != levels {
                return invalid(key, format!("has {len} blocks, block_out_channels has {levels} levels"));
            }
        }
        for (key, value, max) in [
            ("in_channels", self.in_channels, MAX_IMAGE_CHANNELS),
            ("out_channels", self.out_channels, MAX_IMAGE_CHANNELS),
            ("layers_per_block", self.layers_per_block, MAX_LAYERS),
            ("time_embedding_dim", self.time_embedding_dim.unwrap_or(1), MAX_EMBEDDING),
            ("num_class_embeds", self.num_class_embeds.unwrap_or(1), MAX_CLASSES),
            ("sinusoid_width", self.sinusoid_width.unwrap_or(1), MAX_EMBEDDING),
            ("attention_heads", self.attention_heads.unwrap_or(1), MAX_WIDTH),
            ("decoder_attention_heads", self.decoder_attention_heads.unwrap_or(1), MAX_WIDTH),
            ("num_train_timesteps", self.num_train_timesteps.unwrap_or(1), MAX_CLASSES),
        ] {
            if value == 0 || value > max {
                return invalid(key, format!("{value} is not in 1..={max}"));
            }
        }
        for &c in &self.block_out_channels {
            if c == 0 || c > MAX_WIDTH {
                return invalid("block_out_channels", format!("{c} is not in 1..={MAX_WIDTH}"));
            }
        }
        self.check_blocks()?;
        if self.time_embedding_type == TimeEmbeddingType::Learned && self.num_train_timesteps.is_none() {
            return invalid("num_train_timesteps", "is needed with time_embedding_type = learned".into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("dropout", format!("{} is not in [0, 1)", self.dropout));
        }
        if self.mid_block_scale_factor == 0.0 || !self.mid_block_scale_factor.is_finite() {
            return invalid("mid_block_scale_factor", "must be a finite number other than 0".into());
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return invalid("norm_eps", format!("{} is not a positive number", self.norm_eps));
        }
        if self.downsample_padding > 1 {
            return invalid("downsample_padding", format!("{} is neither 0 nor 1", self.downsample_padding));
        }
        if !(self.timestep_scale > 0.0 && self.timestep_scale.is_finite()) {
            return invalid("timestep_scale", format!("{} is not a positive number", self.timestep_scale));
        }
        if self.timestep_scale != 1.0 && self.time_embedding_type == TimeEmbeddingType::Fourier {
            return invalid("timestep_scale", "a fourier embedding reads a noise level, which has no scale".into());
        }
        if self.condition_channels >= self.in_channels {
            return invalid(
                "condition_channels",
                format!("{} of in_channels = {} leave none for x_t", self.condition_channels, self.in_channels),
            );
        }
        // The frequencies are 10000^(-i / (half - freq_shift)).
        let half = self.sinusoid_width() / 2;
        if self.time_embedding_type == TimeEmbeddingType::Positional && half > 0 && self.freq_shift == half as f64 {
            return invalid(
                "freq_shift",
                format!("{half} leaves no frequency of the {half} there are; 0 or 1 is usual"),
            );
        }
        if let Some(null) = self.null_class
            && self.num_class_embeds.and_then(|rows| rows.checked_sub(1)) != Some(null)
        {
            let rows = self.num_class_embeds.unwrap_or(0);
            return invalid("null_class", format!("{null} is not the last of num_class_embeds = {rows} rows"));
        }
        if let Some((h, w)) = self.height_width() {
            self.check_size(h, w)?;
        }
        Ok(())
    }

    /// Checks that images of this size survive the down-sampling.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the next size that would do.
    pub fn check_size(&self, h: usize, w: usize) -> Result<(), ConfigError> {
        let factor = 1usize.checked_shl(self.block_out_channels.len() as u32 - 1).unwrap_or(usize::MAX);
        if h.max(w) > MAX_SIDE {
            return Err(ConfigError::Invalid {
                key: "sample_size",
                detail: format!("{h}x{w} images are larger than {MAX_SIDE}x{MAX_SIDE}"),
            });
        }
        if h == 0 || w == 0 || !h.is_multiple_of(factor) || !w.is_multiple_of(factor) {
            return Err(ConfigError::Invalid {
                key: "sample_size",
                detail: format!(
                    "{h}x{w} images cannot be halved {} times; height and width must be multiples of {factor}",
                    self.block_out_channels.len() - 1
                ),
            });
        }
        Ok(())
    }

    /// Height and width, if the configuration says them.
    pub fn height_width(&self) -> Option<(usize, usize)> {
        self.sample_size.map(|s| match s {
            SampleSize::Side(n) => (n, n),
            SampleSize::HeightWidth([h, w]) => (h, w),
        })
    }

    /// Groups of a group norm over `channels` channels, where a block has no rule of its own.
    pub fn groups(&self, channels: usize) -> usize {
        self.norm_num_groups.unwrap_or((channels / 4).min(32))
    }

    /// Channels of x_t: those of the input without a condition's.
    pub fn image_channels(&self) -> usize {
        self.in_channels - self.condition_channels
    }

    /// Width of the sinusoids of t.
    pub fn sinusoid_width(&self) -> usize {
        self.sinusoid_width.unwrap_or(self.block_out_channels[0])
    }

    /// Width E of the time embedding.
    pub fn embedding_width(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    /// Classes a user can ask for: the rows of the class embedding without the null class.
    pub fn classes(&self) -> Option<usize> {
        let rows = self.num_class_embeds.filter(|_| self.class_embed_type.is_none())?;
        Some(rows - usize::from(self.null_class.is_some()))
    }
}

fn unsupported(key: &str, value: &Value, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { key: key.into(), value: value.to_string(), supported }
}

/// Keys that nobody knows, with their values: what they ask for would be left undone without a word.
fn unknown_keys(map: &Map<String, Value>, known: &Value) -> Vec<String> {
    let harmless = |key: &str| key.starts_with('_');
    let unset = |value: &Value| value.is_null() || *value == Value::Bool(false);
    let unknown = map.iter().filter(|(key, value)| known.get(key).is_none() && !harmless(key) && !unset(value));
    unknown.map(|(key, value)| format!("{key} = {value}")).collect()
}

fn check_class(map: &Map<String, Value>) -> Result<(), ConfigError> {
    match map.get("_class_name") {
        None => Ok(()),
        Some(Value::String(s)) if s == "UNet2DModel" || s == "UNetUnconditionalModel" => Ok(()),
        Some(other) => Err(unsupported("_class_name", other, "UNet2DModel")),
    }
}

/// Names of keys before diffusers 0.1 (July 2022), and what they became.
const OLD_KEYS: [(&str, &str); 8] = [
    ("image_size", "sample_size"),
    ("block_channels", "block_out_channels"),
    ("down_blocks", "down_block_types"),
    ("up_blocks", "up_block_types"),
    ("num_res_blocks", "layers_per_block"),
    ("resnet_eps", "norm_eps"),
    ("downscale_freq_shift", "freq_shift"),
    ("num_head_channels", "attention_head_dim"),
];

/// An old name beside its successor stays, and is unknown.
fn rename_old_keys(map: &mut Map<String, Value>) {
    for (old, new) in OLD_KEYS {
        if !map.contains_key(new)
            && let Some(value) = map.remove(old)
        {
            map.insert(new.into(), value);
        }
    }
}

/// Names of blocks carried the prefix `UNetRes` in the first released files.
fn strip_old_prefixes(map: &mut Map<String, Value>) {
    for key in ["down_block_types", "up_block_types"] {
        let names = map.get_mut(key).and_then(Value::as_array_mut);
        for name in names.into_iter().flatten() {
            if let Some(stripped) = name.as_str().and_then(|s| s.strip_prefix("UNetRes")) {
                *name = stripped.into();
            }
        }
    }
}

/// Refuses values that serde would refuse too, but with a message that lists what is accepted.
fn check_enums(map: &Map<String, Value>) -> Result<(), ConfigError> {
    for key in ["down_block_types", "up_block_types"] {
        for name in map.get(key).and_then(Value::as_array).into_iter().flatten() {
            let known = serde_json::from_value::<DownBlock>(name.clone()).is_ok() && key.starts_with("down")
                || serde_json::from_value::<UpBlock>(name.clone()).is_ok() && key.starts_with("up");
            if !known {
                return Err(unsupported(key, name, BLOCKS));
            }
        }
    }
    let choices: [(&str, &[&str], &'static str); 7] = [
        ("time_embedding_type", &["positional", "fourier", "learned"], "positional, fourier, learned"),
        ("resnet_time_scale_shift", &["default", "scale_shift"], "default, scale_shift"),
        ("downsample_type", &["conv", "resnet"], "conv, resnet"),
        ("upsample_type", &["conv", "resnet"], "conv, resnet"),
        ("class_embed_type", &["timestep", "identity"], "timestep, identity, null"),
        ("mid_block_type", &["UNetMidBlock2D"], "UNetMidBlock2D, null"),
        ("act_fn", &["silu", "swish", "mish", "gelu", "relu"], "silu, swish, mish, gelu, relu"),
    ];
    for (key, accepted, supported) in choices {
        if let Some(value) = map.get(key).filter(|v| !v.is_null())
            && !value.as_str().is_some_and(|s| accepted.contains(&lowered(key, s).as_str()))
        {
            return Err(unsupported(key, value, supported));
        }
    }
    Ok(())
}

/// The name of an activation function may be written in capitals.
fn lowered(key: &str, value: &str) -> String {
    if key == "act_fn" { value.to_lowercase() } else { value.into() }
}

fn any_case<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Activation, D::Error> {
    let name = String::deserialize(deserializer)?.to_lowercase();
    serde_json::from_value(Value::String(name)).map_err(serde::de::Error::custom)
}

/// Keys for which null means something other than the default.
fn nullable(key: &str) -> bool {
    matches!(key, "attention_head_dim" | "mid_block_type" | "norm_num_groups")
}
