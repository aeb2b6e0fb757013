//! The oracle: every operation as naive f64 loops, written to be obviously right.
//!
//! It keeps one vector per value and ignores the memory plan, so that it also judges the planner.
//!
//! With [`Precision::Bf16`] it is the yardstick of bf16 kernels: it rounds what such a backend holds in bf16 (activations
//! as an operation stores them, weights of convolutions and linear layers as they are read) and nothing inside an
//! operation.

mod activation;
mod attention;
mod classifier;
mod conv;
mod fir;
mod norm;
mod pointwise;
mod rounding;
mod sampling;
mod training;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::backend::trace::{Step, Trace};
use crate::backend::{Backend, BackendError, Executable, Precision, Store, check_bytes, check_floats, check_length};
use crate::graph::{AdamW, DType, Node, Op, ParamId, Plan, Shape, Source, ValueId};

/// An operand: shape and elements.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    shape: Shape,
    data: &'a [f64],
}

impl Tensor<'_> {
    /// Element of an `[N, H, W, C]` value.
    fn at(&self, n: usize, h: usize, w: usize, c: usize) -> f64 {
        let d = self.shape.dims();
        self.data[((n * d[1] + h) * d[2] + w) * d[3] + c]
    }

    fn dims4(&self) -> [usize; 4] {
        let d = self.shape.dims();
        [d[0], d[1], d[2], d[3]]
    }
}

/// The backend of `--device ref`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference {
    precision: Precision,
}

impl Reference {
    /// The f64 reference, or with [`Precision::Bf16`] the one that rounds as a bf16 backend must.
    pub fn new(precision: Precision) -> Self {
        Self { precision }
    }
}

impl Backend for Reference {
    fn name(&self) -> &'static str {
        "ref"
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>, BackendError> {
        let plan = plan.relaid(self.precision);
        let graph = plan.graph();
        let persistent = |v: &crate::graph::Value| matches!(v.source, Source::Input | Source::State);
        let values =
            graph.values().iter().map(|v| vec![0.0; if persistent(v) { v.shape.numel() } else { 0 }]).collect();
        let params: Vec<Vec<f64>> = graph.params().iter().map(|p| vec![0.0; p.numel()]).collect();
        let trains = graph.nodes().iter().any(|n| matches!(n.op, Op::AdamW(_)));
        let optimiser = if trains { params.clone() } else { Vec::new() };
        Ok(Box::new(RefExecutable { values, stores: [params, optimiser.clone(), optimiser.clone(), optimiser], plan }))
    }
}

struct RefExecutable {
    plan: Plan,
    values: Vec<Vec<f64>>,
    stores: [Vec<Vec<f64>>; 4],
}

impl RefExecutable {
    fn store(&self, store: Store, param: ParamId) -> Result<&Vec<f64>, BackendError> {
        let name = &self.plan.graph().params()[param.index()].name;
        self.stores[store as usize].get(param.index()).ok_or_else(|| BackendError::Length {
            what: format!("{store:?} of {name}"),
            expected: 0,
            actual: self.plan.graph().params()[param.index()].numel(),
        })
    }

    fn name(&self, value: ValueId) -> &str {
        &self.plan.graph().value(value).name
    }

    fn data(&self, value: ValueId) -> &[f64] {
        match self.plan.graph().value(value).source {
            Source::Param(p) => &self.stores[Store::Params as usize][p.index()],
            _ => &self.values[value.index()],
        }
    }

    /// The elements of a value as the backend holds them.
    fn stored(&self, value: ValueId, mut data: Vec<f64>) -> Vec<f64> {
        let rounds = self.plan.precision() == Precision::Bf16 && self.plan.graph().value(value).dtype == DType::Act;
        if rounds {
            data.iter_mut().for_each(|v| *v = rounding::bf16_nearest(*v));
        }
        data
    }

