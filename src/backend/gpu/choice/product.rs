//! The matrix product of a node, and the kernel family that computes it.

use super::image::{self, ImageChoice, ImageProblem, Pass, choose_image, takes_image};
use super::mma::{self, ImageProduct, PixelProduct};
use super::pixel::{self, PixelChoice, PixelProblem, choose_pixel, takes_pixel};
use super::{Prediction, Tuning, cost};
use crate::backend::Precision;
use crate::backend::gpu::driver::DeviceLimits;
use crate::graph::gather::is_layer_of_vectors;
use crate::graph::{ConvGeometry, Graph, Node, Op, Shape};

/// A linear layer's geometry.
const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };

/// A matrix product of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// Forward pass or data gradient.
    Image(ImageProblem),
    /// Weight gradient.
    Pixel(PixelProblem),
}

/// What computes a product.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// `conv_hopper_{fprop,dgrad}`.
    Image(ImageChoice),
    /// `conv_hopper_wgrad`.
    Pixel(PixelChoice),
    /// The kernels of mma.sync, and why not those of Hopper.
    Mma(mma::Choice, &'static str),
}

/// One way to compute a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// As in tables: see [`ImageConfig`](super::ImageConfig) and [`PixelConfig`](super::PixelConfig).
    pub name: String,
    /// How long it should take.
    pub predicted: Prediction,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

impl Candidate {
    fn new(config: impl ToString, predicted: Prediction, shared_bytes: usize) -> Self {
        Self { name: config.to_string(), predicted, shared_bytes }
    }
}

/// Height and width of an image; a column of pixels where the value has no image shape.
fn size(shape: Shape) -> (usize, usize) {
    if shape.rank() == 4 { shape.height_width() } else { (shape.pixels(), 1) }
}

/// A linear layer's rows are images one pixel wide.
fn column(shape: Shape) -> (usize, usize) {
    (shape.pixels(), 1)
}

impl Product {
    /// The product of a convolution's or linear layer's node; `None` for other operations, and for layers of vectors, which
    /// run together and have one kernel.
    pub fn of(graph: &Graph, node: &Node, precision: Precision) -> Option<Self> {
        if is_layer_of_vectors(graph, node) {
            return None;
        }
        let (Some(&first), Some(&out)) = (node.inputs.first(), node.outputs.first()) else { return None };
        let (first, out) = (graph.shape(first), graph.shape(out));
        let (images, channels) = (first.batch(), first.channels());
        let fprop = |g: &ConvGeometry, size: fn(Shape) -> (usize, usize), residual: bool| {
            ImageProblem::fprop(g, images, size(first), size(out), &[channels], out.channels()).with_residual(residual)
        };
        let dgrad = |g: &ConvGeometry, size: fn(Shape) -> (usize, usize), residual: bool| {
            ImageProblem::dgrad(g, images, size(first), size(out), channels, out.channels()).with_residual(residual)
        };
        let wgrad = |g: &ConvGeometry, size: fn(Shape) -> (usize, usize)| {
            let x = graph.shape(node.inputs[1]);
            PixelProblem::new(g, images, size(x), size(first), x.channels(), channels)
        };
        let product = match &node.op {
            Op::Conv2d(g, epilogue) => Product::Image(fprop(g, size, epilogue.residual)),
            Op::Linear(epilogue) => Product::Image(fprop(&POINTWISE, column, epilogue.residual)),
            Op::ConvDgrad { geometry: g, residual, .. } => Product::Image(dgrad(g, size, *residual)),
            Op::LinearDgrad { residual } => Product::Image(dgrad(&POINTWISE, column, *residual)),
            Op::ConvWgrad { geometry: g, .. } => Product::Pixel(wgrad(g, size)),
            Op::LinearWgrad { .. } => Product::Pixel(wgrad(&POINTWISE, column)),
            _ => return None,
        };
        Some(product.with_precision(precision))
    }

    /// The same product on activations of another type.
    pub fn with_precision(self, precision: Precision) -> Self {
        match self {
            Product::Image(p) => Product::Image(p.with_precision(precision)),
            Product::Pixel(p) => Product::Pixel(p.with_precision(precision)),
        }
    }

