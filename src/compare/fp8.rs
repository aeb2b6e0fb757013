//! What fp8 costs: a network's output along the sampler's way, and each quantised convolution alone.

use half::bf16;
use serde::Serialize;

use super::keep_everything;
use super::rule::Errors;
use crate::backend::gpu::fp8::{Candidate, Fp8Scales, candidates};
use crate::backend::{Backend, BackendError, Executable, Store};
use crate::graph::{DType, Graph, GraphError, Node, ParamId, Plan, Source, ValueId};
use crate::program::{Batch, ForwardProgram};
use crate::sample::Visited;
use crate::unet::{ConfigError, UNetConfig};

/// The largest [`Errors::norm`] of a model output that passes. fp8 has no bits to promise and no rounding that a sum of
/// products could be held to; far beyond this, the noise that it adds is what a sampler sees.
pub const LIMIT: f64 = 0.1;

/// Errors against the exact result, with convolutions of e4m3 and without.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Both {
    /// In fp8.
    pub fp8: Errors,
    /// In bf16.
    pub bf16: Errors,
}

/// The model's output in one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OutputReport {
    /// t.
    pub timestep: f32,
    /// How far it is off.
    #[serde(flatten)]
    pub errors: Both,
    /// Whether fp8 is within [`LIMIT`].
    pub passed: bool,
}

/// One quantised convolution, with the group norm before it, on exact operands: the largest errors of all steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConvReport {
    /// The layer.
    pub scope: String,
    /// What 1 in its quantised input stands for.
    pub scale: f32,
    /// How far its result is off.
    #[serde(flatten)]
    pub errors: Both,
}

/// Why the comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Fp8Error {
    /// The configuration makes no network for this batch.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A convolution of the network makes no graph of its own.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A network with its weights, and what it is given.
pub struct Given<'a> {
    /// Its configuration.
    pub config: &'a UNetConfig,
    /// In the order of its parameters.
    pub weights: &'a [Vec<f32>],
    /// Batch and image.
    pub batch: Batch,
    /// Timesteps and x_t.
    pub visited: &'a [Visited],
    /// Class of each image, for a model with classes.
    pub labels: Option<&'a [u32]>,
}

/// The three that are compared.
pub struct Devices<'a> {
    /// The oracle.
    pub exact: &'a dyn Backend,
    /// Without quantisation.
    pub bf16: &'a dyn Backend,
    /// With `scales`.
    pub fp8: &'a dyn Backend,
    /// Of the quantised inputs.
    pub scales: &'a Fp8Scales,
}

/// Compares the output at each timestep, and each quantised convolution alone.
///
/// # Errors
/// What the devices say.
pub fn compare_fp8(given: &Given, devices: &Devices) -> Result<(Vec<OutputReport>, Vec<ConvReport>), Fp8Error> {
    let program = ForwardProgram::new(given.config, given.batch, false)?;
    let start = |backend: &dyn Backend, plan: Plan| -> Result<Box<dyn Executable>, BackendError> {
        let mut exe = backend.compile(plan)?;
        for (i, data) in given.weights.iter().enumerate() {
            exe.write_param(Store::Params, ParamId::new(i), data)?;
        }
        Ok(exe)
    };
    let run = |exe: &mut dyn Executable, visited: &Visited| -> Result<Vec<f64>, BackendError> {
        exe.write_f32(program.x, &visited.x)?;
        exe.write_f32(program.t, &vec![visited.timestep; given.batch.n])?;
        if let (Some(class), Some(labels)) = (program.class, given.labels) {
            exe.write_u32(class, labels)?;
        }
        exe.run()?;
        exe.read_f64(program.out)
    };
    let mut exact = start(devices.exact, keep_everything(&program.plan))?;
    let mut bf16 = start(devices.bf16, program.plan.clone())?;
    let mut fp8 = start(devices.fp8, program.plan.clone())?;
    let graph = program.plan.graph();
    let mut layers = Vec::new();
    for candidate in candidates(graph) {
        if let Some((_, scale)) = devices.scales.iter().find(|(scope, _)| *scope == candidate.scope) {
            layers.push((Layer::new(graph, &candidate)?, scale, None));
        }
    }
    let mut outputs = Vec::new();
    for visited in given.visited {
        let expected = run(exact.as_mut(), visited)?;
        let errors = Both {
            fp8: Errors::between(&run(fp8.as_mut(), visited)?, &expected),
            bf16: Errors::between(&run(bf16.as_mut(), visited)?, &expected),
        };
        outputs.push(OutputReport { timestep: visited.timestep, errors, passed: errors.fp8.norm <= LIMIT });
        for (layer, _, worst) in &mut layers {
            let operands = layer.operands(exact.as_ref())?;
            let on = |backend| layer.run(backend, &operands, given.weights);
            let expected = on(devices.exact)?;
            let now = Both {
                fp8: Errors::between(&on(devices.fp8)?, &expected),
                bf16: Errors::between(&on(devices.bf16)?, &expected),
            };
            let before = worst.unwrap_or(now);
            *worst = Some(Both { fp8: larger(before.fp8, now.fp8), bf16: larger(before.bf16, now.bf16) });
        }
    }
    let report = |(layer, scale, worst): (Layer, f32, Option<Both>)| {
        Some(ConvReport { scope: layer.scope, scale, errors: worst? })
    };
    Ok((outputs, layers.into_iter().filter_map(report).collect()))
}

