//! Training objectives: how much of the squared error and of the variational bound enters the loss of a timestep.

use serde::{Deserialize, Serialize};

use super::parameterization::PredictionType;
use super::schedule::Schedule;

/// What is minimised: `mse_weight` * MSE(prediction, target) + `vb_weight` * (bound of t in bits per dimension).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// L_simple, the squared error alone (2006.11239, eq. 14).
    #[default]
    Simple,
    /// L_hybrid: the squared error plus `lambda` times the bound, which trains the variance channels only: its gradient
    /// stops at the mean (2102.09672, section 3.1).
    Hybrid {
        /// Weight of the bound of one timestep.
        lambda: f64,
    },
    /// L_vlb: the bound alone, multiplied by T so that the mean over uniform t estimates the sum (2102.09672, eq. 4).
    Vlb,
}

impl Objective {
    /// L_hybrid with the published weight: 0.001 times the sum over t, that is lambda = T / 1000 for one timestep.
    pub fn hybrid(num_timesteps: usize) -> Self {
        Self::Hybrid { lambda: num_timesteps as f64 / 1000.0 }
    }

    /// Weight of the squared error.
    pub fn mse_weight(self) -> f64 {
        match self {
            Self::Simple | Self::Hybrid { .. } => 1.0,
            Self::Vlb => 0.0,
        }
    }

    /// Weight of the bound of one timestep, in bits per dimension.
    pub fn vb_weight(self, num_timesteps: usize) -> f64 {
        match self {
            Self::Simple => 0.0,
            Self::Hybrid { lambda } => lambda,
            Self::Vlb => num_timesteps as f64,
        }
    }

    /// Whether the bound's gradient reaches the network's prediction, beside its variance channels.
    pub fn vb_trains_mean(self) -> bool {
        self == Self::Vlb
    }
}

/// Weight of a timestep in the squared error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeighting {
    /// 1 for every timestep.
    #[default]
    None,
    /// min(SNR, gamma) on the error of x_0, expressed for what the network predicts (2303.09556, section 3.4).
    MinSnr {
        /// Upper limit of the weight; 5 in the paper.
        gamma: f64,
    },
}

impl LossWeighting {
    /// The weight at signal-to-noise ratio `snr`.
    pub fn weight(self, prediction_type: PredictionType, snr: f64) -> f64 {
        match (self, prediction_type) {
            (Self::None, _) => 1.0,
            (Self::MinSnr { gamma }, PredictionType::Sample) => snr.min(gamma),
            // min(snr, gamma) / snr, which is 1 at an SNR of 0.
            (Self::MinSnr { gamma }, PredictionType::Epsilon) => (gamma / snr).min(1.0),
            (Self::MinSnr { gamma }, PredictionType::VPrediction) => snr.min(gamma) / (snr + 1.0),
        }
    }

    /// The weight of every timestep.
    pub fn table(self, prediction_type: PredictionType, schedule: &Schedule) -> Vec<f64> {
        schedule
            .alpha_bars
            .iter()
            .map(|alpha_bar| self.weight(prediction_type, alpha_bar / (1.0 - alpha_bar)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    #[test]
    fn min_snr_weighs_the_same_x0_error_alike_in_every_parameterisation() {
        let schedule = Schedule::new(&BetaConfig::cosine(40)).unwrap();
        let weighting = LossWeighting::MinSnr { gamma: 5.0 };
        let table = |kind| weighting.table(kind, &schedule);
        let (x0, eps, v) =
            (table(PredictionType::Sample), table(PredictionType::Epsilon), table(PredictionType::VPrediction));
        for t in 0..40 {
            // At fixed x_t an x_0 error d means an eps error of -sqrt(snr) d and a v error of -d / sqrt(1 - alpha_bar).
            let snr = schedule.snr(t).unwrap();
            assert!((eps[t] * snr / x0[t] - 1.0).abs() < 1e-12, "t {t}");
            assert!((v[t] / (1.0 - schedule.alpha_bars[t]) / x0[t] - 1.0).abs() < 1e-9, "t {t}");
            assert!(x0[t] <= 5.0);
        }
        assert_eq!(weighting.weight(PredictionType::Epsilon, 0.0), 1.0);
        assert_eq!(LossWeighting::None.table(PredictionType::Epsilon, &schedule), vec![1.0; 40]);
    }

    #[test]
    fn objectives_mix_the_two_terms() {
        let parts =
            |objective: Objective| (objective.mse_weight(), objective.vb_weight(4000), objective.vb_trains_mean());
        assert_eq!(parts(Objective::Simple), (1.0, 0.0, false));
        assert_eq!(parts(Objective::hybrid(4000)), (1.0, 4.0, false));
        assert_eq!(parts(Objective::Vlb), (0.0, 4000.0, true));
    }
}
