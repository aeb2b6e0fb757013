//! Which training timesteps a sampler visits, in descending order.
//!
//! The three spacings are those of table 2 of 2305.08891. Every rounding (half to even) and every quirk follows the
//! files that released models come with, since a timestep off by one is a different image.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::betas::linspace;
use super::error::{DiffusionError, Result};
use super::schedule::half_log_snr;

/// How the visited timesteps are spread, spelled as in `scheduler_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Multiples of floor(T / N) plus `steps_offset`; leaves out the noisiest timesteps.
    Leading,
    /// Evenly spaced and rounded, both ends included; ignores `steps_offset`.
    Linspace,
    /// Counted down from T in steps of T / N; ignores `steps_offset`.
    Trailing,
}

impl fmt::Display for TimestepSpacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
        })
    }
}

/// Timesteps of DDPM and DDIM: `steps` entries.
///
/// # Errors
/// `steps` is 0 or above `num_train_timesteps`, or `steps_offset` leads past the last training timestep.
pub fn ddpm_timesteps(
    spacing: TimestepSpacing,
    num_train_timesteps: usize,
    steps: usize,
    steps_offset: usize,
) -> Result<Vec<usize>> {
    let candidates = match spacing {
        _ if steps == 0 => return Err(DiffusionError::NoSteps),
        _ if steps > num_train_timesteps => {
            return Err(DiffusionError::TooManySteps {
                steps,
                spacing,
                available: num_train_timesteps,
                max: num_train_timesteps,
            });
        }
        TimestepSpacing::Leading => leading(num_train_timesteps / steps, 0..steps, steps_offset),
        TimestepSpacing::Linspace => rounded_linspace(num_train_timesteps, steps),
        TimestepSpacing::Trailing => trailing(num_train_timesteps, num_train_timesteps, steps),
    };
    within_schedule(candidates, num_train_timesteps, steps_offset)
}

/// Timesteps of DPM-Solver++ multistep. Timesteps whose half log-SNR lies below `lambda_min_clipped` are left out
/// first (needed with the cosine schedule, 2211.01095 appendix); -inf keeps all of them.
///
/// With [`Trailing`](TimestepSpacing::Trailing) and a finite `lambda_min_clipped` the list can be shorter than `steps`.
///
/// # Errors
/// `steps` is 0, so large that a timestep would be visited twice, or `steps_offset` leads past the last timestep.
pub fn dpm_solver_timesteps(
    spacing: TimestepSpacing,
    alpha_bars: &[f64],
    steps: usize,
    steps_offset: usize,
    lambda_min_clipped: f64,
) -> Result<Vec<usize>> {
    let num_train_timesteps = alpha_bars.len();
    let usable = alpha_bars.iter().filter(|&&alpha_bar| half_log_snr(alpha_bar) >= lambda_min_clipped).count();
    let max = match spacing {
        _ if usable == 0 => 0,
        // The stride is T / N whatever is left out, so it never falls below 1.
        TimestepSpacing::Trailing => num_train_timesteps,
        // These place one timestep more than they visit: t = 0 is left out.
        TimestepSpacing::Leading | TimestepSpacing::Linspace => usable - 1,
    };
    let candidates = match spacing {
        _ if steps == 0 => return Err(DiffusionError::NoSteps),
        _ if steps > max => {
            return Err(DiffusionError::TooManySteps { steps, spacing, available: usable, max });
        }
        TimestepSpacing::Leading => leading(usable / (steps + 1), 1..steps + 1, steps_offset),
        TimestepSpacing::Linspace => {
            let mut candidates = rounded_linspace(usable, steps + 1);
            candidates.pop();
            candidates
        }
        TimestepSpacing::Trailing => trailing(usable, num_train_timesteps, steps),
    };
    within_schedule(candidates, num_train_timesteps, steps_offset)
}

fn leading(stride: usize, multiples: std::ops::Range<usize>, steps_offset: usize) -> Vec<usize> {
    multiples.rev().map(|k| (k * stride).saturating_add(steps_offset)).collect()
}

fn rounded_linspace(num_timesteps: usize, count: usize) -> Vec<usize> {
    linspace(0.0, num_timesteps as f64 - 1.0, count).into_iter().rev().map(|t| t.round_ties_even() as usize).collect()
}

