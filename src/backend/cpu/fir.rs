//! Resampling by a separable filter: which pixels meet which weights along an axis.

use crate::graph::{Border, Fir};

/// One axis of a resampling.
pub(super) struct Axis {
    weights: [f32; 4],
    up: bool,
    border: Border,
    /// Pixels of the operand and of the result.
    from: isize,
    to: isize,
}

impl Axis {
    pub fn new(f: &Fir, from: usize, to: usize) -> Self {
        let weights = f.weights().map(|w| w as f32);
        Self { weights, up: f.up, border: f.border, from: from as isize, to: to as isize }
    }

    /// The pixels of the operand that pixel `o` of the result is made of, with their weights.
    pub fn taps(&self, o: usize) -> impl Iterator<Item = (usize, f32)> {
        let o = o as isize;
        let folds = self.border == Border::Fold;
        // Pixels outside that are mirror images of this one.
        let images = [Some(o), (folds && o == 1).then_some(-1), (folds && o == self.to - 2).then_some(self.to)];
        images.into_iter().flatten().flat_map(move |o| self.unfolded(o))
    }

    fn unfolded(&self, o: isize) -> impl Iterator<Item = (usize, f32)> {
        self.weights.iter().zip(0..).filter_map(move |(&w, i)| {
            let at = match self.up {
                true if (o + i) % 2 != 0 => return None,
                true => (o + i - 2) / 2,
                false => 2 * o + i - 1,
            };
            let at = match self.border {
                Border::Mirror if at < 0 => -at,
                Border::Mirror if at >= self.from => 2 * (self.from - 1) - at,
                _ => at,
            };
            (0..self.from).contains(&at).then_some((at as usize, w))
        })
    }
}
