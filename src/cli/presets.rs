//! `--preset`.

use clap::ValueEnum;

use crate::unet::{UNetConfig, presets};

/// A network known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// The 35.7 M-parameter network of DDPM for 32x32 images.
    #[value(name = "ddpm-cifar10-32")]
    DdpmCifar10,
    /// The 113.7 M-parameter network of DDPM for 256x256 images.
    #[value(name = "ddpm-256")]
    Ddpm256,
    /// 0.7 M parameters for 8x8 images: trains in minutes on two cores.
    DigitsSmall,
    /// A few million parameters for images of 16 to 64 pixels: a first model on a CPU.
    #[value(name = "small-32")]
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
            Preset::DdpmCifar10 => presets::ddpm_cifar10_32(),
            Preset::Ddpm256 => presets::ddpm_256(),
            Preset::DigitsSmall => presets::digits_small(),
            Preset::Small32 => presets::small_32(),
        }
    }
}
