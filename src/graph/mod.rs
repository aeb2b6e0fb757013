//! The computation graph: typed operations with checked shapes, reverse-mode differentiation, fusion and memory planning.
//!
//! A [`Graph`] is built for one batch size, differentiated ([`autodiff`]), fused ([`fuse`]) and laid out in memory
//! ([`plan`]); a backend then replays the [`Plan`] without allocating.

mod activation;
pub mod autodiff;
pub mod build;
pub mod cost;
mod fir;
pub mod fuse;
pub(crate) mod gather;
mod infer;
pub mod op;
pub mod param;
pub mod plan;
mod shape;
mod types;

use thiserror::Error;

use crate::backend::Precision;

pub use activation::Activation;
pub use fir::{Border, Fir};
pub use op::{AdamW, ConvGeometry, Epilogue, GroupNorm, LossNoise, NoiseSource, Op};
pub use param::{ParamId, ParamLayout, ParamPart, ParamSpec};
pub use plan::{Place, Plan, Region, Replaced};
pub use shape::Shape;

/// What can be wrong with a graph.
#[derive(Debug, Error)]
pub enum GraphError {
    /// The inputs of an operation do not fit it.
    #[error("{op}: {detail} (inputs: {inputs:?})")]
    Shape {
        /// Name of the operation.
        op: &'static str,
        /// Shapes of its inputs.
        inputs: Vec<Shape>,
        /// What does not fit.
        detail: String,
    },
    /// An operand has another element type than the operation reads.
    #[error("{op}: operand {operand} must be {expected:?}, is {actual:?}")]
    Type {
        /// Name of the operation.
        op: &'static str,
        /// Position of the operand.
        operand: usize,
        /// What the operation reads.
        expected: DType,
        /// What it was given.
        actual: DType,
    },
    /// A value that has no gradient rule was differentiated.
    #[error("{op} cannot be differentiated")]
    NotDifferentiable {
        /// Name of the operation.
        op: &'static str,
    },
}

/// Element types. `Act` is the activation type that the precision decides: f32, or bf16 with f32 accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// Activations: f32, or bf16 under `--precision bf16`.
    Act,
    /// Always at least f32: parameters and their gradients, statistics, losses, timesteps, states of a sampler.
    F32,
    /// 32-bit integers: labels, counters, the key of the random generator.
    I32,
    /// Bytes: the grey levels of a picture.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self, precision: Precision) -> usize {
        match (self, precision) {
            (DType::Act, Precision::Bf16) => 2,
            (DType::Act, Precision::F32) | (DType::F32 | DType::I32, _) => 4,
            (DType::U8, _) => 1,
        }
    }
}

/// A value of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

impl ValueId {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Written by the caller before a run.
    Input,
    /// A trainable parameter.
    Param(ParamId),
    /// Kept from run to run; an output bound to it replaces it.
    State,
    /// Nowhere any more: fusion removed the operation that made it.
    Fused,
    /// Output `index` of node `node`.
    Node {
        /// Position in [`Graph::nodes`].
        node: usize,
        /// Which of the node's outputs.
        index: usize,
    },
}

/// A value: its shape, type, origin and, where it helps a report, its name.
#[derive(Clone, Debug)]
pub struct Value {
    /// Dimensions, channels last.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// Origin.
    pub source: Source,
    /// Name of an input or a state, or of the layer that made it.
    pub name: String,
}

/// One operation with its operands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// Operands, in the order that the operation documents.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Path of the layer it belongs to, as diffusers names it: `down_blocks.0.resnets.1`.
    pub scope: String,
}

