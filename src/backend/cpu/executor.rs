//! Replays a plan on the CPU.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conv::{self, PackedConv};
use super::layers::{Layer, epilogue};
use super::memory::{Buffer, Memory, Span, bytes, bytes_mut, is_integer, spans};
use super::{attention, classifier, norm, optimizer, pointwise, sampling, training};
use crate::backend::trace::{Step, Trace};
use crate::backend::{BackendError, Executable, Store, check_bytes, check_floats, check_length};
use crate::graph::{LossNoise, Node, NoiseSource, Op, ParamId, Plan, Region, ValueId};

/// A plan with its memory, ready to run.
pub(super) struct CpuExecutable {
    plan: Arc<Plan>,
    pool: Arc<rayon::ThreadPool>,
    memory: Memory,
    spans: Vec<Span>,
    layers: Vec<Option<Layer>>,
    /// First moment, second moment and EMA, laid out as the parameters; empty without an optimiser.
    moments: [Buffer; 3],
    packed: Packed,
    workspace: Buffer,
}

/// Weights in the order that the kernels want.
///
/// They are kept where parameters do not change, and packed into the workspace at each use where they do.
enum Packed {
    Kept { storage: Buffer, at: Vec<usize>, valid: bool },
    PerUse,
}

impl CpuExecutable {
    pub fn new(plan: Plan, pool: Arc<rayon::ThreadPool>) -> Result<Self, BackendError> {
        let graph = plan.graph();
        let layers: Vec<Option<Layer>> = graph.nodes().iter().map(|n| Layer::of(graph, n)).collect();
        let trains = plan.region_bytes(Region::Grads) > 0;
        let optimises = graph.nodes().iter().any(|n| matches!(n.op, Op::AdamW(_)));
        let packed = if trains {
            Packed::PerUse
        } else {
            let mut end = 0;
            let at = layers
                .iter()
                .map(|l| {
                    let start = end;
                    end += l.map_or(0, |l| l.packed_len());
                    start
                })
                .collect();
            Packed::Kept { storage: Buffer::zeroed(end)?, at, valid: false }
        };
        let threads = pool.current_num_threads();
        let need = |(node, layer): (&Node, &Option<Layer>)| match layer {
            Some(l) => l.workspace(threads) + if trains { l.packed_len() } else { 0 },
            None => workspace(&plan, node, threads),
        };
        let workspace = graph.nodes().iter().zip(&layers).map(need).max().unwrap_or(0);
        let moment = if optimises { plan.region_bytes(Region::Params) / 4 } else { 0 };
        Ok(Self {
            memory: Memory::new(&plan)?,
            spans: spans(&plan),
            moments: [Buffer::zeroed(moment)?, Buffer::zeroed(moment)?, Buffer::zeroed(moment)?],
            workspace: Buffer::zeroed(workspace)?,
            packed,
            layers,
            pool,
            plan: Arc::new(plan),
        })
    }

    fn span(&self, value: ValueId) -> Span {
        self.spans[value.index()]
    }

    fn check(&self, value: ValueId, len: usize) -> Result<Span, BackendError> {
        check_floats(self.plan.graph().value(value), len)?;
        Ok(self.span(value))
    }

    fn param_span(&self, param: ParamId) -> Span {
        self.span(self.plan.graph().param_value(param))
    }

    fn check_param(&self, store: Store, param: ParamId, len: usize) -> Result<(), BackendError> {
        let spec = &self.plan.graph().params()[param.index()];
        let there = store == Store::Params || !self.moments[0].slice().is_empty();
        check_length(&spec.name, if there { spec.numel() } else { 0 }, len)
    }

    fn pack_weights(&mut self) {
        let Packed::Kept { storage, at, valid } = &mut self.packed else { return };
        if std::mem::replace(valid, true) {
            return;
        }
        for ((node, layer), at) in self.plan.graph().nodes().iter().zip(&self.layers).zip(at) {
            if let Some(Layer { shape, pass: Some(pass) }) = layer {
                let weights = self.memory.get(self.spans[node.inputs[1].index()]);
                PackedConv::pack(shape, *pass, weights, &mut storage.slice_mut()[*at..]);
            }
        }
    }

