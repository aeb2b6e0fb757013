//! Many batches one after the other, without the device ever waiting for the host.
//!
//! While a batch is computed, the samples of the one before travel to the host and are handed over there, and the noise of the
//! next is drawn. The device is given its steps in groups, the next before the last is done.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{SampleError, Sampler, finite};
use crate::backend::BackendError;
use crate::backend::snapshot::Snapshot;
use crate::diffusion::DataRange;

/// What a group of steps aims at: often enough to look at the caller, seldom enough to cost nothing.
const GROUP: Duration = Duration::from_millis(200);
/// Groups that the device has been given and has not done.
const GROUPS_AHEAD: usize = 1;

/// The samples of a batch on their way to the host.
pub struct Drawn {
    indices: Range<usize>,
    shape: [usize; 3],
    steps: usize,
    range: DataRange,
    x: Snapshot,
    picture: Snapshot,
}

impl Drawn {
    /// Which samples.
    pub fn indices(&self) -> Range<usize> {
        self.indices.clone()
    }

    /// The pictures: bytes `[N, H, W, C]`, those of the images by [`crate::levels::Levels::byte`].
    ///
    /// # Errors
    /// [`SampleError::NotFinite`]: a byte no longer shows what is not finite. [`SampleError::Backend`].
    pub fn pictures(mut self) -> Result<Vec<u8>, SampleError> {
        self.finite()?;
        let [c, h, w] = self.shape;
        Ok(self.picture.bytes()?[..self.indices.len() * h * w * c].to_vec())
    }

    /// The images in about [-1, 1], `[N, H, W, C]`.
    ///
    /// # Errors
    /// As [`Drawn::pictures`].
    pub fn images(mut self) -> Result<Vec<f32>, SampleError> {
        let mut x = self.finite()?;
        self.range.to_signed(&mut x);
        Ok(x)
    }

    fn finite(&mut self) -> Result<Vec<f32>, SampleError> {
        let [c, h, w] = self.shape;
        let mut x = self.x.floats()?;
        x.truncate(self.indices.len() * h * w * c);
        finite(x, self.indices.start, h * w * c, self.steps)
    }
}

impl Sampler {
    /// Draws batches of at most [`Sampler::batch`] samples each. `hand_over` is given each as soon as the device has the next to
    /// do, in order.
    ///
    /// `go_on` is called a few times a second with the number of network evaluations done, a batch's samples each counted;
    /// it returns whether to go on. Batches that are drawn by then have been handed over.
    ///
    /// # Errors
    /// [`SampleError::Stopped`] if `go_on` said so; other [`SampleError`]s; what `hand_over` says.
    pub fn stream<E: From<SampleError>>(
        &mut self,
        batches: impl IntoIterator<Item = Range<usize>>,
        go_on: &mut dyn FnMut(usize) -> bool,
        hand_over: &mut dyn FnMut(Drawn) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pace = Pace::new();
        let mut drawn: Option<Drawn> = None;
        for indices in batches {
            self.begin(&indices)?;
            let mut given = 0;
            while given < self.steps() {
                let times = pace.group.min(self.steps() - given);
                let mark = self.give(times)?;
                given += times;
                pace.marks.push_back(Mark { mark, steps: times, samples: indices.len() });
                drawn.take().map_or(Ok(()), &mut *hand_over)?;
                pace.wait(GROUPS_AHEAD).map_err(SampleError::from)?;
                if !go_on(pace.evaluations) {
                    return Err(SampleError::Stopped.into());
                }
            }
            drawn = Some(self.drawn(indices)?);
        }
        drawn.take().map_or(Ok(()), &mut *hand_over)?;
        pace.wait(0).map_err(SampleError::from)?;
        go_on(pace.evaluations);
        Ok(())
    }

    /// The state of the loop on its way to the host.
    fn drawn(&mut self, indices: Range<usize>) -> Result<Drawn, SampleError> {
        let (x, picture) = self.snapshots()?;
        Ok(Drawn { indices, shape: self.image_shape(), steps: self.steps(), range: self.range(), x, picture })
    }
}

/// The end of a group of steps.
struct Mark {
    mark: Snapshot,
    steps: usize,
    samples: usize,
}

/// Keeps the device a little ahead of the host.
struct Pace {
    /// Steps of the next group.
    group: usize,
    marks: VecDeque<Mark>,
    evaluations: usize,
    last: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { group: 1, marks: VecDeque::new(), evaluations: 0, last: Instant::now() }
    }

    /// Waits until no more than `most` groups are not done.
    fn wait(&mut self, most: usize) -> Result<(), BackendError> {
        while self.marks.len() > most || self.marks.front().is_some_and(|m| m.mark.arrived()) {
            let Some(mut done) = self.marks.pop_front() else { break };
            done.mark.bytes()?;
            self.evaluations += done.steps * done.samples;
            self.group = group_size(self.last.elapsed() / done.steps.max(1) as u32);
            self.last = Instant::now();
        }
        Ok(())
    }
}

/// How many steps of a duration make a group.
fn group_size(step: Duration) -> usize {
    (GROUP.as_secs_f64() / step.as_secs_f64().max(1e-6)).clamp(1.0, 1000.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_short_for_slow_steps_and_long_for_fast_ones() {
        assert_eq!(group_size(Duration::from_secs(3)), 1);
        assert_eq!(group_size(Duration::from_millis(10)), 20);
        assert_eq!(group_size(Duration::ZERO), 1000);
    }
}
