//! Convolutions and linear layers: how the graph's nodes map to the kernels of [`super::conv`].

use super::conv::{self, ConvShape, PackedConv, Pass};
use super::gemm::Epilogue;
use crate::graph::op::Epilogue as EpilogueSpec;
use crate::graph::{ConvGeometry, Graph, Node, Op, Shape};

/// A layer with weights: its geometry and the pass that the node computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub shape: ConvShape,
    /// `None` for the weight gradient.
    pub pass: Option<Pass>,
}

impl Layer {
    /// The layer of a node, or `None` if the node has no weights.
    pub fn of(graph: &Graph, node: &Node) -> Option<Self> {
        let input = |i: usize| graph.shape(node.inputs[i]);
        let output = || graph.shape(node.outputs[0]);
        let (shape, pass) = match &node.op {
            Op::Conv2d(g, _) => (convolution(g, input(0), output()), Some(Pass::Fprop)),
            Op::ConvDgrad { geometry, .. } => (convolution(geometry, output(), input(0)), Some(Pass::Dgrad)),
            Op::ConvWgrad { geometry, .. } => (convolution(geometry, input(1), input(0)), None),
            Op::Linear(_) => (pointwise(input(0), output().channels()), Some(Pass::Fprop)),
            Op::LinearDgrad { .. } => (pointwise(output(), input(0).channels()), Some(Pass::Dgrad)),
            Op::LinearWgrad { .. } => (pointwise(input(1), input(0).channels()), None),
            _ => return None,
        };
        Some(Self { shape, pass })
    }

    /// Floats that the packed weights take; 0 for the weight gradient.
    pub fn packed_len(&self) -> usize {
        self.pass.map_or(0, |pass| PackedConv::len(&self.shape, pass))
    }

    /// Floats of workspace of the kernel itself.
    pub fn workspace(&self, threads: usize) -> usize {
        match self.pass {
            Some(Pass::Fprop) => conv::fprop_workspace(&self.shape, threads),
            Some(Pass::Dgrad) => conv::dgrad_workspace(&self.shape, threads),
            None => conv::wgrad_workspace(&self.shape, threads),
        }
    }
}

fn convolution(g: &ConvGeometry, x: Shape, y: Shape) -> ConvShape {
    let ((h, w), (oh, ow)) = (x.height_width(), y.height_width());
    ConvShape {
        n: x.batch(),
        h,
        w,
        c: x.channels(),
        k: y.channels(),
        r: g.kernel.0,
        s: g.kernel.1,
        stride: g.stride,
        pad_top: g.padding.0,
        pad_left: g.padding.1,
        oh,
        ow,
    }
}

/// A linear layer is a 1x1 convolution.
fn pointwise(x: Shape, outputs: usize) -> ConvShape {
    ConvShape::same(x.batch(), x.pixels(), 1, x.channels(), outputs, 1)
}

/// The kernel's epilogue for what the graph fused; slices of absent parts are empty.
pub(super) fn epilogue<'a>(
    e: &EpilogueSpec,
    bias: &'a [f32],
    per_image: &'a [f32],
    residual: &'a [f32],
) -> Epilogue<'a> {
    Epilogue {
        bias: e.bias.then_some(bias),
        per_image: e.per_image.then_some(per_image),
        residual: e.residual.then_some(residual),
        scale: e.scale as f32,
    }
}