    /// Runs a node that has weights: `y = layer(x, w)`.
    fn layer(&mut self, index: usize, layer: Layer, node: &Node) {
        let value = |i: usize| node.inputs.get(i).map_or(Span::NONE, |v| self.spans[v.index()]);
        let out = |i: usize| node.outputs.get(i).map_or(Span::NONE, |v| self.spans[v.index()]);
        let (shape, workspace) = (&layer.shape, self.workspace.slice_mut());
        let Some(pass) = layer.pass else {
            let ([dy, x], [dw, db]) = self.memory.split([value(0), value(1)], [out(0), out(1)]);
            let db = (!db.is_empty()).then_some(db);
            return conv::wgrad(shape, x, dy, dw, db, workspace);
        };
        let extra = extra_spans(&node.op, value);
        let ([x, w, bias, per_image, residual], [y]) =
            self.memory.split([value(0), value(1), extra[0], extra[1], extra[2]], [out(0)]);
        let (packed, workspace) = match &self.packed {
            Packed::Kept { storage, at, .. } => {
                (PackedConv::from_packed(shape, pass, &storage.slice()[at[index]..]), workspace)
            }
            Packed::PerUse => {
                let (storage, rest) = workspace.split_at_mut(layer.packed_len());
                (PackedConv::pack(shape, pass, w, storage), rest)
            }
        };
        match &node.op {
            Op::Conv2d(_, e) | Op::Linear(e) => {
                conv::fprop(shape, x, &packed, &epilogue(e, bias, per_image, residual), y, workspace);
            }
            _ => {
                let residual = (!residual.is_empty()).then_some(residual);
                conv::dgrad(shape, x, &packed, residual, y, workspace);
            }
        }
    }