/// `last`, `last` - T/N, ... while above 0, rounded, minus 1.
fn trailing(last: usize, num_train_timesteps: usize, steps: usize) -> Vec<usize> {
    let last = last as f64;
    let stride = num_train_timesteps as f64 / steps as f64;
    // The values come from repeated rounding of (last - stride) - last, as float ranges are usually built.
    let delta = (last - stride) - last;
    let count = (last / stride).ceil() as usize;
    (0..count)
        .map(|i| (last + i as f64 * delta).round_ties_even())
        // Rounding of T / N can add an entry at 0, that is timestep -1 (T = 1000, N = 61): it does not exist.
        .take_while(|&t| t >= 1.0)
        .map(|t| t as usize - 1)
        .collect()
}

fn within_schedule(timesteps: Vec<usize>, num_train_timesteps: usize, offset: usize) -> Result<Vec<usize>> {
    match timesteps.first() {
        Some(&timestep) if timestep >= num_train_timesteps => {
            Err(DiffusionError::OffsetPastEnd { offset, timestep, last: num_train_timesteps - 1 })
        }
        _ => Ok(timesteps),
    }
}

#[cfg(test)]
mod tests {
    use super::TimestepSpacing::{Leading, Linspace, Trailing};
    use super::*;
    use crate::diffusion::{BetaConfig, Schedule};

    #[test]
    fn every_feasible_request_descends_strictly_inside_the_schedule() {
        let alpha_bars = Schedule::new(&BetaConfig::cosine(67)).unwrap().alpha_bars;
        for spacing in [Leading, Linspace, Trailing] {
            for steps in 1..=67 {
                let list = ddpm_timesteps(spacing, 67, steps, 0).unwrap();
                assert_eq!(list.len(), steps, "{spacing} {steps}");
                assert!(list.windows(2).all(|w| w[0] > w[1]) && list[0] < 67, "{spacing} {steps}: {list:?}");
                for lambda in [f64::NEG_INFINITY, -2.0] {
                    if let Ok(list) = dpm_solver_timesteps(spacing, &alpha_bars, steps, 0, lambda) {
                        assert!(list.windows(2).all(|w| w[0] > w[1]), "{spacing} {steps}: {list:?}");
                        assert!(list.iter().all(|&t| half_log_snr(alpha_bars[t]) >= lambda));
                    }
                }
            }
        }
    }

    #[test]
    fn a_spurious_trailing_entry_is_dropped() {
        // Counting down 1000 / 61 in floats leaves a 62nd value of about 1e-13.
        let list = ddpm_timesteps(Trailing, 1000, 61, 0).unwrap();
        assert_eq!((list.len(), list[0], list[60]), (61, 999, 15));
    }

    #[test]
    fn impossible_requests_are_refused() {
        assert!(matches!(ddpm_timesteps(Leading, 10, 0, 0), Err(DiffusionError::NoSteps)));
        assert!(matches!(ddpm_timesteps(Linspace, 10, 11, 0), Err(DiffusionError::TooManySteps { max: 10, .. })));
        assert!(matches!(
            ddpm_timesteps(Leading, 10, 5, 2),
            Err(DiffusionError::OffsetPastEnd { timestep: 10, last: 9, .. })
        ));
        assert!(ddpm_timesteps(Leading, 10, 5, usize::MAX).is_err());
        // Offsets are not used by the other two spacings.
        assert_eq!(ddpm_timesteps(Trailing, 10, 5, 9).unwrap(), [9, 7, 5, 3, 1]);
        let alpha_bars = Schedule::new(&BetaConfig::linear(10)).unwrap().alpha_bars;
        let dpm = |steps, lambda| dpm_solver_timesteps(Linspace, &alpha_bars, steps, 0, lambda);
        assert_eq!(dpm(9, f64::NEG_INFINITY).unwrap(), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(matches!(dpm(10, f64::NEG_INFINITY), Err(DiffusionError::TooManySteps { max: 9, .. })));
        // The limit itself is kept.
        assert_eq!(dpm(6, half_log_snr(alpha_bars[6])).unwrap(), [6, 5, 4, 3, 2, 1]);
        assert!(matches!(dpm(1, 50.0), Err(DiffusionError::TooManySteps { max: 0, .. })));
        assert!(matches!(dpm(0, 0.0), Err(DiffusionError::NoSteps)));
    }
}