    /// An operand as the operation reads it.
    fn operand(&self, node: &Node, index: usize) -> Cow<'_, [f64]> {
        let data = self.data(node.inputs[index]);
        let has_weight =
            matches!(node.op, Op::Conv2d(..) | Op::ConvDgrad { .. } | Op::Linear(_) | Op::LinearDgrad { .. });
        if has_weight && index == 1 && self.plan.precision() == Precision::Bf16 {
            return data.iter().map(|&v| rounding::bf16_nearest(v)).collect();
        }
        Cow::Borrowed(data)
    }

    /// AdamW (Loshchilov & Hutter 2019) after clipping by the global norm, then the moving average.
    fn adamw(&mut self, o: &AdamW, inputs: &[ValueId]) {
        let norm = self.values[inputs[0].index()][0];
        let hyper = self.values[inputs[1].index()].clone();
        let (lr, correction1, correction2, ema_decay) = (hyper[0], hyper[1], hyper[2], hyper[3]);
        let clip = (o.max_grad_norm / (norm + 1e-6)).min(1.0);
        let grads = self.plan.graph().params().iter().enumerate();
        for (i, grad) in grads.filter_map(|(i, _)| Some((i, self.plan.graph().grad(ParamId(i as u32))?))) {
            let [params, moment1, moment2, ema] = &mut self.stores;
            for (k, g) in self.values[grad.index()].iter().enumerate() {
                let g = g * clip;
                let (p, m, v) = (&mut params[i][k], &mut moment1[i][k], &mut moment2[i][k]);
                *m = o.beta1 * *m + (1.0 - o.beta1) * g;
                *v = o.beta2 * *v + (1.0 - o.beta2) * g * g;
                *p -= lr * o.weight_decay * *p;
                *p -= lr * (*m / correction1) / ((*v / correction2).sqrt() + o.eps);
                ema[i][k] = ema_decay * ema[i][k] + (1.0 - ema_decay) * *p;
            }
        }
    }

    /// Evaluates one node.
    fn node(&mut self, i: usize) {
        let node = self.plan.graph().nodes()[i].clone();
        if let Op::AdamW(o) = &node.op {
            self.adamw(o, &node.inputs);
            return;
        }
        let graph = self.plan.graph();
        let operands: Vec<Cow<[f64]>> = (0..node.inputs.len()).map(|i| self.operand(&node, i)).collect();
        let inputs: Vec<Tensor> =
            (node.inputs.iter().zip(&operands)).map(|(&v, data)| Tensor { shape: graph.shape(v), data }).collect();
        let shapes: Vec<Shape> = node.outputs.iter().map(|&v| graph.shape(v)).collect();
        let results = eval(&node.op, &inputs, &shapes);
        for (v, data) in node.outputs.iter().zip(results) {
            debug_assert_eq!(data.len(), graph.shape(*v).numel(), "{}", node.op.name());
            self.values[v.index()] = self.stored(*v, data);
        }
        for &(value, state) in self.plan.graph().bindings() {
            if node.outputs.contains(&value) {
                self.values[state.index()] = self.values[value.index()].clone();
            }
        }
    }
}

impl Executable for RefExecutable {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError> {
        check_length(self.name(value), self.values[value.index()].len(), data.len())?;
        self.values[value.index()] = self.stored(value, data.iter().map(|&x| f64::from(x)).collect());
        Ok(())
    }

    fn write_u32(&mut self, value: ValueId, data: &[u32]) -> Result<(), BackendError> {
        debug_assert_eq!(self.plan.graph().value(value).dtype, DType::I32);
        check_length(self.name(value), self.values[value.index()].len(), data.len())?;
        self.values[value.index()] = data.iter().map(|&x| f64::from(x)).collect();
        Ok(())
    }

    fn read_f32(&self, value: ValueId, data: &mut [f32]) -> Result<(), BackendError> {
        check_floats(self.plan.graph().value(value), data.len())?;
        for (to, from) in data.iter_mut().zip(self.data(value)) {
            *to = *from as f32;
        }
        Ok(())
    }

