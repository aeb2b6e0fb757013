//! What the network predicts, and how it maps to x_0 and eps.

use serde::{Deserialize, Serialize};

/// The quantity the network is trained to output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredictionType {
    /// The noise eps (2006.11239).
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean image x_0.
    #[serde(rename = "sample")]
    Sample,
    /// v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (2202.00512).
    #[serde(rename = "v_prediction")]
    VPrediction,
}

/// A linear combination `first * u + second * w` of two values; what u and w are is said where it is returned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear2 {
    /// Factor of the first value.
    pub first: f64,
    /// Factor of the second value.
    pub second: f64,
}

impl Linear2 {
    /// `first * u + second * w`.
    pub fn apply(&self, u: f64, w: f64) -> f64 {
        self.first * u + self.second * w
    }
}

impl PredictionType {
    /// x_0 as a combination of (x_t, model output).
    ///
    /// For [`Epsilon`](Self::Epsilon) both factors are infinite at `alpha_bar = 0`.
    pub fn x0_from_model(self, alpha_bar: f64) -> Linear2 {
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (first, second) = match self {
            Self::Epsilon => (1.0 / signal, -noise / signal),
            Self::Sample => (0.0, 1.0),
            Self::VPrediction => (signal, -noise),
        };
        Linear2 { first, second }
    }

    /// eps as a combination of (x_t, model output).
    ///
    /// For [`Sample`](Self::Sample) both factors are infinite at `alpha_bar = 1`.
    pub fn eps_from_model(self, alpha_bar: f64) -> Linear2 {
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (first, second) = match self {
            Self::Epsilon => (0.0, 1.0),
            Self::Sample => (1.0 / noise, -signal / noise),
            Self::VPrediction => (noise, signal),
        };
        Linear2 { first, second }
    }

    /// The training target as a combination of (x_0, eps).
    pub fn target(self, alpha_bar: f64) -> Linear2 {
        let (first, second) = match self {
            Self::Epsilon => (0.0, 1.0),
            Self::Sample => (1.0, 0.0),
            Self::VPrediction => (-(1.0 - alpha_bar).sqrt(), alpha_bar.sqrt()),
        };
        Linear2 { first, second }
    }

    /// This network's output in another parameterisation, as a combination of (x_t, model output).
    pub fn convert(self, to: PredictionType, alpha_bar: f64) -> Linear2 {
        if self == to {
            return Linear2 { first: 0.0, second: 1.0 };
        }
        match to {
            Self::Sample => self.x0_from_model(alpha_bar),
            Self::Epsilon => self.eps_from_model(alpha_bar),
            Self::VPrediction => {
                let target = to.target(alpha_bar);
                let (x0, eps) = (self.x0_from_model(alpha_bar), self.eps_from_model(alpha_bar));
                Linear2 { first: target.apply(x0.first, eps.first), second: target.apply(x0.second, eps.second) }
            }
        }
    }
}

/// eps implied by x_0: (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar), as a combination of (x_t, x_0).
pub fn eps_from_x0(alpha_bar: f64) -> Linear2 {
    PredictionType::Sample.eps_from_model(alpha_bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];

    #[test]
    fn a_perfect_prediction_recovers_x0_and_eps() {
        let (x0, eps) = (0.31, -1.7);
        for alpha_bar in [1e-6_f64, 0.2, 0.5, 0.97] {
            let x_t = alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * eps;
            for kind in ALL {
                let model = kind.target(alpha_bar).apply(x0, eps);
                assert!((kind.x0_from_model(alpha_bar).apply(x_t, model) - x0).abs() < 1e-9);
                assert!((kind.eps_from_model(alpha_bar).apply(x_t, model) - eps).abs() < 1e-9);
                for to in ALL {
                    let converted = kind.convert(to, alpha_bar).apply(x_t, model);
                    assert!((converted - to.target(alpha_bar).apply(x0, eps)).abs() < 1e-9);
                }
            }
            assert!((eps_from_x0(alpha_bar).apply(x_t, x0) - eps).abs() < 1e-9);
        }
    }

    #[test]
    fn names_are_those_of_the_config_file() {
        for (kind, name) in ALL.iter().zip(["\"epsilon\"", "\"sample\"", "\"v_prediction\""]) {
            assert_eq!(serde_json::to_string(kind).unwrap(), name);
            assert_eq!(serde_json::from_str::<PredictionType>(name).unwrap(), *kind);
        }
    }
}