fn larger(a: Errors, b: Errors) -> Errors {
    Errors { worst: a.worst.max(b.worst), mean: a.mean.max(b.mean), norm: a.norm.max(b.norm) }
}

/// A group norm and the convolution behind it as a program of their own.
struct Layer {
    scope: String,
    plan: Plan,
    /// Its operands, and where the network has them.
    operands: Vec<(ValueId, ValueId)>,
    filter: ParamId,
    out: ValueId,
}

impl Layer {
    fn new(graph: &Graph, candidate: &Candidate) -> Result<Self, GraphError> {
        let conv = &graph.nodes()[candidate.node];
        let mut single = Graph::new();
        let mut operands = Vec::new();
        let mut input = |single: &mut Graph, v: ValueId| {
            let of = graph.value(v);
            let value = single.input(&format!("operand {}", operands.len()), of.shape, of.dtype);
            operands.push((value, v));
            value
        };
        let made = |v: ValueId| graph.nodes().iter().find(|n: &&Node| n.outputs.contains(&v));
        let mut source = candidate.source;
        if let Some(norm) = made(source) {
            let inputs: Vec<ValueId> = norm.inputs.iter().map(|&v| input(&mut single, v)).collect();
            source = single.push(norm.op.clone(), &inputs)?[0];
        }
        let filter = match graph.value(conv.inputs[1]).source {
            Source::Param(id) => id,
            _ => ParamId::new(0),
        };
        single.set_scope(conv.scope.as_str());
        let weight = single.param(graph.params()[filter.index()].clone());
        let mut inputs = vec![source, weight];
        inputs.extend(conv.inputs[2..].iter().map(|&v| input(&mut single, v)));
        let out = single.push(conv.op.clone(), &inputs)?[0];
        single.keep(out);
        Ok(Self { scope: conv.scope.clone(), plan: Plan::new(single), operands, filter, out })
    }

    /// The operands' values in a network that ran, activations rounded to bf16.
    fn operands(&self, network: &dyn Executable) -> Result<Vec<Vec<f32>>, BackendError> {
        let value = |&(single, v): &(ValueId, ValueId)| {
            let act = self.plan.graph().value(single).dtype == DType::Act;
            let round = |x: f64| if act { bf16::from_f64(x).to_f32() } else { x as f32 };
            Ok(network.read_f64(v)?.into_iter().map(round).collect())
        };
        self.operands.iter().map(value).collect()
    }

    fn run(
        &self,
        backend: &dyn Backend,
        operands: &[Vec<f32>],
        weights: &[Vec<f32>],
    ) -> Result<Vec<f64>, BackendError> {
        let mut exe = backend.compile(self.plan.clone())?;
        for ((value, _), data) in self.operands.iter().zip(operands) {
            exe.write_f32(*value, data)?;
        }
        exe.write_param(Store::Params, ParamId::new(0), &weights[self.filter.index()])?;
        exe.run()?;
        exe.read_f64(self.out)
    }
}