/// A list of operations in execution order, for one batch size.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) params: Vec<ParamSpec>,
    pub(crate) param_values: Vec<ValueId>,
    pub(crate) grads: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) bindings: Vec<(ValueId, ValueId)>,
    scope: String,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Shape of a value.
    pub fn shape(&self, id: ValueId) -> Shape {
        self.value(id).shape
    }

    /// Operations in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Parameters in the order of their first use.
    pub fn params(&self) -> &[ParamSpec] {
        &self.params
    }

    /// The value that stands for a parameter.
    pub fn param_value(&self, id: ParamId) -> ValueId {
        self.param_values[id.index()]
    }

    /// The gradient of a parameter, once [`autodiff::backward`] ran.
    pub fn grad(&self, id: ParamId) -> Option<ValueId> {
        self.grad_at(id.index())
    }

    /// As [`Graph::grad`], by position in [`Graph::params`].
    pub fn grad_at(&self, index: usize) -> Option<ValueId> {
        self.grads.get(index).copied().flatten()
    }

    /// Declares inputs to be the gradients of all parameters, for a graph that begins with them.
    ///
    /// They lie where a backward pass would leave them.
    pub fn give_grads(&mut self, grads: &[ValueId]) {
        debug_assert_eq!(grads.len(), self.param_values.len());
        self.grads = grads.iter().map(|&v| Some(v)).collect();
    }

    /// Pairs of a value and the state that it replaces.
    pub fn bindings(&self) -> &[(ValueId, ValueId)] {
        &self.bindings
    }

    /// The input or state of that name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        let named = |v: &Value| matches!(v.source, Source::Input | Source::State) && v.name == name;
        self.values.iter().position(named).map(|i| ValueId(i as u32))
    }

    /// Sets the layer path that the next nodes belong to and returns the previous one.
    pub fn set_scope(&mut self, scope: impl Into<String>) -> String {
        std::mem::replace(&mut self.scope, scope.into())
    }

    /// A value that the caller writes before each run.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> ValueId {
        self.push_value(shape.into(), dtype, Source::Input, name.to_string())
    }

    /// A value that is kept from run to run.
    pub fn state(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> ValueId {
        self.push_value(shape.into(), dtype, Source::State, name.to_string())
    }

    /// A trainable parameter.
    pub fn param(&mut self, spec: ParamSpec) -> ValueId {
        let id = ParamId(self.params.len() as u32);
        let value = self.push_value(spec.shape, DType::F32, Source::Param(id), spec.name.clone());
        self.params.push(spec);
        self.param_values.push(value);
        value
    }

    /// Appends an operation; returns its results.
    ///
    /// # Errors
    /// [`GraphError::Shape`] or [`GraphError::Type`] if the operands do not fit the operation.
    pub fn push(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let typed: Vec<_> = inputs.iter().map(|&v| (self.value(v).shape, self.value(v).dtype)).collect();
        let types = infer::infer(&op, &typed)?;
        let node = self.nodes.len();
        let scope = self.scope.clone();
        let outputs = types
            .into_iter()
            .enumerate()
            .map(|(index, (shape, dtype))| self.push_value(shape, dtype, Source::Node { node, index }, scope.clone()))
            .collect::<Vec<_>>();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), scope });
        Ok(outputs)
    }

    /// How many nodes and parameters there are, for [`Graph::prefix_since`].
    pub(crate) fn mark(&self) -> (usize, usize) {
        (self.nodes.len(), self.params.len())
    }

    /// Puts `prefix` before the layer paths and parameter names of all that was appended since a mark.
    pub(crate) fn prefix_since(&mut self, (nodes, params): (usize, usize), prefix: &str) {
        self.nodes[nodes..].iter_mut().for_each(|node| node.scope.insert_str(0, prefix));
        for spec in &mut self.params[params..] {
            spec.name.insert_str(0, prefix);
            spec.parts.iter_mut().for_each(|part| part.name.insert_str(0, prefix));
        }
    }

    /// Keeps a value readable after a run.
    pub fn keep(&mut self, value: ValueId) {
        if !self.outputs.contains(&value) {
            self.outputs.push(value);
        }
    }

    /// Measures values: the [largest magnitude](Op::AbsMax) of each, kept, computed right after the value itself, so that
    /// the value lives no longer than without.
    ///
    /// # Errors
    /// [`GraphError::Type`] if a value is no activation.
    pub fn measure(&mut self, values: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let first = self.nodes.len();
        let mut maxima = Vec::with_capacity(values.len());
        for &value in values {
            let previous = self.set_scope(self.value(value).name.clone());
            maxima.extend(self.push(Op::AbsMax, &[value])?);
            self.scope = previous;
        }
        let mut measuring = self.nodes.split_off(first);
        let mut nodes = Vec::with_capacity(first + measuring.len());
        for node in self.nodes.drain(..) {
            let (now, later) = measuring.into_iter().partition(|m: &Node| node.outputs.contains(&m.inputs[0]));
            nodes.push(node);
            nodes.extend::<Vec<Node>>(now);
            measuring = later;
        }
        nodes.extend(measuring);
        self.nodes = nodes;
        fuse::renumber(self);
        maxima.iter().for_each(|&v| self.keep(v));
        Ok(maxima)
    }

    /// Lets `value` replace `state` once it is computed.
    ///
    /// The operation that computes `value` must be the last to read `state`, and must read each element before it
    /// writes it: true of the elementwise operations that this exists for.
    pub fn bind(&mut self, value: ValueId, state: ValueId) {
        debug_assert_eq!(self.shape(value), self.shape(state));
        debug_assert_eq!(self.value(value).dtype, self.value(state).dtype);
        debug_assert_eq!(self.value(state).source, Source::State);
        self.bindings.push((value, state));
    }

    fn push_value(&mut self, shape: Shape, dtype: DType, source: Source, name: String) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { shape, dtype, source, name });
        id
    }

    /// Number of readers of each value; kept values, gradients and bound values count one more.
    pub(crate) fn use_counts(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        for v in self.nodes.iter().flat_map(|n| &n.inputs) {
            uses[v.index()] += 1;
        }
        for v in self.outputs.iter().chain(self.grads.iter().flatten()).chain(self.bindings.iter().map(|(v, _)| v)) {
            uses[v.index()] += 1;
        }
        uses
    }
}
