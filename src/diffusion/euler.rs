//! Step tables of Euler, Euler ancestral and Heun on the probability-flow ODE in sigma (2206.00364).
//!
//! These are published in the variance-exploding scale, X = x / alpha with noise of standard deviation sigma / alpha. Here
//! the state stays x, so that the network reads it as it is; the factors between the scales are folded into the rows.

use super::config::{Churn, Compat, SamplerKind, SchedulerConfig};
use super::error::{DiffusionError, Result};
use super::levels::{NoiseLevel, sigma_visits, time_at};
use super::parameterization::PredictionType;
use super::step_table::{Keep, StepRow, StepTable};
use super::timesteps::TimestepSpacing;

impl StepTable {
    /// Euler over the noise levels of `config`, whatever sampler it names; with the config's churn, noise is added along the
    /// way. x_0 is not limited.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn euler(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::Euler);
        let visits = sigma_visits(&config, num_inference_steps)?;
        let levels = &visits.levels;
        let steps = visits.times.len();
        // Where each step starts once noise was added.
        let raised: Vec<NoiseLevel> = match config.churn {
            Some(churn) => levels[..steps].iter().map(|level| churned(&churn, level, steps)).collect::<Result<_>>()?,
            None => levels[..steps].to_vec(),
        };
        let reference = matches!(config.compat, Compat::Diffusers);
        let mut rows = Vec::with_capacity(steps);
        for (i, &t) in visits.times.iter().enumerate() {
            let (level, hat, end) = (&levels[i], &raised[i], &levels[i + 1]);
            let row = if config.churn.is_some() && reference {
                churned_after(&config, level, hat, end)
            } else {
                // The noise of the next step is added at the end of this one, so that the network sees it.
                let next = raised.get(i + 1).unwrap_or(end);
                let noise = config.churn.map_or(0.0, |churn| churn.s_noise) * added(end, next);
                let step = euler_row(hat, end, next.alpha);
                StepRow { s: next.alpha * noise, noise: noise > 0.0, ..step }
            };
            let read = if reference { level } else { hat };
            let x0 = read.x0(config.prediction_type);
            let time = if hat == level || reference { t } else { raised_time(&config, hat)? };
            rows.push(StepRow { timestep: time as f32, c_x0x: x0.first, c_x0m: x0.second, ..row });
        }
        let start = if reference { &levels[0] } else { &raised[0] };
        // Noise that is added to the first level joins that of the start.
        let first = added(&levels[0], start) * config.churn.map_or(0.0, |churn| churn.s_noise);
        let sigma = published_start(&config, &levels[0]).hypot(first);
        let after = |i: usize| if reference { &levels[i + 1] } else { raised.get(i + 1).unwrap_or(&levels[i + 1]) };
        Ok(Self {
            published_scale: (0..steps).map(|i| 1.0 / after(i).alpha).collect(),
            rows,
            init_noise_sigma: sigma * start.alpha,
            ..Self::default()
        })
    }

    /// Euler ancestral over the noise levels of `config`, whatever sampler it names. x_0 is not limited.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn euler_ancestral(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::EulerAncestral);
        let visits = sigma_visits(&config, num_inference_steps)?;
        let rows = visits.times.iter().zip(visits.levels.windows(2)).map(|(&t, pair)| {
            let [now, end] = pair else { return StepRow::default() };
            let (from, to) = (now.ratio(), end.ratio());
            let up = (to * to * (from * from - to * to)).max(0.0).sqrt() / from;
            let down = (to * to - up * up).max(0.0).sqrt();
            let x0 = now.x0(config.prediction_type);
            StepRow {
                timestep: t as f32,
                c_x0x: x0.first,
                c_x0m: x0.second,
                a: end.alpha / now.alpha * (down / from),
                b: end.alpha * (1.0 - down / from),
                s: end.alpha * up,
                noise: up > 0.0,
                ..StepRow::default()
            }
        });
        Ok(Self { rows: rows.collect(), ..sigma_table(&config, &visits.levels) })
    }

    /// Heun over the noise levels of `config`, whatever sampler it names: 2 N - 1 rows, each evaluation but the first twice at
    /// a level. The clamp limits x_0 where the config says so.
    ///
    /// # Errors
    /// As [`StepTable::build`].
    pub fn heun(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Self> {
        let config = config.with_sampler(SamplerKind::Heun);
        let visits = sigma_visits(&config, num_inference_steps)?;
        let levels = &visits.levels;
        let (mut rows, mut ends) = (Vec::new(), Vec::new());
        for (i, &t) in visits.times.iter().enumerate() {
            let (now, end) = (&levels[i], &levels[i + 1]);
            let x0 = now.x0(config.prediction_type);
            let predictor =
                StepRow { timestep: t as f32, c_x0x: x0.first, c_x0m: x0.second, ..euler_row(now, end, end.alpha) };
            let Some(&t_end) = visits.times.get(i + 1) else {
                // The last step ends clean, where there is no derivative.
                rows.push(predictor);
                ends.push(*end);
                continue;
            };
            // Half of this derivative's step is kept for the corrector: X + dX/dsigma dsigma / 2.
            let half = 0.5 * (end.ratio() - now.ratio()) / now.ratio();
            let keep = Keep { x: end.alpha / now.alpha * (1.0 + half), x0: -end.alpha * half, ..Keep::default() };
            rows.push(StepRow { keep, ..predictor });
            let x0 = end.x0(config.prediction_type);
            let half = 0.5 * (end.ratio() - now.ratio()) / end.ratio();
            rows.push(StepRow {
                timestep: t_end as f32,
                c_x0x: x0.first,
                c_x0m: x0.second,
                a: half,
                b: -end.alpha * half,
                r: 1.0,
                ..StepRow::default()
            });
            ends.extend([*end, *end]);
        }
        let ends: Vec<NoiseLevel> = std::iter::once(levels[0]).chain(ends).collect();
        Ok(Self { rows, clip: config.clip(), ..sigma_table(&config, &ends) })
    }
}

