//! Resampling by a separable filter.

/// What a filter meets outside of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// Zeros.
    Zero,
    /// The image mirrored at its outermost pixels, which are not repeated: `x[-1] = x[1]`.
    Mirror,
    /// The gradient of [`Border::Mirror`]: what falls outside of the result is added to the pixel that was mirrored there.
    Fold,
}

/// Resampling by 2 with a separable filter of four taps: with zeros outside what diffusers' `FirUpsample2D` and
/// `FirDownsample2D` do without their convolution, mirrored what its `KUpsample2D` and `KDownsample2D` do.
///
/// Along each axis, with w the [weights](Fir::weights):
///
/// ```text
/// up:    y[o] = sum_i w[i] u[o + i - 2],   u[2 m] = x[m], u[2 m + 1] = 0
/// down:  y[o] = sum_i w[i] x[2 o + i - 1]
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fir {
    /// The filter along one axis, in the order of a convolution (the first tap meets the last of four pixels).
    pub taps: [f64; 4],
    /// Twice as many pixels along each axis, or half as many.
    pub up: bool,
    /// Sum of the weights along one axis: the taps are normalised to it.
    pub gain: f64,
    /// What lies outside.
    pub border: Border,
}

impl Fir {
    /// Upsampling. Half of the pixels that the filter meets are zeros, so that a gain of 2 along each axis keeps a
    /// constant image.
    pub fn up(taps: [f64; 4]) -> Self {
        Self { taps, up: true, gain: 2.0, border: Border::Zero }
    }

    /// Downsampling, which keeps a constant image.
    pub fn down(taps: [f64; 4]) -> Self {
        Self { taps, up: false, gain: 1.0, border: Border::Zero }
    }

    /// The same filter on a mirrored image.
    pub fn mirrored(self) -> Self {
        Self { border: Border::Mirror, ..self }
    }

    /// Weights of four neighbouring pixels, the first pixel's first.
    pub fn weights(&self) -> [f64; 4] {
        let [a, b, c, d] = self.taps.map(|t| t * self.gain / self.taps.iter().sum::<f64>());
        [d, c, b, a]
    }

    /// The transposed operation, which is the gradient: a resampling the other way.
    pub fn transposed(&self) -> Self {
        let [a, b, c, d] = self.taps;
        let border = match self.border {
            Border::Zero => Border::Zero,
            Border::Mirror => Border::Fold,
            Border::Fold => Border::Mirror,
        };
        Self { taps: [d, c, b, a], up: !self.up, gain: self.gain, border }
    }
}