    fn node(&mut self, index: usize, node: &Node) {
        if let Some(layer) = self.layers[index] {
            return self.layer(index, layer, node);
        }
        let plan = Arc::clone(&self.plan);
        let shape = |v: ValueId| plan.graph().shape(v);
        let inp = |i: usize| node.inputs.get(i).map_or(Span::NONE, |v| self.spans[v.index()]);
        let out = |i: usize| node.outputs.get(i).map_or(Span::NONE, |v| self.spans[v.index()]);
        let workspace = self.workspace.slice_mut();
        match &node.op {
            Op::GroupNorm(n) => {
                let reads = [inp(0), inp(1), inp(2), if n.modulated { inp(3) } else { Span::NONE }];
                let ([x, gamma, beta, scale_shift], [y, stats]) = self.memory.split(reads, [out(0), out(1)]);
                let t = norm::Forward { x, gamma, beta, scale_shift };
                norm::forward(n, shape(node.inputs[0]), t, y, stats, bytemuck::cast_slice_mut(workspace));
            }
            Op::GroupNormGrad(n) => {
                let modulation = if n.modulated { inp(4) } else { Span::NONE };
                let stats = inp(if n.modulated { 5 } else { 4 });
                let reads = [inp(0), inp(1), inp(2), inp(3), modulation, stats];
                let writes = [out(0), out(1), out(2), out(3)];
                let ([dy, x, gamma, beta, scale_shift, statistics], [dx, dgamma, dbeta, dscale_shift]) =
                    self.memory.split(reads, writes);
                let forward = norm::Forward { x, gamma, beta, scale_shift };
                let t = norm::Backward { dy, forward, statistics };
                let out = norm::Gradients { dx, dgamma, dbeta, dscale_shift };
                norm::backward(n, shape(node.inputs[1]), t, out, bytemuck::cast_slice_mut(workspace));
            }
            Op::Attention { heads } => {
                let ([qkv], [y, lse]) = self.memory.split([inp(0)], [out(0), out(1)]);
                let g = attention::Geometry::new(shape(node.inputs[0]), *heads);
                attention::forward(g, qkv, y, lse, workspace);
            }
            Op::AttentionGrad { heads } => {
                let ([dy, qkv, y, lse], [dqkv]) = self.memory.split([inp(0), inp(1), inp(2), inp(3)], [out(0)]);
                let g = attention::Geometry::new(shape(node.inputs[1]), *heads);
                attention::backward(g, attention::Backward { dy, qkv, y, lse }, dqkv, workspace);
            }
            Op::Noising(n) => {
                let ([x0, example, key], [x_t, t, eps]) =
                    self.memory.split([inp(0), inp(1), inp(2)], [out(0), out(1), out(2)]);
                training::noising(n, x0, bytemuck::cast_slice(example), key_of(key), training::Noised { x_t, t, eps });
            }
            Op::DiffusionLoss { objective, noise } => {
                let ([out_, x0, a, b, t], [losses, dout]) =
                    self.memory.split([inp(0), inp(1), inp(2), inp(3), inp(4)], [out(0), out(1)]);
                let noise = match noise {
                    LossNoise::Given => training::Noise::Given { x_t: a, eps: b },
                    LossNoise::Redrawn => {
                        training::Noise::Redrawn { examples: bytemuck::cast_slice(a), key: key_of(b), room: workspace }
                    }
                };
                let operands = training::LossOperands { out: out_, x0, noise, t };
                training::loss(objective, operands, shape(node.inputs[1]).channels(), losses, dout);
            }
            Op::StepTimestep { table, .. } => {
                let ([step], [t]) = self.memory.split([inp(0)], [out(0)]);
                t.fill(table.rows[bytemuck::cast_slice::<f32, u32>(step)[0] as usize].timestep);
            }
            Op::SamplerStep(s) => {
                let z = if s.noise == NoiseSource::Given { inp(6) } else { Span::NONE };
                let [older, saved] = s.history_operands().map(|at| at.map_or(Span::NONE, inp));
                let [older_next, saved_next] = s.history_results().map(|at| at.map_or(Span::NONE, out));
                let picture = if s.picture.is_some() { out(2) } else { Span::NONE };
                let gradient = s.gradient_operand().map_or(Span::NONE, inp);
                let reads = [inp(0), inp(1), inp(2), inp(3), inp(4), inp(5), z, older, saved, gradient];
                let writes = [out(0), out(1), older_next, saved_next];
                let (
                    [x_t, model, x0_prev, step, sample, key, z, older, saved, gradient],
                    [x, x0, older_next, saved_next],
                ) = self.memory.split(reads, writes);
                start_from(x_t, x);
                start_from(x0_prev, x0);
                start_from(older, older_next);
                start_from(saved, saved_next);
                let operands = sampling::Operands {
                    model,
                    step: bytemuck::cast_slice(step)[0],
                    sample: bytemuck::cast_slice(sample),
                    key: key_of(key),
                    z,
                    gradient,
                };
                let channels = (shape(node.inputs[0]).channels(), shape(node.inputs[1]).channels());
                let states = sampling::States { x, x0_prev: x0, x0_prev2: older_next, saved: saved_next };
                sampling::step(s, channels, operands, states, bytemuck::cast_slice_mut(workspace));
                let ([x], [picture]) = self.memory.split([out(0)], [picture]);
                sampling::picture(x, s.picture.unwrap_or_default(), bytes_mut(picture));
            }
            Op::PoolTokens
            | Op::PoolTokensGrad { .. }
            | Op::FirstToken
            | Op::FirstTokenGrad { .. }
            | Op::SpreadPixels { .. } => {
                let ([x, positions], [y]) = self.memory.split([inp(0), inp(1)], [out(0)]);
                classifier::tokens(&node.op, shape(node.inputs[0]), shape(node.outputs[0]), [x, positions], y);
            }
            Op::LogProbability => {
                let ([logits, label], [log_p, gradient]) = self.memory.split([inp(0), inp(1)], [out(0), out(1)]);
                classifier::log_probability(logits, bytemuck::cast_slice(label), log_p, gradient);
            }
            Op::Advance => {
                let ([before], [step]) = self.memory.split([inp(0)], [out(0)]);
                start_from(before, step);
                bytemuck::cast_slice_mut::<f32, u32>(step)[0] += 1;
            }
            Op::GlobalNorm => {
                let norm =
                    optimizer::global_norm(self.memory.region(Region::Grads), bytemuck::cast_slice_mut(workspace));
                self.memory.get_mut(out(0))[0] = norm;
            }
            Op::AdamW(o) => {
                let norm = self.memory.get(inp(0))[0];
                let hyper: [f32; 4] = std::array::from_fn(|i| self.memory.get(inp(1))[i]);
                let graph = plan.graph();
                for (i, place) in plan.param_places().iter().enumerate() {
                    let Some(grad) = graph.grad(ParamId(i as u32)) else { continue };
                    let range = place.offset / 4..(place.offset + place.len) / 4;
                    let ([g], [p]) = self.memory.split([self.spans[grad.index()]], [Span::from(*place)]);
                    let [m, v, ema] = self.moments.each_mut().map(|b| &mut b.slice_mut()[range.clone()]);
                    optimizer::adamw(o, norm, hyper, optimizer::Tensors { p, g, m, v, ema });
                }
            }
            op => {
                let third = if node.inputs.len() > 2 { inp(2) } else { Span::NONE };
                let ([a, b, c], [y]) = self.memory.split([inp(0), inp(1), third], [out(0)]);
                let first = node.inputs.first().unwrap_or(&node.outputs[0]);
                let shapes = pointwise::Shapes { x: shape(*first), out: shape(node.outputs[0]) };
                pointwise::run(op, shapes, [a, b, c], y);
            }
        }
    }
}

/// Spans of bias, per-image vector and residual, where the operation has them.
fn extra_spans(op: &Op, value: impl Fn(usize) -> Span) -> [Span; 3] {
    match op {
        Op::Conv2d(_, e) | Op::Linear(e) => {
            let mut next = 1;
            [e.bias, e.per_image, e.residual].map(|used| {
                next += usize::from(used);
                if used { value(next) } else { Span::NONE }
            })
        }
        _ => [Span::NONE, Span::NONE, value(2)],
    }
}

