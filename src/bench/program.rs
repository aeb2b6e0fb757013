//! A plan that computes one operation several times, each time from and to other memory.
//!
//! A replay of it launches the operation once a copy, and allocates nothing.

use std::time::Duration;

use super::{ConvShape, GemmShape, Operation, Pass, Product};
use crate::backend::{BackendError, Executable, Store};
use crate::graph::{ConvGeometry, DType, Epilogue, Graph, GraphError, Op, ParamId, ParamSpec, Plan, ValueId};
use crate::rng::{Sequence, Stream};

/// What an operand holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fill {
    /// Standard normals.
    Normal,
    /// Normals.
    Near {
        /// Around this.
        mean: f32,
        /// So far.
        deviation: f32,
    },
    /// These, over and over.
    Numbers(Vec<f32>),
    /// These.
    Integers(Vec<u32>),
}

/// Where an operand lies.
#[derive(Clone, Copy, Debug)]
enum Target {
    Value(ValueId),
    Param(ParamId),
}

/// An operand of one copy.
#[derive(Clone, Debug)]
struct Operand {
    target: Target,
    fill: Fill,
}

impl Operand {
    fn value(value: ValueId, fill: Fill) -> Self {
        Self { target: Target::Value(value), fill }
    }

    fn param(param: ParamId) -> Self {
        Self { target: Target::Param(param), fill: Fill::Normal }
    }
}

/// Copies of one operation.
#[derive(Clone, Debug)]
pub struct Program {
    /// What a backend compiles.
    pub plan: Plan,
    operands: Vec<Vec<Operand>>,
    results: Vec<Vec<ValueId>>,
    /// Whether only the second node of each copy is measured.
    behind_product: bool,
}

