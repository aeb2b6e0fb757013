//! The blocks that encoders and decoders are made of, under diffusers' names.

use serde::{Deserialize, Serialize};

/// A block of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks and a strided convolution.
    #[serde(rename = "DownBlock2D")]
    Plain,
    /// The same with attention after each residual block.
    #[serde(rename = "AttnDownBlock2D")]
    Attention,
    /// Residual blocks and a residual block that pools.
    #[serde(rename = "ResnetDownsampleBlock2D")]
    Resnet,
    /// Residual blocks whose last filters and halves, and a filtered copy of the image that is added at each level (NCSN++).
    #[serde(rename = "SkipDownBlock2D")]
    Skip,
    /// The same with attention after each residual block.
    #[serde(rename = "AttnSkipDownBlock2D")]
    AttentionSkip,
    /// Residual blocks whose norms have no parameters but the time embedding, then a filter.
    #[serde(rename = "KDownBlock2D")]
    K,
}

/// A block of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks, then nearest-neighbour upsampling and a convolution.
    #[serde(rename = "UpBlock2D")]
    Plain,
    /// The same with attention after each residual block.
    #[serde(rename = "AttnUpBlock2D")]
    Attention,
    /// Residual blocks and a residual block that upsamples.
    #[serde(rename = "ResnetUpsampleBlock2D")]
    Resnet,
    /// Residual blocks whose last filters and doubles, beside an image to which each level adds (NCSN++).
    #[serde(rename = "SkipUpBlock2D")]
    Skip,
    /// The same with one attention after the residual blocks.
    #[serde(rename = "AttnSkipUpBlock2D")]
    AttentionSkip,
    /// Residual blocks whose norms have no parameters but the time embedding, then a filter.
    #[serde(rename = "KUpBlock2D")]
    K,
}

impl DownBlock {
    /// Whether it carries a copy of the image beside the network.
    pub fn is_skip(self) -> bool {
        matches!(self, Self::Skip | Self::AttentionSkip)
    }

    /// Whether `norm_num_groups` says the groups of its norms.
    pub fn takes_groups(self) -> bool {
        matches!(self, Self::Plain | Self::Attention | Self::Resnet)
    }
}

impl UpBlock {
    /// Whether it adds to an image beside the network.
    pub fn is_skip(self) -> bool {
        matches!(self, Self::Skip | Self::AttentionSkip)
    }

    /// Whether `norm_num_groups` says the groups of its norms.
    pub fn takes_groups(self) -> bool {
        matches!(self, Self::Plain | Self::Attention | Self::Resnet)
    }
}
