//! RePaint (2201.09865): inpainting with a model that was not trained for it.
//!
//! After every denoising step the known part of the image is put back, noised to the level that the step ended at (eq. 8). What
//! the step made up does not know of it yet, so the chain goes back a few levels by adding noise, and down again, several times
//! (section 4.2): a walk over the levels in place of a descent.

use super::config::{Compat, SamplerKind, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::parameterization::Linear2;
use super::schedule::Schedule;
use super::step_table::StepTable;
use super::timesteps::ddpm_timesteps;

/// How often the chain goes back, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// Levels that the chain goes back at once, j of the paper.
    pub jump_length: usize,
    /// How often it passes every level, r of the paper; 1 never goes back.
    pub times: usize,
}

impl Default for Resampling {
    /// The paper's setting.
    fn default() -> Self {
        Self { jump_length: 10, times: 10 }
    }
}

/// One move of the walk.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// The next row of the table, and then x = mask (known.first x_known + known.second z) + (1 - mask) x.
    Denoise {
        /// The timestep at which the network looks.
        timestep: usize,
        /// Factors of the image and of the noise in the known part.
        known: Linear2,
    },
    /// x = first x + second z, for each of the pairs with a new z.
    Renoise {
        /// What the walk calls this place: the timestep above the one whose level x has afterwards, where the next step looks.
        timestep: usize,
        /// Factors of x and of the noise.
        draws: Vec<Linear2>,
    },
}

/// A walk as data: which moves, and the rows of those that ask the network, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Repaint {
    /// DDIM steps; a level that is passed several times has as many rows, so that each has noise of its own.
    pub table: StepTable,
    /// The moves from noise to image.
    pub moves: Vec<Move>,
}

impl Repaint {
    /// The walk over `num_inference_steps` levels of `config`, whatever sampler it names.
    ///
    /// Going back from the level that the last step ended at is one draw of q(x_t given x_s). With [`Compat::Diffusers`] it is a draw
    /// for each training timestep between, with the betas of the timesteps from the last step's own on, as diffusers has it.
    ///
    /// # Errors
    /// As [`StepTable::ddim`]; a jump length or a number of resamplings of 0.
    pub fn new(config: &SchedulerConfig, num_inference_steps: usize, eta: f64, resampling: Resampling) -> Result<Self> {
        if resampling.jump_length == 0 || resampling.times == 0 {
            return Err(DiffusionError::EmptyWalk);
        }
        let config = config.with_sampler(SamplerKind::Ddim);
        let mut table = StepTable::ddim(&config, num_inference_steps, eta, false)?;
        let schedule = Schedule::new(&config.betas)?;
        let timesteps =
            ddpm_timesteps(config.spacing(), schedule.num_timesteps(), num_inference_steps, config.steps_offset)?;
        let stride = schedule.num_timesteps() / num_inference_steps;
        let clean = if config.set_alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        // Position 0 is the cleanest level, as the jumps count.
        let timestep = |position: usize| timesteps[num_inference_steps - 1 - position];
        let below = |position: usize| match (config.compat, position) {
            (Compat::Diffusers, _) => timestep(position).checked_sub(stride).map_or(clean, |s| schedule.alpha_bars[s]),
            (Compat::Paper | Compat::GuidedDiffusion, 0) => clean,
            (Compat::Paper | Compat::GuidedDiffusion, _) => schedule.alpha_bars[timestep(position - 1)],
        };
        let rows = std::mem::take(&mut table.rows);
        let mut moves = Vec::new();
        let mut last = num_inference_steps;
        for position in positions(num_inference_steps, resampling) {
            if position < last {
                let alpha_bar = below(position);
                table.rows.push(rows[num_inference_steps - 1 - position]);
                let known = Linear2 { first: alpha_bar.sqrt(), second: (1.0 - alpha_bar).sqrt() };
                moves.push(Move::Denoise { timestep: timestep(position), known });
            } else {
                let draws = match config.compat {
                    Compat::Paper | Compat::GuidedDiffusion => {
                        vec![mix(schedule.alpha_bars[timestep(last)] / below(last))]
                    }
                    Compat::Diffusers => {
                        let from = timestep(last);
                        schedule.betas[from..from + stride].iter().map(|beta| mix(1.0 - beta)).collect()
                    }
                };
                moves.push(Move::Renoise { timestep: timestep(position), draws });
            }
            last = position;
        }
        Ok(Self { table, moves })
    }
}

/// Keeps a share of the signal's variance and fills up with noise.
fn mix(share: f64) -> Linear2 {
    Linear2 { first: share.sqrt(), second: (1.0 - share).sqrt() }
}

/// The positions that the walk visits, of `steps` levels, 0 the cleanest.
fn positions(steps: usize, resampling: Resampling) -> Vec<usize> {
    let mut left = vec![0; steps];
    (0..steps.saturating_sub(resampling.jump_length))
        .step_by(resampling.jump_length)
        .for_each(|at| left[at] = resampling.times - 1);
    let mut visited = Vec::new();
    let mut at = steps;
    while at > 0 {
        at -= 1;
        visited.push(at);
        if left[at] > 0 {
            left[at] -= 1;
            visited.extend(at + 1..=at + resampling.jump_length);
            at += resampling.jump_length;
        }
    }
    visited
}

