//! Reverse-mode differentiation: appends to a graph the operations that compute gradients.

use std::collections::BTreeMap;

use super::op::Epilogue;
use super::{Graph, GraphError, Op, Source, ValueId};

/// Appends the backward pass of `graph`.
///
/// `seeds` pairs values with values that hold their gradients. Gradients of all parameters that the seeds depend on
/// are recorded in the graph ([`Graph::grad`]); those of `wrt` are returned in its order, `None` where the seeds do not
/// depend on the value.
///
/// # Errors
/// [`GraphError::NotDifferentiable`] if a path to a parameter leads through an operation without a rule.
pub fn backward(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, GraphError> {
    let grads = gradients(graph, seeds, wrt, true)?;
    graph.grads = graph.param_values.iter().map(|v| grads.get(v).copied()).collect();
    Ok(wrt.iter().map(|v| grads.get(v).copied()).collect())
}

/// As [`backward`], but for the gradients of `wrt` alone: parameters are constants.
///
/// # Errors
/// [`GraphError::NotDifferentiable`] if a path to one of `wrt` leads through an operation without a rule.
pub fn backward_to(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, GraphError> {
    let grads = gradients(graph, seeds, wrt, false)?;
    Ok(wrt.iter().map(|v| grads.get(v).copied()).collect())
}

fn gradients(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    parameters: bool,
) -> Result<BTreeMap<ValueId, ValueId>, GraphError> {
    let mut tape = Tape { needs: depends(graph, wrt, parameters), grads: BTreeMap::new(), graph };
    for &(value, gradient) in seeds {
        tape.accumulate(value, gradient)?;
    }
    for node in (0..tape.graph.nodes.len()).rev() {
        tape.node(node)?;
    }
    Ok(tape.grads)
}

/// Marks the values through which a gradient must flow.
fn depends(graph: &Graph, wrt: &[ValueId], parameters: bool) -> Vec<bool> {
    let is_parameter = |source: &Source| parameters && matches!(source, Source::Param(_));
    let mut needs: Vec<bool> = graph.values.iter().map(|v| is_parameter(&v.source)).collect();
    for v in wrt {
        needs[v.index()] = true;
    }
    for node in &graph.nodes {
        // The frequencies of a Fourier embedding are fixed by design.
        let fixed = matches!(node.op, Op::FourierEmbedding);
        if !fixed && node.inputs.iter().any(|v| needs[v.index()]) {
            for v in &node.outputs {
                needs[v.index()] = true;
            }
        }
    }
    needs
}

struct Tape<'a> {
    graph: &'a mut Graph,
    needs: Vec<bool>,
    grads: BTreeMap<ValueId, ValueId>,
}

impl Tape<'_> {
    fn needs(&self, value: ValueId) -> bool {
        self.needs[value.index()]
    }

    fn accumulate(&mut self, value: ValueId, gradient: ValueId) -> Result<(), GraphError> {
        if !self.needs(value) {
            return Ok(());
        }
        let total = match self.grads.get(&value) {
            Some(&sum) => self.graph.add(gradient, sum)?,
            None => gradient,
        };
        self.grads.insert(value, total);
        Ok(())
    }

    /// Appends `op` and gives its results to the inputs they are the gradients of.
    fn emit(&mut self, op: Op, inputs: &[ValueId], to: &[ValueId]) -> Result<(), GraphError> {
        let results = self.graph.push(op, inputs)?;
        for (&value, &gradient) in to.iter().zip(&results) {
            self.accumulate(value, gradient)?;
        }
        Ok(())
    }

    fn node(&mut self, index: usize) -> Result<(), GraphError> {
        let node = self.graph.nodes[index].clone();
        let Some(&dy) = node.outputs.first().and_then(|v| self.grads.get(v)) else {
            return Ok(());
        };
        if !node.inputs.iter().any(|&v| self.needs(v)) {
            return Ok(());
        }
        let previous = self.graph.set_scope(node.scope.clone());
        self.rule(&node.op, &node.inputs, &node.outputs, dy)?;
        self.graph.set_scope(previous);
        Ok(())
    }

    fn rule(&mut self, op: &Op, x: &[ValueId], y: &[ValueId], dy: ValueId) -> Result<(), GraphError> {
        match op {
            Op::Conv2d(geometry, epilogue) => {
                let dz = self.epilogue(epilogue, x, dy)?;
                if self.needs(x[0]) {
                    let dgrad = Op::ConvDgrad {
                        geometry: *geometry,
                        input_size: self.graph.shape(x[0]).height_width(),
                        residual: false,
                    };
                    self.emit(dgrad, &[dz, x[1]], &[x[0]])?;
                }
                if !self.needs(x[1]) {
                    return Ok(());
                }
                let wgrad = Op::ConvWgrad { geometry: *geometry, bias: epilogue.bias };
                self.emit(wgrad, &[dz, x[0]], &x[1..])
            }
            Op::Linear(epilogue) => {
                let dz = self.epilogue(epilogue, x, dy)?;
                if self.needs(x[0]) {
                    self.emit(Op::LinearDgrad { residual: false }, &[dz, x[1]], &[x[0]])?;
                }
                if !self.needs(x[1]) {
                    return Ok(());
                }
                self.emit(Op::LinearWgrad { bias: epilogue.bias }, &[dz, x[0]], &x[1..])
            }
            Op::GroupNorm(norm) => {
                let mut inputs = vec![dy];
                inputs.extend(x);
                inputs.push(y[1]);
                self.emit(Op::GroupNormGrad(*norm), &inputs, x)
            }
            Op::Attention { heads } => self.emit(Op::AttentionGrad { heads: *heads }, &[dy, x[0], y[0], y[1]], x),
            Op::Embedding => {
                let vocabulary = self.graph.shape(x[0]).batch();
                self.emit(Op::EmbeddingGrad { vocabulary }, &[dy, x[1]], &x[..1])
            }
            Op::Upsample2x => self.emit(Op::Upsample2xGrad, &[dy], x),
            Op::Fir(f) => self.emit(Op::Fir(f.transposed()), &[dy], x),
            Op::AvgPool2x => self.emit(Op::AvgPool2xGrad, &[dy], x),
            Op::Concat => {
                let mut start = 0;
                for &part in x {
                    let len = self.graph.shape(part).channels();
                    if self.needs(part) {
                        self.emit(Op::Slice { start, len }, &[dy], &[part])?;
                    }
                    start += len;
                }
                Ok(())
            }
            Op::Activation(f) => self.emit(Op::ActivationGrad(*f), &[dy, x[0]], x),
            Op::Add => {
                self.accumulate(x[0], dy)?;
                self.accumulate(x[1], dy)
            }
            Op::AddPerImage => {
                self.accumulate(x[0], dy)?;
                if self.needs(x[1]) {
                    self.emit(Op::SumPixels, &[dy], &x[1..])?;
                }
                Ok(())
            }
            Op::PoolTokens if self.needs(x[1]) => Err(GraphError::NotDifferentiable { op: op.name() }),
            Op::PoolTokens => {
                let size = self.graph.shape(x[0]).height_width();
                self.emit(Op::PoolTokensGrad { size }, &[dy], &x[..1])
            }
            Op::SumPixels => {
                let size = self.graph.shape(x[0]).height_width();
                self.emit(Op::SpreadPixels { size }, &[dy], x)
            }
            Op::FirstToken => {
                let tokens = self.graph.shape(x[0]).pixels();
                self.emit(Op::FirstTokenGrad { tokens }, &[dy], x)
            }
            Op::Affine { mul, .. } => self.emit(Op::Affine { mul: *mul, add: 0.0 }, &[dy], x),
            // The rounding's slope is 1, and a gradient that reaches an image is an activation anyway.
            Op::ToAct => self.accumulate(x[0], dy),
            Op::DivideByTime => self.emit(Op::DivideByTime, &[dy, x[1]], &x[..1]),
            Op::Dropout { .. } => self.emit(op.clone(), &[dy, x[1], x[2]], &x[..1]),
            _ => Err(GraphError::NotDifferentiable { op: op.name() }),
        }
    }

    /// Gradients of what an epilogue added; returns the gradient of the plain product.
    fn epilogue(&mut self, e: &Epilogue, x: &[ValueId], dy: ValueId) -> Result<ValueId, GraphError> {
        let dz = if e.scale == 1.0 { dy } else { self.graph.scale(dy, e.scale)? };
        let mut next = 2 + usize::from(e.bias);
        if e.per_image {
            if self.needs(x[next]) {
                self.emit(Op::SumPixels, &[dz], &x[next..=next])?;
            }
            next += 1;
        }
        if e.residual {
            self.accumulate(x[next], dz)?;
        }
        Ok(dz)
    }
}