/// Gives an operation that works in place its operand; an empty one lies there already.
fn start_from(operand: &[f32], result: &mut [f32]) {
    if !operand.is_empty() {
        result.copy_from_slice(operand);
    }
}

fn key_of(key: &[f32]) -> [u32; 2] {
    [key[0].to_bits(), key[1].to_bits()]
}

/// Floats of workspace of a node without weights.
fn workspace(plan: &Plan, node: &Node, threads: usize) -> usize {
    let shape = |v: ValueId| plan.graph().shape(v);
    match &node.op {
        Op::GroupNorm(_) => 2 * norm::workspace(shape(node.inputs[0])),
        Op::GroupNormGrad(_) => 2 * norm::workspace(shape(node.inputs[1])),
        Op::Attention { heads } => attention::Geometry::new(shape(node.inputs[0]), *heads).forward_workspace(threads),
        Op::AttentionGrad { heads } => {
            attention::Geometry::new(shape(node.inputs[1]), *heads).backward_workspace(threads)
        }
        Op::DiffusionLoss { noise: LossNoise::Redrawn, .. } => 2 * shape(node.inputs[1]).numel(),
        Op::SamplerStep(_) => 2 * shape(node.inputs[0]).numel(),
        Op::GlobalNorm => 2 * optimizer::partial_sums(plan.region_bytes(Region::Grads) / 4),
        _ => 0,
    }
}

impl Executable for CpuExecutable {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_f32(&mut self, value: ValueId, data: &[f32]) -> Result<(), BackendError> {
        debug_assert!(!is_integer(&self.plan, value));
        let span = self.check(value, data.len())?;
        self.memory.get_mut(span).copy_from_slice(data);
        Ok(())
    }

    fn write_u32(&mut self, value: ValueId, data: &[u32]) -> Result<(), BackendError> {
        debug_assert!(is_integer(&self.plan, value));
        let span = self.check(value, data.len())?;
        self.memory.get_mut(span).copy_from_slice(bytemuck::cast_slice(data));
        Ok(())
    }

    fn read_f32(&self, value: ValueId, data: &mut [f32]) -> Result<(), BackendError> {
        let span = self.check(value, data.len())?;
        data.copy_from_slice(self.memory.get(span));
        Ok(())
    }

    fn read_u8(&self, value: ValueId, data: &mut [u8]) -> Result<(), BackendError> {
        check_bytes(self.plan.graph().value(value), data.len())?;
        data.copy_from_slice(&bytes(self.memory.get(self.span(value)))[..data.len()]);
        Ok(())
    }

    fn write_param(&mut self, store: Store, param: ParamId, data: &[f32]) -> Result<(), BackendError> {
        self.check_param(store, param, data.len())?;
        let span = self.param_span(param);
        match store {
            Store::Params => self.memory.get_mut(span).copy_from_slice(data),
            _ => span.of_mut(self.moments[store as usize - 1].slice_mut()).copy_from_slice(data),
        }
        if let Packed::Kept { valid, .. } = &mut self.packed {
            *valid = false;
        }
        Ok(())
    }

    fn read_param(&self, store: Store, param: ParamId, data: &mut [f32]) -> Result<(), BackendError> {
        self.check_param(store, param, data.len())?;
        let span = self.param_span(param);
        data.copy_from_slice(match store {
            Store::Params => self.memory.get(span),
            _ => span.of(self.moments[store as usize - 1].slice()),
        });
        Ok(())
    }

    fn run(&mut self) -> Result<(), BackendError> {
        let pool = Arc::clone(&self.pool);
        let plan = Arc::clone(&self.plan);
        pool.install(|| {
            self.pack_weights();
            for (i, node) in plan.graph().nodes().iter().enumerate() {
                self.node(i, node);
            }
        });
        Ok(())
    }

    fn trace(&mut self, times: usize) -> Result<Trace, BackendError> {
        let (pool, plan) = (Arc::clone(&self.pool), Arc::clone(&self.plan));
        let nodes = plan.graph().nodes();
        let mut run = || {
            self.pack_weights();
            let timed = |(i, node)| {
                let begin = Instant::now();
                self.node(i, node);
                begin.elapsed()
            };
            nodes.iter().enumerate().map(timed).collect()
        };
        let runs = pool.install(|| (0..times).map(|_| run()).collect());
        let steps = (0..nodes.len()).map(|node| Step { nodes: node..node + 1, kernel: None }).collect();
        Ok(Trace { steps, runs, overhead: Duration::ZERO })
    }

    fn memory_bytes(&self) -> usize {
        let packed = match &self.packed {
            Packed::Kept { storage, .. } => storage.bytes(),
            Packed::PerUse => 0,
        };
        let moments: usize = self.moments.iter().map(Buffer::bytes).sum();
        self.memory.bytes() + moments + packed + self.workspace.bytes()
    }
}
