//! Typed helpers to append operations that have one result.

use super::op::{ConvGeometry, Epilogue, GroupNorm};
use super::{Activation, Graph, GraphError, Op, ValueId};

impl Graph {
    /// A convolution with an optional bias.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn conv2d(
        &mut self,
        x: ValueId,
        w: ValueId,
        bias: Option<ValueId>,
        geometry: ConvGeometry,
    ) -> Result<ValueId, GraphError> {
        let inputs: Vec<_> = [x, w].into_iter().chain(bias).collect();
        self.apply(Op::Conv2d(geometry, Epilogue::bias(bias.is_some())), &inputs)
    }

    /// A linear layer over the channels, with an optional bias.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn linear(&mut self, x: ValueId, w: ValueId, bias: Option<ValueId>) -> Result<ValueId, GraphError> {
        let inputs: Vec<_> = [x, w].into_iter().chain(bias).collect();
        self.apply(Op::Linear(Epilogue::bias(bias.is_some())), &inputs)
    }

    /// Group normalisation, `scale_shift` as [`GroupNorm::modulated`] says.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn group_norm(
        &mut self,
        x: ValueId,
        gamma: ValueId,
        beta: ValueId,
        scale_shift: Option<ValueId>,
        groups: usize,
        eps: f64,
    ) -> Result<ValueId, GraphError> {
        let norm = GroupNorm { groups, eps, silu: false, modulated: scale_shift.is_some() };
        let inputs: Vec<_> = [x, gamma, beta].into_iter().chain(scale_shift).collect();
        self.apply(Op::GroupNorm(norm), &inputs)
    }

    /// An activation function.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn activation(&mut self, f: Activation, x: ValueId) -> Result<ValueId, GraphError> {
        self.apply(Op::Activation(f), &[x])
    }

    /// SiLU.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn silu(&mut self, x: ValueId) -> Result<ValueId, GraphError> {
        self.activation(Activation::Silu, x)
    }

    /// Elementwise sum.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
        self.apply(Op::Add, &[a, b])
    }

    /// Multiplication by a constant.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn scale(&mut self, x: ValueId, mul: f64) -> Result<ValueId, GraphError> {
        self.apply(Op::Affine { mul, add: 0.0 }, &[x])
    }

    /// Any operation of which the first result is wanted.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn apply(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        Ok(self.push(op, inputs)?[0])
    }
}
