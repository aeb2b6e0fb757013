//! Activation functions.

use serde::{Deserialize, Serialize};

/// An activation function, under the names that diffusers gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)` (1702.03118), also called swish.
    #[default]
    #[serde(alias = "swish")]
    Silu,
    /// `x * tanh(ln(1 + e^x))` (1908.08681).
    Mish,
    /// `x * Phi(x)` with the distribution function of the normal distribution (1606.08415), not its tanh approximation.
    Gelu,
    /// `max(x, 0)`; its slope at 0 is 0.
    Relu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Silu, Self::Mish, Self::Gelu, Self::Relu];

    /// The name of the function and of its kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Mish => "mish",
            Self::Gelu => "gelu",
            Self::Relu => "relu",
        }
    }

    /// The name of its gradient.
    pub fn gradient_name(self) -> &'static str {
        match self {
            Self::Silu => "silu_grad",
            Self::Mish => "mish_grad",
            Self::Gelu => "gelu_grad",
            Self::Relu => "relu_grad",
        }
    }
}