    /// Pass, as in the names of kernels.
    pub fn pass(&self) -> &'static str {
        match self {
            Product::Image(p) => p.pass.name(),
            Product::Pixel(_) => "wgrad",
        }
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        match self {
            Product::Image(p) => p.flops(),
            Product::Pixel(p) => p.flops(),
        }
    }

    /// Bytes of operands and results, each once.
    pub fn bytes(&self) -> f64 {
        match self {
            Product::Image(p) => p.bytes(),
            Product::Pixel(p) => p.bytes(),
        }
    }

    /// Which kernel computes it, and how.
    pub fn plan(&self, limits: &DeviceLimits, tuning: Option<&Tuning>) -> Plan {
        match self {
            Product::Image(p) => match takes_image(p, limits) {
                Ok(()) => Plan::Image(choose_image(p, limits, tuning)),
                Err(why) => Plan::Mma(mma::choose(&mma_image(p)), why),
            },
            Product::Pixel(p) => match takes_pixel(p, limits) {
                Ok(()) => Plan::Pixel(choose_pixel(p, limits, tuning)),
                Err(why) => Plan::Mma(mma::choose_wgrad(&mma_pixel(p)), why),
            },
        }
    }

    /// All candidates of the cost model, the best prediction first; none where the kernels of Hopper do not take the product.
    pub fn candidates(&self, limits: &DeviceLimits) -> Vec<Candidate> {
        match self {
            Product::Image(p) if takes_image(p, limits).is_ok() => {
                let all = image::candidates(p, limits).into_iter();
                all.map(|c| Candidate::new(c.config(), c.predicted, c.shared_bytes)).collect()
            }
            Product::Pixel(p) if takes_pixel(p, limits).is_ok() => {
                let all = pixel::candidates(p, limits).into_iter();
                all.map(|c| Candidate::new(c.config(), c.predicted, c.shared_bytes)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The candidates that a [`Tuning`] table may name, the choice of the model first: all have the same order of sums.
    pub fn alternatives(&self, limits: &DeviceLimits) -> Vec<Candidate> {
        match self {
            Product::Pixel(p) if takes_pixel(p, limits).is_ok() => {
                let all = pixel::alternatives(p, limits).into_iter();
                all.map(|c| Candidate::new(c.config(), c.predicted, c.shared_bytes)).collect()
            }
            _ => self.candidates(limits),
        }
    }

    fn precision(&self) -> Precision {
        match self {
            Product::Image(p) => p.precision,
            Product::Pixel(p) => p.precision,
        }
    }
}

impl Plan {
    /// Name of the kernel that computes `product`.
    pub fn kernel(&self, product: &Product) -> String {
        match self {
            Plan::Image(c) => format!("conv_hopper_{}_{}_bf16", product.pass(), c.tile.name()),
            Plan::Pixel(c) => c.kernel(),
            Plan::Mma(c, _) => format!("conv_{}_{}_{}", product.pass(), c.variant, product.precision()),
        }
    }

    /// The candidate.
    pub fn config(&self) -> String {
        match self {
            Plan::Image(c) => c.config().to_string(),
            Plan::Pixel(c) => c.config().to_string(),
            Plan::Mma(c, _) => {
                let (rows, columns) = c.tile.size();
                format!("{rows}x{columns}{}", if c.splits > 1 { format!(".s{}", c.splits) } else { String::new() })
            }
        }
    }

    /// Predicted time of `product`.
    pub fn predicted(&self, product: &Product) -> Prediction {
        match self {
            Plan::Image(c) => c.predicted,
            Plan::Pixel(c) => c.predicted,
            Plan::Mma(c, _) => c.predicted(product.flops(), product.bytes()),
        }
    }

    /// Dynamic shared memory of a block in bytes.
    pub fn shared_bytes(&self) -> usize {
        match self {
            Plan::Image(c) => c.shared_bytes,
            Plan::Pixel(c) => c.shared_bytes,
            Plan::Mma(c, _) => c.tile.shared_bytes() as usize,
        }
    }
}

/// The same product as the kernels of mma.sync see it.
fn mma_image(p: &ImageProblem) -> ImageProduct {
    let channels: usize = p.channels.iter().sum();
    let chunk = chunk(p.precision);
    ImageProduct {
        images: p.images,
        pixels: p.out_h * p.out_w,
        phases: p.phases,
        columns: p.columns,
        depth: p.taps * channels,
        bf16: p.precision == Precision::Bf16,
        vector: channels.is_multiple_of(chunk) && (p.pass == Pass::Fprop || p.columns.is_multiple_of(chunk)),
        narrow: p.pass == Pass::Fprop,
    }
}

fn mma_pixel(p: &PixelProblem) -> PixelProduct {
    let chunk = chunk(p.precision);
    PixelProduct {
        rows: p.rows,
        columns: p.kernel.0 * p.kernel.1 * p.channels,
        pixels: p.images * p.out_h * p.out_w,
        bf16: p.precision == Precision::Bf16,
        vector_dy: p.rows.is_multiple_of(chunk),
        vector_x: p.channels.is_multiple_of(chunk),
    }
}

/// Activations in 16 bytes.
fn chunk(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 8,
    }
}

/// Predicted time of an operation that is no matrix product: its floor and a launch, for want of a model.
pub fn floor_and_launch(flops: f64, bytes: f64) -> (f64, f64) {
    let floor = cost::floor_us(flops, bytes);
    (floor + cost::LAUNCH_US, floor)
}