/// The Euler step from `now` to `end`, its result scaled by `alpha`: X + (X - x_0) / sigma (sigma' - sigma).
fn euler_row(now: &NoiseLevel, end: &NoiseLevel, alpha: f64) -> StepRow {
    let share = end.ratio() / now.ratio();
    StepRow { a: alpha / now.alpha * share, b: alpha * (1.0 - share), ..StepRow::default() }
}

/// A table without rows that starts at the first of `levels`, row i ending at level i + 1.
fn sigma_table(config: &SchedulerConfig, levels: &[NoiseLevel]) -> StepTable {
    StepTable {
        init_noise_sigma: published_start(config, &levels[0]) * levels[0].alpha,
        published_scale: levels[1..].iter().map(|level| 1.0 / level.alpha).collect(),
        ..StepTable::default()
    }
}

/// Standard deviation of the published X at the start: sigma, or with that of data of variance 1 for leading spacing.
fn published_start(config: &SchedulerConfig, first: &NoiseLevel) -> f64 {
    match config.spacing() {
        TimestepSpacing::Leading => 1.0 / first.alpha,
        _ => first.ratio(),
    }
}

/// The level that noise is added up to before a step (2206.00364, algorithm 2, line 5).
fn churned(churn: &Churn, level: &NoiseLevel, steps: usize) -> Result<NoiseLevel> {
    let valid = churn.s_churn >= 0.0 && churn.s_noise >= 0.0 && churn.s_tmin <= churn.s_tmax;
    if !valid || !churn.s_churn.is_finite() || !churn.s_noise.is_finite() {
        return Err(DiffusionError::Options(
            "churn: s_churn and s_noise must be finite and not negative, and s_tmin not above s_tmax".to_owned(),
        ));
    }
    let sigma = level.ratio();
    if !(churn.s_tmin..=churn.s_tmax).contains(&sigma) || churn.s_churn == 0.0 {
        return Ok(*level);
    }
    let gamma = (churn.s_churn / steps as f64).min(std::f64::consts::SQRT_2 - 1.0);
    Ok(NoiseLevel::of_ratio(sigma * (1.0 + gamma)))
}

/// Standard deviation of the noise between two levels, in the published scale.
fn added(from: &NoiseLevel, to: &NoiseLevel) -> f64 {
    if from == to { 0.0 } else { (to.ratio().powi(2) - from.ratio().powi(2)).max(0.0).sqrt() }
}

/// The network's time at a level that noise was added to.
fn raised_time(config: &SchedulerConfig, hat: &NoiseLevel) -> Result<f64> {
    if config.sigmas.continuous && config.prediction_type == PredictionType::VPrediction {
        return Ok(0.25 * hat.ratio().ln());
    }
    time_at(config, hat.ratio())
}

/// diffusers' step with churn: the noise comes after the network has looked, and a v prediction is read at the level
/// before it.
fn churned_after(config: &SchedulerConfig, level: &NoiseLevel, hat: &NoiseLevel, end: &NoiseLevel) -> StepRow {
    let (sigma, raised) = (level.ratio(), hat.ratio());
    let noise = config.churn.map_or(0.0, |churn| churn.s_noise) * added(level, hat);
    let share = end.ratio() / raised;
    // In the published scale x_0 = from_x X^ + from_m model with X^ = X + noise z, and X' = share X^ + (1 - share) x_0.
    let (from_x, from_m) = match config.prediction_type {
        PredictionType::Epsilon => (1.0, -raised),
        PredictionType::Sample => (0.0, 1.0),
        PredictionType::VPrediction => (level.alpha * level.alpha, -sigma * level.alpha),
    };
    let of_x = share + (1.0 - share) * from_x;
    StepRow {
        a: end.alpha / level.alpha * of_x,
        e: end.alpha * (1.0 - share) * from_m,
        s: end.alpha * of_x * noise,
        noise: noise > 0.0,
        ..StepRow::default()
    }
}