/// Puts the known part back: x = mask (known.first image + known.second z) + (1 - mask) x, element by element.
///
/// # Panics
/// Slices of different lengths.
pub fn put_back(x: &mut [f32], known: Linear2, image: &[f32], mask: &[f32], z: &[f32]) {
    assert!(
        image.len() == x.len() && mask.len() == x.len() && z.len() == x.len(),
        "x, image, mask and z differ in length"
    );
    for (i, x) in x.iter_mut().enumerate() {
        let m = f64::from(mask[i]);
        *x = (m * known.apply(f64::from(image[i]), f64::from(z[i])) + (1.0 - m) * f64::from(*x)) as f32;
    }
}

/// x = by.first x + by.second z, element by element.
///
/// # Panics
/// Slices of different lengths.
pub fn renoise(x: &mut [f32], by: Linear2, z: &[f32]) {
    assert_eq!(x.len(), z.len(), "x and z differ in length");
    x.iter_mut().zip(z).for_each(|(x, &z)| *x = by.apply(f64::from(*x), f64::from(z)) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    fn config() -> SchedulerConfig {
        SchedulerConfig { betas: BetaConfig::linear(40), ..SchedulerConfig::new(SamplerKind::Ddim) }
    }

    fn visited(repaint: &Repaint) -> Vec<usize> {
        let timestep = |m: &Move| match m {
            Move::Denoise { timestep, .. } | Move::Renoise { timestep, .. } => *timestep,
        };
        repaint.moves.iter().map(timestep).collect()
    }

    #[test]
    fn without_resampling_the_walk_is_ddim() {
        let repaint = Repaint::new(&config(), 10, 0.5, Resampling { jump_length: 3, times: 1 }).unwrap();
        assert_eq!(repaint.table, StepTable::ddim(&config(), 10, 0.5, false).unwrap());
        assert_eq!(visited(&repaint), [36, 32, 28, 24, 20, 16, 12, 8, 4, 0]);
        let Some(Move::Denoise { known, .. }) = repaint.moves.last() else { panic!("no step") };
        assert_eq!((known.first, known.second), (1.0, 0.0));
    }

    #[test]
    fn every_move_keeps_x_on_the_level_that_the_next_one_expects() {
        let schedule = Schedule::new(&config().betas).unwrap();
        for resampling in [Resampling { jump_length: 2, times: 3 }, Resampling { jump_length: 4, times: 2 }] {
            let repaint = Repaint::new(&config(), 10, 0.0, resampling).unwrap();
            let mut level: f64 = schedule.alpha_bars[36];
            let mut rows = repaint.table.rows.iter();
            for m in &repaint.moves {
                match m {
                    Move::Denoise { timestep, known } => {
                        assert_eq!(rows.next().unwrap().timestep, *timestep as f32);
                        assert!((level - schedule.alpha_bars[*timestep]).abs() < 1e-12, "step at {timestep}");
                        level = known.first * known.first;
                        assert!((level + known.second * known.second - 1.0).abs() < 1e-12);
                    }
                    Move::Renoise { timestep, draws } => {
                        assert_eq!(draws.len(), 1);
                        level *= draws[0].first * draws[0].first;
                        assert!((level - schedule.alpha_bars[timestep - 4]).abs() < 1e-12, "back to {timestep}");
                    }
                }
            }
            assert!(rows.next().is_none());
            assert_eq!(level, 1.0);
        }
    }

    #[test]
    fn every_level_but_the_noisiest_is_passed_as_often_as_asked() {
        let resampling = Resampling { jump_length: 3, times: 4 };
        let repaint = Repaint::new(&config(), 10, 0.0, resampling).unwrap();
        let steps = |at: usize| repaint.table.rows.iter().filter(|r| r.timestep == (4 * at) as f32).count();
        // Jumps start from 0, 3 and 6, of the positions 0..10: the last lead to 9.
        assert_eq!((0..10).map(steps).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 4, 4, 4, 4, 1]);
    }

    #[test]
    fn putting_back_follows_the_formula() {
        let mut x = [0.5, 0.5, 0.5];
        let known = Linear2 { first: 0.8, second: 0.6 };
        put_back(&mut x, known, &[1.0, 1.0, -1.0], &[1.0, 0.0, 0.25], &[0.5, 9.0, 1.0]);
        assert_eq!(x, [1.1, 0.5, 0.325]);
        let mut x = [1.0, -2.0];
        renoise(&mut x, known, &[0.5, 1.0]);
        assert_eq!(x, [1.1, -1.0]);
        assert!(Repaint::new(&config(), 10, 0.0, Resampling { jump_length: 0, times: 2 }).is_err());
    }
}
