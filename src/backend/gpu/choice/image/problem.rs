//! What is computed, and how its depth is cut.

use crate::backend::Precision;
use crate::backend::gpu::choice::{Cell, LINE_BYTES};
use crate::graph::ConvGeometry;

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward: `y = x * w`.
    Fprop,
    /// Data gradient: `dx = dy * transpose(w)`.
    Dgrad,
}

impl Pass {
    /// As in the names of the kernels.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Fprop => "fprop",
            Pass::Dgrad => "dgrad",
        }
    }
}

/// One image product: all that a choice depends on, and all of the shape that a launcher needs besides the geometry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageProblem {
    /// Type of the activations.
    pub precision: Precision,
    /// Whether source and filter are e4m3: half the bytes, and slabs of twice the channels. Forward passes only.
    pub e4m3: bool,
    /// Forward pass or data gradient.
    pub pass: Pass,
    /// N.
    pub images: usize,
    /// Output height of the longest phase.
    pub out_h: usize,
    /// Output width of the longest phase.
    pub out_w: usize,
    /// Interleaved parts of the output with taps of their own: stride * stride for a data gradient, 4 for an upsampling
    /// convolution, else 1.
    pub phases: usize,
    /// Taps of the longest phase.
    pub taps: usize,
    /// Taps of all phases together.
    pub all_taps: usize,
    /// Height and width that the taps of a phase span.
    pub tap_extent: (usize, usize),
    /// Whether all taps of a phase read one view of the source, at stride 1.
    pub one_view: bool,
    /// Channels of each source; two where the input is a concatenation.
    pub channels: Vec<usize>,
    /// Pixels of a source image.
    pub source_pixels: usize,
    /// Output channels.
    pub columns: usize,
    /// Whether a tensor of the output's shape is added.
    pub residual: bool,
    /// The cells whose moments are stored, too, for a norm that reads the result.
    pub cell: Option<Cell>,
}

impl ImageProblem {
    /// A forward pass in bf16 from sources of `(h, w)` pixels to `out` pixels, without a residual. A linear layer is a 1x1
    /// convolution of images that are `tokens` high and one wide.
    pub fn fprop(
        geometry: &ConvGeometry,
        images: usize,
        source: (usize, usize),
        out: (usize, usize),
        channels: &[usize],
        columns: usize,
    ) -> Self {
        let (kh, kw) = geometry.kernel;
        Self {
            precision: Precision::Bf16,
            e4m3: false,
            pass: Pass::Fprop,
            images,
            out_h: out.0,
            out_w: out.1,
            phases: 1,
            taps: kh * kw,
            all_taps: kh * kw,
            tap_extent: (kh, kw),
            one_view: geometry.stride == 1 || (kh, kw) == (1, 1),
            channels: channels.to_vec(),
            source_pixels: source.0 * source.1,
            columns,
            residual: false,
            cell: None,
        }
    }

    /// A data gradient in bf16 from dy of `(h, w)` pixels and `channels` channels to dx of `out` pixels and `columns`
    /// channels, without a residual.
    pub fn dgrad(
        geometry: &ConvGeometry,
        images: usize,
        dy: (usize, usize),
        out: (usize, usize),
        channels: usize,
        columns: usize,
    ) -> Self {
        let (kh, kw) = geometry.kernel;
        let stride = geometry.stride;
        let extent = (kh.div_ceil(stride), kw.div_ceil(stride));
        Self {
            pass: Pass::Dgrad,
            out_h: out.0.div_ceil(stride),
            out_w: out.1.div_ceil(stride),
            phases: stride * stride,
            taps: extent.0 * extent.1,
            tap_extent: extent,
            one_view: true,
            ..Self::fprop(geometry, images, dy, out, &[channels], columns)
        }
    }

    /// A 3x3 convolution of an image of `(h, w)` pixels that is first doubled in size: four phases of 2x2 taps on the
    /// small image.
    pub fn upsample(images: usize, source: (usize, usize), channels: usize, columns: usize) -> Self {
        Self {
            phases: 4,
            taps: 4,
            all_taps: 16,
            tap_extent: (2, 2),
            ..Self::fprop(&ConvGeometry::SAME_3X3, images, source, source, &[channels], columns)
        }
    }

    /// The same product with or without a residual.
    pub fn with_residual(self, residual: bool) -> Self {
        Self { residual, ..self }
    }

    /// The same product, which also stores moments of its result if an image can be cut into [cells](Cell::of).
    pub fn with_moments(self) -> Self {
        let cell = Cell::of((self.out_h, self.out_w));
        Self { cell, ..self }
    }

    /// The same product on activations of another type.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same product on source and filter of e4m3, or not.
    pub fn with_e4m3(self, e4m3: bool) -> Self {
        Self { e4m3, ..self }
    }

    /// Bytes of an element of source and filter.
    pub fn operand_bytes(&self) -> usize {
        if self.e4m3 { 1 } else { 2 }
    }

    /// Slabs of all sources.
    pub fn slabs(&self) -> usize {
        self.channels.iter().map(|c| (c * self.operand_bytes()).div_ceil(LINE_BYTES)).sum()
    }

    /// Steps of the longest phase.
    pub fn steps(&self) -> usize {
        self.slabs() * self.taps
    }

    /// Output pixels of one image, all phases together.
    pub fn pixels_an_image(&self) -> usize {
        self.out_h * self.out_w * self.phases
    }

    /// Floating-point operations, a multiply-add counted as two.
    pub fn flops(&self) -> f64 {
        let channels: usize = self.channels.iter().sum();
        2.0 * (self.images * self.out_h * self.out_w) as f64 * (self.all_taps * channels * self.columns) as f64
    }

    /// Bytes of every operand and the result, each once.
    pub fn bytes(&self) -> f64 {
        let channels: usize = self.channels.iter().sum();
        let source = self.images * self.source_pixels * channels;
        let result = self.images * self.pixels_an_image() * self.columns;
        let filter = self.all_taps * channels * self.columns;
        (self.operand_bytes() * (source + filter) + 2 * result * if self.residual { 2 } else { 1 }) as f64
    }
}

/// How the depth is cut: see [`segments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segments {
    /// Number of segments; none is empty.
    pub count: usize,
    /// Steps of each; the last may have fewer.
    pub steps: usize,
}

/// An image with more output pixels than this gives enough tiles by itself.
pub(super) const FEW_PIXELS: usize = 64;
/// Depths shorter than this are not cut.
pub(super) const DEEP: usize = 16;
/// Steps that a segment has at least: the ring must fill, and the partial result must be added.
pub(super) const SHORTEST_SEGMENT: usize = 8;
/// Partial results take memory and time in proportion.
pub(super) const MOST_SEGMENTS: usize = 8;

/// Cuts the depth of one image's product. An element is `((s0 + s1) + s2) + ...`, each segment summed from zero.
///
/// A function of one image's shape: several segments where an image has at most 64 output pixels in one phase and at least
/// 16 steps; then as many as leave 8 steps to each, at most 8, of equal length but for the last.
pub fn segments(p: &ImageProblem) -> Segments {
    let steps = p.steps().max(1);
    let few = p.phases == 1 && p.pixels_an_image() <= FEW_PIXELS && steps >= DEEP;
    let wanted = if few { (steps / SHORTEST_SEGMENT).min(MOST_SEGMENTS) } else { 1 };
    let each = steps.div_ceil(wanted);
    Segments { count: steps.div_ceil(each), steps: each }
}