/// Runs that are traced at most, however many replays were asked for: each launch of one has an event.
const TRACED: usize = 4;

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
            operands.push(values.to_vec());
            results.push(vec![result]);
        }
        Ok(Self { plan: Plan::new(graph), operands, results, behind_product: false })
    }

    /// `copies` of an operation; the optimiser, which works on all parameters of a plan, is there once.
    ///
    /// # Errors
    /// [`GraphError`] if the operands do not fit the operation.
    pub fn of(operation: &Operation, copies: usize) -> Result<Self, GraphError> {
        if operation.is_optimizer() {
            return Self::optimizer(operation);
        }
        let mut graph = Graph::new();
        let (mut operands, mut results) = (Vec::new(), Vec::new());
        let types = operation.op.operand_types(operation.shapes.len());
        for copy in 0..copies {
            let typed = operation.shapes.iter().zip(&types).enumerate();
            let mut values: Vec<ValueId> =
                typed.map(|(i, (&shape, &dtype))| graph.input(&format!("operand{i}.{copy}"), shape, dtype)).collect();
            let mut filled: Vec<Operand> =
                values.iter().enumerate().map(|(i, &v)| Operand::value(v, operation.fill(i))).collect();
            if operation.behind_product {
                let (product, weights) = convolved(&mut graph, values[0], copy)?;
                filled.push(weights);
                values[0] = product;
            }
            let made = graph.push(operation.op.clone(), &values)?;
            made.iter().for_each(|&v| graph.keep(v));
            operands.push(filled);
            results.push(made);
        }
        Ok(Self { plan: Plan::new(graph), operands, results, behind_product: operation.behind_product })
    }

    fn optimizer(operation: &Operation) -> Result<Self, GraphError> {
        let mut graph = Graph::new();
        let (mut operands, mut grads) = (Vec::new(), Vec::new());
        for (i, shape) in operation.shapes.iter().enumerate() {
            graph.param(ParamSpec::plain(format!("w{i}"), shape.dims()));
            operands.push(Operand::param(ParamId::new(i)));
            let grad = graph.input(&format!("dw{i}"), *shape, DType::F32);
            operands.push(Operand::value(grad, Fill::Normal));
            grads.push(grad);
        }
        graph.give_grads(&grads);
        let mut values = Vec::new();
        if let Op::AdamW(_) = operation.op {
            for (i, (name, len)) in [("norm", 1), ("hyper", crate::graph::AdamW::HYPER)].into_iter().enumerate() {
                let value = graph.input(name, [len], DType::F32);
                operands.push(Operand::value(value, operation.fill(i)));
                values.push(value);
            }
        }
        values.extend(grads);
        let made = graph.push(operation.op.clone(), &values)?;
        made.iter().for_each(|&v| graph.keep(v));
        Ok(Self { plan: Plan::new(graph), operands: vec![operands], results: vec![made], behind_product: false })
    }

    /// Time that the device spends on what is measured in `replays` runs.
    ///
    /// # Errors
    /// If the device fails.
    pub fn timed(&self, exe: &mut dyn Executable, replays: usize) -> Result<Duration, BackendError> {
        if !self.behind_product {
            return exe.run_timed(replays);
        }
        let trace = exe.trace(replays.clamp(1, TRACED))?;
        let measured = |step: usize| self.measures(trace.steps[step].nodes.start);
        let times = trace.runs.iter().flat_map(|run| run.iter().enumerate()).filter(|(step, _)| measured(*step));
        let all: Duration = times.map(|(_, time)| time.saturating_sub(trace.overhead)).sum();
        Ok(all.mul_f64(replays as f64 / trace.runs.len().max(1) as f64))
    }

    /// Whether the norms behind products read statistics that these left; true of all other operations.
    ///
    /// # Errors
    /// If the device fails.
    pub fn is_given(&self, exe: &mut dyn Executable) -> Result<bool, BackendError> {
        if !self.behind_product {
            return Ok(true);
        }
        let trace = exe.trace(1)?;
        let reads_moments = |name: &str| name.starts_with("norm_given") || name.starts_with("norm_combine");
        let kernels = trace.steps.iter().filter_map(|step| step.kernel.as_ref());
        Ok(kernels.filter(|kernel| reads_moments(&kernel.name)).count() >= self.copies())
    }

    fn measures(&self, node: usize) -> bool {
        !self.behind_product || matches!(self.plan.graph().nodes()[node].op, Op::GroupNorm(_))
    }

    /// Writes the operands of every copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&self, exe: &mut dyn Executable, noise: &Noise) -> Result<(), BackendError> {
        for (copy, operands) in self.operands.iter().enumerate() {
            for (which, operand) in operands.iter().enumerate() {
                let elements = self.elements(operand);
                let pattern = noise.pattern(copy, which, elements);
                match (operand.target, &operand.fill) {
                    (Target::Value(value), Fill::Normal) => exe.write_repeated(value, pattern)?,
                    (Target::Value(value), Fill::Near { mean, deviation }) => {
                        let near: Vec<f32> = pattern.iter().map(|z| mean + deviation * z).collect();
                        exe.write_repeated(value, &near)?;
                    }
                    (Target::Value(value), Fill::Numbers(numbers)) => exe.write_repeated(value, numbers)?,
                    (Target::Value(value), Fill::Integers(integers)) => exe.write_u32(value, integers)?,
                    (Target::Param(param), _) => {
                        let data: Vec<f32> = pattern.iter().copied().cycle().take(elements).collect();
                        exe.write_param(Store::Params, param, &data)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn elements(&self, operand: &Operand) -> usize {
        let graph = self.plan.graph();
        match operand.target {
            Target::Value(value) => graph.shape(value).numel(),
            Target::Param(param) => graph.params()[param.index()].numel(),
        }
    }

    /// The results of a copy; AdamW, which works in place, has none.
    pub fn results(&self, copy: usize) -> &[ValueId] {
        &self.results[copy]
    }

    /// How many copies.
    pub fn copies(&self) -> usize {
        self.results.len()
    }
}

/// A convolution of an image that keeps its shape.
fn convolved(graph: &mut Graph, x: ValueId, copy: usize) -> Result<(ValueId, Operand), GraphError> {
    let channels = graph.shape(x).channels();
    let (filter, operand) = weights(graph, copy, &[channels, 3, 3, channels]);
    let op = Op::Conv2d(ConvGeometry::SAME_3X3, Epilogue::bias(false));
    Ok((graph.apply(op, &[x, filter])?, operand))
}

fn weights(graph: &mut Graph, copy: usize, dims: &[usize]) -> (ValueId, Operand) {
    let id = ParamId::new(graph.params().len());
    (graph.param(ParamSpec::plain(format!("w{copy}"), dims)), Operand::param(id))
}

fn activations(graph: &mut Graph, name: &str, copy: usize, dims: &[usize]) -> (ValueId, Operand) {
    let value = graph.input(&format!("{name}{copy}"), dims, DType::Act);
    (value, Operand::value(value, Fill::Normal))
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