    fn read_u8(&self, value: ValueId, data: &mut [u8]) -> Result<(), BackendError> {
        check_bytes(self.plan.graph().value(value), data.len())?;
        for (to, from) in data.iter_mut().zip(self.data(value)) {
            *to = *from as u8;
        }
        Ok(())
    }

    fn read_f64(&self, value: ValueId) -> Result<Vec<f64>, BackendError> {
        Ok(self.data(value).to_vec())
    }

    fn write_param(&mut self, store: Store, param: ParamId, data: &[f32]) -> Result<(), BackendError> {
        let len = self.store(store, param)?.len();
        check_length(&self.plan.graph().params()[param.index()].name, len, data.len())?;
        self.stores[store as usize][param.index()] = data.iter().map(|&x| f64::from(x)).collect();
        Ok(())
    }

    fn read_param(&self, store: Store, param: ParamId, data: &mut [f32]) -> Result<(), BackendError> {
        let source = self.store(store, param)?;
        check_length(&self.plan.graph().params()[param.index()].name, source.len(), data.len())?;
        for (to, from) in data.iter_mut().zip(source) {
            *to = *from as f32;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), BackendError> {
        (0..self.plan.graph().nodes().len()).for_each(|i| self.node(i));
        Ok(())
    }

    fn trace(&mut self, times: usize) -> Result<Trace, BackendError> {
        let nodes = 0..self.plan.graph().nodes().len();
        let steps = nodes.clone().map(|node| Step { nodes: node..node + 1, kernel: None }).collect();
        let mut timed = |i| {
            let begin = Instant::now();
            self.node(i);
            begin.elapsed()
        };
        let runs = (0..times).map(|_| nodes.clone().map(&mut timed).collect()).collect();
        Ok(Trace { steps, runs, overhead: Duration::ZERO })
    }

    fn memory_bytes(&self) -> usize {
        let len = |v: &Vec<f64>| v.len() * size_of::<f64>();
        self.values.iter().map(len).sum::<usize>() + self.stores.iter().flatten().map(len).sum::<usize>()
    }
}

/// Results of one operation.
fn eval(op: &Op, x: &[Tensor], out: &[Shape]) -> Vec<Vec<f64>> {
    match op {
        Op::Conv2d(g, e) => vec![conv::fprop(g, e, x, out[0])],
        Op::ConvDgrad { geometry, .. } => vec![conv::dgrad(geometry, x, out[0])],
        Op::ConvWgrad { geometry, bias } => conv::wgrad(geometry, *bias, x, out[0]),
        Op::Linear(e) => vec![conv::linear(e, x, out[0])],
        Op::LinearDgrad { .. } => vec![conv::linear_dgrad(x, out[0])],
        Op::LinearWgrad { bias } => conv::linear_wgrad(*bias, x),
        Op::GroupNorm(n) => norm::group_norm(n, x),
        Op::GroupNormGrad(n) => norm::group_norm_grad(n, x),
        Op::Attention { heads } => attention::attention(*heads, x[0]),
        Op::AttentionGrad { heads } => vec![attention::attention_grad(*heads, x[0], x[1], x[2])],
        Op::Noising(n) => training::noising(n, x),
        Op::DiffusionLoss { objective, noise } => training::loss(objective, *noise, x),
        Op::GlobalNorm => vec![vec![x.iter().flat_map(|t| t.data).map(|g| g * g).sum::<f64>().sqrt()]],
        Op::StepTimestep { table, batch } => sampling::timestep(table, *batch, x[0]),
        Op::SamplerStep(s) => sampling::step(s, x),
        Op::Advance => vec![vec![x[0].data[0] + 1.0]],
        Op::PoolTokens
        | Op::PoolTokensGrad { .. }
        | Op::FirstToken
        | Op::FirstTokenGrad { .. }
        | Op::SpreadPixels { .. }
        | Op::LogProbability => classifier::eval(op, x, out[0]),
        _ => vec![pointwise::eval(op, x, out[0])],
    }
}
