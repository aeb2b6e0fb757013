//! A convolution or linear layer as the launchers of Hopper see it.

use super::args::{BF16, LINE, PHASES, TAPS, VIEWS};
use crate::backend::Precision;
use crate::backend::gpu::choice::{Cell, ImageProblem, Pass, takes_image};
use crate::backend::gpu::driver::{DeviceLimits, DevicePtr};
use crate::backend::gpu::lower::conv::Images;
use crate::backend::gpu::lower::hopper::views::{Views, upsampled, views};
use crate::backend::gpu::lower::linear::POINTWISE;
use crate::graph::{ConvGeometry, Graph, Node, Op, Shape};

/// One tensor whose channels are part of the depth; several are read as their concatenation.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::gpu) struct Source {
    /// `[images, height, width, channels]`.
    pub at: DevicePtr,
    /// Its channels.
    pub channels: usize,
}

/// A convolution or linear layer, forward or the data gradient.
#[derive(Clone, Debug)]
pub(in crate::backend::gpu) struct ImageProduct {
    /// Which.
    pub pass: Pass,
    /// Its filter, of `[K, taps, C]`.
    pub geometry: ConvGeometry,
    /// What is read: x or dy.
    pub sources: Vec<Source>,
    /// Rows and columns of a source image.
    pub source_size: (usize, usize),
    /// N.
    pub images: usize,
    /// Rows and columns of an output image.
    pub out_size: (usize, usize),
    /// Output channels.
    pub columns: usize,
    /// Whether the convolution is one of the source doubled in size.
    pub upsampled: bool,
    /// Where moments of the result go; null if nobody asks for them.
    pub moments: DevicePtr,
    /// Whether sources and filter are e4m3.
    pub e4m3: bool,
}

impl ImageProduct {
    /// As the launchers see it. `source` is the operand before fusion.
    pub fn new(pass: Pass, geometry: &ConvGeometry, source: Images, sources: Vec<Source>, out: Images) -> Self {
        Self {
            pass,
            geometry: *geometry,
            sources,
            source_size: (source.height, source.width),
            images: out.count,
            out_size: (out.height, out.width),
            columns: out.channels,
            upsampled: false,
            e4m3: false,
            moments: DevicePtr::NULL,
        }
    }

    /// The forward pass of a node, if it is one of a convolution or linear layer.
    pub fn forward(graph: &Graph, node: &Node, sources: Vec<Source>) -> Option<Self> {
        let (geometry, images): (_, fn(Shape) -> Images) = match &node.op {
            Op::Conv2d(geometry, _) => (geometry, Images::of),
            Op::Linear(_) => (&POINTWISE, Images::column),
            _ => return None,
        };
        let [x, y] = [node.inputs[0], node.outputs[0]].map(|v| images(graph.shape(v)));
        Some(Self::new(Pass::Fprop, geometry, x, sources, y))
    }

    /// The same product, its sources half as large as its operand if `upsampled`.
    pub fn upsampled(self, upsampled: bool) -> Self {
        let (h, w) = self.source_size;
        let source_size = if upsampled { (h / 2, w / 2) } else { (h, w) };
        Self { upsampled, source_size, ..self }
    }

    /// The same product, which stores moments of its result.
    pub fn with_moments(self, moments: DevicePtr) -> Self {
        Self { moments, ..self }
    }

    /// The same product of e4m3.
    pub fn quantised(self) -> Self {
        Self { e4m3: true, ..self }
    }

    /// Bytes of an element of sources and filter.
    pub(super) fn operand_bytes(&self) -> usize {
        if self.e4m3 { 1 } else { BF16 }
    }

    /// Channels of a slab.
    pub(super) fn slab(&self) -> usize {
        LINE / self.operand_bytes()
    }

    pub(super) fn channels(&self) -> Vec<usize> {
        self.sources.iter().map(|s| s.channels).collect()
    }

    pub(super) fn problem(&self, precision: Precision, residual: bool) -> ImageProblem {
        let (geometry, images, source, out) = (&self.geometry, self.images, self.source_size, self.out_size);
        let channels = self.channels();
        let problem = match self.pass {
            Pass::Fprop if self.upsampled => ImageProblem::upsample(images, source, channels[0], self.columns),
            Pass::Fprop => ImageProblem::fprop(geometry, images, source, out, &channels, self.columns),
            Pass::Dgrad => ImageProblem::dgrad(geometry, images, source, out, channels.iter().sum(), self.columns),
        };
        let problem = problem.with_residual(residual).with_precision(precision).with_e4m3(self.e4m3);
        if self.moments == DevicePtr::NULL { problem } else { problem.with_moments() }
    }

    /// Whether the kernels take this product on this device, or why not.
    ///
    /// # Errors
    /// The reason.
    pub fn taken(&self, precision: Precision, residual: bool, limits: &DeviceLimits) -> Result<(), &'static str> {
        self.views(&self.problem(precision, residual), limits).map(|_| ())
    }

    /// The cells whose moments it can store, and how many an image has; none if its images cannot be cut into cells.
    pub fn cells(&self, precision: Precision, residual: bool) -> Option<(Cell, usize)> {
        let problem = self.problem(precision, residual).with_moments();
        Some((problem.cell?, problem.pixels_an_image() / problem.cell?.pixels()))
    }

    /// The views, if the kernels take this product on this device.
    pub(super) fn views(&self, problem: &ImageProblem, limits: &DeviceLimits) -> Result<Views, &'static str> {
        takes_image(problem, limits)?;
        if self.upsampled && (self.geometry != ConvGeometry::SAME_3X3 || self.sources.len() != 1) {
            return Err("only one source is upsampled, by a 3x3 convolution that keeps the size");
        }
        let views = match self.upsampled {
            true => upsampled(self.source_size),
            false => views(self.pass, &self.geometry, self.source_size, self.out_size)?,
        };
        let taps: usize = views.phases.iter().map(|phase| phase.taps.len()).sum();
        if views.sources.len() * self.sources.len() > VIEWS || taps > TAPS || views.phases.len() > PHASES {
            return Err("more views, taps or phases than a launch has tables for");
        }
        if self.sources.len() > 2 || (self.pass == Pass::Dgrad && self.sources.len() > 1) {
            return Err("two sources at most, and one of a data gradient");
        }
        Ok(views)
    }
}
