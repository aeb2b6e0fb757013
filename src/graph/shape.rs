//! Shapes of graph values: up to four dimensions, channels last.

use std::fmt;

/// Dimensions of a graph value, outermost first, channels last.
///
/// Activations are `[N, H, W, C]`, vectors `[N, C]`, per-sample scalars `[N]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; Shape::MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The largest number of dimensions a value can have.
    pub const MAX_RANK: usize = 4;

    /// A shape from its dimensions.
    ///
    /// # Panics
    /// If there are more than [`Shape::MAX_RANK`] of them; graphs are built by code, not by users.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= Self::MAX_RANK, "rank {} > 4", dims.len());
        let mut all = [1; Self::MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, rank: dims.len() }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// The first dimension: samples in the batch.
    pub fn batch(&self) -> usize {
        self.dims[0]
    }

    /// The last dimension: channels.
    pub fn channels(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Everything but the channels: rows of a channels-last matrix.
    pub fn rows(&self) -> usize {
        self.numel() / self.channels().max(1)
    }

    /// Positions of one sample: the product of the middle dimensions (H·W of an image, 1 of a vector).
    pub fn pixels(&self) -> usize {
        self.rows() / self.batch().max(1)
    }

    /// Height and width of an `[N, H, W, C]` value.
    pub fn height_width(&self) -> (usize, usize) {
        (self.dims[1], self.dims[2])
    }

    /// The same shape with another number of channels.
    pub fn with_channels(&self, channels: usize) -> Self {
        let mut out = *self;
        out.dims[self.rank - 1] = channels;
        out
    }

    /// The same shape with another batch size.
    pub fn with_batch(&self, batch: usize) -> Self {
        let mut out = *self;
        out.dims[0] = batch;
        out
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self::new(dims)
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(dims: [usize; R]) -> Self {
        Self::new(&dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.dims().iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { "x" })?;
        }
        Ok(())
    }
}
