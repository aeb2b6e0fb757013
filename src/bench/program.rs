//! A plan that computes one product several times, each time from and to other memory.
//!
//! A replay of it is as many launches as there are copies, and allocates nothing.

use super::{ConvShape, GemmShape, Pass, Product};
use crate::backend::{BackendError, Executable, Store};
use crate::graph::{DType, Epilogue, Graph, GraphError, Op, ParamId, ParamSpec, Plan, ValueId};
use crate::rng::{Sequence, Stream};

/// An operand of one copy.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Value(ValueId),
    Param(ParamId),
}

/// Copies of one product.
#[derive(Clone, Debug)]
pub struct Program {
    /// What a backend compiles.
    pub plan: Plan,
    operands: Vec<[Operand; 2]>,
    results: Vec<ValueId>,
    elements: [usize; 3],
}

impl Program {
    /// `copies` of a pass of a product, without bias or anything else behind it.
    ///
    /// # Errors
    /// [`GraphError`] if the shape is none.
    pub fn new(product: &Product, pass: Pass, copies: usize) -> Result<Self, GraphError> {
        let mut graph = Graph::new();
        let (mut operands, mut results) = (Vec::new(), Vec::new());
        for copy in 0..copies {
            let (values, result) = match product {
                Product::Conv(shape) => conv(&mut graph, shape, pass, copy)?,
                Product::Gemm(shape) => gemm(&mut graph, shape, pass, copy)?,
            };
            graph.keep(result);
            operands.push(values);
            results.push(result);
        }
        Ok(Self { plan: Plan::new(graph), operands, results, elements: product.operands(pass) })
    }

    /// Writes the operands of every copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&self, exe: &mut dyn Executable, noise: &Noise) -> Result<(), BackendError> {
        for (copy, pair) in self.operands.iter().enumerate() {
            for (which, operand) in pair.iter().enumerate() {
                let pattern = noise.pattern(copy, which, self.elements[which]);
                match operand {
                    Operand::Value(value) => exe.write_repeated(*value, pattern)?,
                    Operand::Param(param) => {
                        let data: Vec<f32> = pattern.iter().copied().cycle().take(self.elements[which]).collect();
                        exe.write_param(Store::Params, *param, &data)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The result of a copy.
    pub fn result(&self, copy: usize) -> ValueId {
        self.results[copy]
    }

    /// How many copies.
    pub fn copies(&self) -> usize {
        self.results.len()
    }
}

fn weights(graph: &mut Graph, copy: usize, dims: &[usize]) -> (ValueId, Operand) {
    let id = ParamId::new(graph.params().len());
    (graph.param(ParamSpec::plain(format!("w{copy}"), dims)), Operand::Param(id))
}

fn activations(graph: &mut Graph, name: &str, copy: usize, dims: &[usize]) -> (ValueId, Operand) {
    let value = graph.input(&format!("{name}{copy}"), dims, DType::Act);
    (value, Operand::Value(value))
}

fn conv(graph: &mut Graph, s: &ConvShape, pass: Pass, copy: usize) -> Result<([Operand; 2], ValueId), GraphError> {
    let geometry = s.geometry;
    let (a, b, op) = match pass {
        Pass::Fprop => {
            let x = activations(graph, "x", copy, &s.x());
            (x, weights(graph, copy, &s.filter()), Op::Conv2d(geometry, Epilogue::bias(false)))
        }
        Pass::Dgrad => {
            let dy = activations(graph, "dy", copy, &s.y());
            let op = Op::ConvDgrad { geometry, input_size: (s.h, s.w), residual: false };
            (dy, weights(graph, copy, &s.filter()), op)
        }
        Pass::Wgrad => {
            let dy = activations(graph, "dy", copy, &s.y());
            (dy, activations(graph, "x", copy, &s.x()), Op::ConvWgrad { geometry, bias: false })
        }
    };
    Ok(([a.1, b.1], graph.apply(op, &[a.0, b.0])?))
}

fn gemm(graph: &mut Graph, s: &GemmShape, pass: Pass, copy: usize) -> Result<([Operand; 2], ValueId), GraphError> {
    // Rows of one image, as in a network: the depth is cut by what an image has, and single rows are vectors.
    let rows = |channels| if s.m == s.b { vec![s.b, channels] } else { vec![s.b, s.m / s.b, channels] };
    let (a, b, op) = match pass {
        Pass::Fprop => {
            let x = activations(graph, "x", copy, &rows(s.k));
            (x, weights(graph, copy, &[s.n, s.k]), Op::Linear(Epilogue::bias(false)))
        }
        Pass::Dgrad => {
            let dy = activations(graph, "dy", copy, &rows(s.n));
            (dy, weights(graph, copy, &[s.n, s.k]), Op::LinearDgrad { residual: false })
        }
        Pass::Wgrad => {
            let dy = activations(graph, "dy", copy, &rows(s.n));
            (dy, activations(graph, "x", copy, &rows(s.k)), Op::LinearWgrad { bias: false })
        }
    };
    Ok(([a.1, b.1], graph.apply(op, &[a.0, b.0])?))
}

/// Standard normals for operands of any length.
///
/// They repeat after a prime number of elements, so that no row, channel or image of a large operand is like another.
pub struct Noise {
    twice: Vec<f32>,
}

impl Noise {
    /// The period: the largest prime below 2^20.
    pub const PERIOD: usize = 1_048_573;

    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        let mut once = vec![0.0; Self::PERIOD];
        Sequence::new(seed, Stream::InitialNoise, 0, 0).fill_normal(&mut once);
        Self { twice: once.repeat(2) }
    }

    /// What an operand of `elements` elements repeats: other numbers for each copy and operand.
    pub fn pattern(&self, copy: usize, operand: usize, elements: usize) -> &[f32] {
        let start = (2 * copy + operand) * 104_729 % Self::PERIOD;
        &self.twice[start..start + elements.min(Self::PERIOD)]
    }
}
