//! Respaced chains as the guided-diffusion and improved-diffusion code bases sample them: a subset of the timesteps
//! becomes a schedule of its own, with the betas rebuilt from the alpha_bars that are kept.

use super::error::{DiffusionError, Result};
use super::schedule::Schedule;

/// A shortened schedule and, for each of its timesteps, the original one that the network is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Respaced {
    /// Tables over the kept timesteps.
    pub schedule: Schedule,
    /// Original timestep of each kept one, ascending.
    pub timestep_map: Vec<usize>,
    /// T of the original schedule.
    pub num_train_timesteps: usize,
}

impl Respaced {
    /// Respaces `base` by a section string (see [`space_timesteps`]).
    ///
    /// # Errors
    /// The string is malformed or asks for more timesteps than there are.
    pub fn new(base: &Schedule, spec: &str) -> Result<Self> {
        let timestep_map = space_timesteps(base.num_timesteps(), spec)?;
        let mut previous = 1.0;
        let betas = timestep_map
            .iter()
            .map(|&t| {
                let beta = 1.0 - base.alpha_bars[t] / previous;
                previous = base.alpha_bars[t];
                beta
            })
            .collect();
        Ok(Self { schedule: Schedule::from_betas(betas), timestep_map, num_train_timesteps: base.num_timesteps() })
    }

    /// What the network receives at index `i` of the respaced chain: the original timestep, scaled by 1000 / T if the
    /// model was trained with `rescale_timesteps`.
    ///
    /// # Panics
    /// `i` outside the respaced chain.
    pub fn network_timestep(&self, i: usize, rescale_timesteps: bool) -> f64 {
        let t = self.timestep_map[i] as f64;
        if rescale_timesteps { t * (1000.0 / self.num_train_timesteps as f64) } else { t }
    }
}

/// The timesteps, ascending, that a section string keeps of `num_timesteps`.
///
/// `"a,b,c"` cuts the schedule into three equal sections and keeps a, b and c evenly spaced timesteps of them, both
/// ends included. `"ddimN"` keeps every i-th timestep for the smallest i that leaves exactly N. The empty string keeps
/// all.
///
/// # Errors
/// [`DiffusionError::Respacing`] says what does not fit.
pub fn space_timesteps(num_timesteps: usize, spec: &str) -> Result<Vec<usize>> {
    let refuse = |reason: String| DiffusionError::Respacing { spec: spec.to_owned(), num_timesteps, reason };
    let count_of = |text: &str| {
        text.trim()
            .parse::<usize>()
            .map_err(|_| refuse(format!("`{text}` is not a step count; write e.g. `250`, `10,10,5` or `ddim50`")))
    };
    if num_timesteps == 0 {
        return Err(DiffusionError::NoTrainTimesteps);
    }
    if spec.is_empty() {
        return Ok((0..num_timesteps).collect());
    }
    if let Some(count) = spec.strip_prefix("ddim") {
        let count = count_of(count)?;
        let stride = (1..num_timesteps)
            .find(|&stride| num_timesteps.div_ceil(stride) == count)
            .ok_or_else(|| refuse(format!("no integer stride leaves exactly {count} timesteps")))?;
        return Ok((0..num_timesteps).step_by(stride).collect());
    }

    let counts = spec.split(',').map(count_of).collect::<Result<Vec<_>>>()?;
    let (base_size, longer) = (num_timesteps / counts.len(), num_timesteps % counts.len());
    let mut kept = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = base_size + usize::from(section < longer);
        if count > size {
            return Err(refuse(format!("section {section} has {size} timesteps, too few for {count}")));
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
        // Accumulated, not multiplied: where a sum lands on .5 its rounding error decides the timestep.
        let mut position = 0.0_f64;
        for _ in 0..count {
            kept.push(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    if kept.is_empty() {
        return Err(refuse("no timesteps are left".to_owned()));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaConfig;

    #[test]
    fn sections_and_strides() {
        assert_eq!(space_timesteps(12, "3,2").unwrap(), [0, 2, 5, 6, 11]);
        assert_eq!(space_timesteps(11, "2,1").unwrap(), [0, 5, 6]);
        assert_eq!(space_timesteps(10, "ddim4").unwrap(), [0, 3, 6, 9]);
        assert_eq!(space_timesteps(3, "").unwrap(), [0, 1, 2]);
        assert_eq!(space_timesteps(5, "0,2").unwrap(), [3, 4]);
    }

    #[test]
    fn misfits_are_refused() {
        for (t, spec) in [
            (1000, "ddim300"),
            (1000, "700,700"),
            (100, "200"),
            (10, "ddim"),
            (10, "3,x"),
            (10, "-3"),
            (10, "0"),
            (10, ","),
        ] {
            let error = space_timesteps(t, spec).unwrap_err();
            assert!(matches!(error, DiffusionError::Respacing { .. }), "{spec}: {error}");
        }
        assert!(space_timesteps(0, "").is_err());
    }

    #[test]
    fn kept_alpha_bars_are_unchanged() {
        let base = Schedule::new(&BetaConfig::cosine(100)).unwrap();
        let respaced = Respaced::new(&base, "7,9").unwrap();
        assert_eq!(respaced.schedule.num_timesteps(), 16);
        for (i, &t) in respaced.timestep_map.iter().enumerate() {
            let ratio = respaced.schedule.alpha_bars[i] / base.alpha_bars[t];
            assert!((ratio - 1.0).abs() < 1e-9, "t {t}: {ratio}");
        }
        assert_eq!(respaced.network_timestep(15, false), 99.0);
        assert_eq!(respaced.network_timestep(15, true), 990.0);
    }
}
