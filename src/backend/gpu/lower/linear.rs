//! Linear layers: 1x1 convolutions over columns of pixels, with the kernels of [`super::conv`].

use super::Lowering;
use super::conv::{self, Fused, Images};
use crate::backend::BackendError;
use crate::graph::{ConvGeometry, Node, Op};

/// A filter of one tap.
pub(super) const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };

/// Lowers the operations on `[.., I]` and `[.., O]` values.
pub(super) fn lower(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    let first = Images::column(ctx.shape(node.inputs[0]));
    let second = match &node.op {
        Op::LinearWgrad { .. } => Images::column(ctx.shape(node.inputs[1])),
        _ => Images::column(ctx.shape(node.outputs[0])),
    };
    match &node.op {
        Op::Linear(epilogue) => {
            let fused = Fused::forward(ctx, epilogue, node);
            conv::fprop(ctx, &POINTWISE, first, second, fused, node)
        }
        Op::LinearDgrad { .. } => {
            let fused = Fused::backward(ctx, node);
            conv::dgrad(ctx, &POINTWISE, first, second, fused, node)
        }
        _ => conv::wgrad(ctx, &POINTWISE, first, second, node),
    }
}
