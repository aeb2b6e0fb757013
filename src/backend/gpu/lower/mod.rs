//! From a plan to launches: one function a kernel family, each a pure function of the node and its addresses.

mod attention;
mod classifier;
mod conv;
mod diffusion;
mod elementwise;
mod embedding;
mod fast_divide;
mod fusions;
mod hopper;
mod image;
mod layers;
mod linear;
mod norm;
mod optim;
mod sampling;

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

pub use fusions::Fusions;
pub(super) use fusions::Roles;
use fusions::Stored;

use super::backend_error;
use super::choice::Tuning;
use super::driver::{DeviceLimits, DevicePtr, Driver, TensorMap, TensorMapSpec};
use super::fp8::Quantised;
use super::launch::{Args, Config};
use super::plan_memory::optimises;
use crate::backend::{BackendError, Precision, Store};
use crate::graph::plan::ALIGN;
use crate::graph::{DType, Graph, Node, Op, Plan, Region, Shape, Source as Origin, ValueId};
use hopper::image::Source;

/// Where the memory of a plan lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// Inputs and states.
    pub persistent: DevicePtr,
    /// Values that live during a run.
    pub arena: DevicePtr,
    /// Gradients of the parameters.
    pub grads: DevicePtr,
    /// Parameters, moments and average, in the order of [`Store::ALL`]; null without an optimiser.
    pub stores: [DevicePtr; 4],
    /// The parameters in bf16 at the same element offsets, where activations are bf16.
    pub mirror: DevicePtr,
    /// Memory of a single node.
    pub scratch: DevicePtr,
    /// Tables that never change.
    pub constants: DevicePtr,
    /// Tickets of kernels whose blocks meet, zero between launches.
    pub counters: DevicePtr,
    /// What prepared launches make of the parameters.
    pub derived: DevicePtr,
    /// Moments that products store for norms.
    pub moments: DevicePtr,
}

impl Addresses {
    /// Addresses to measure with: nothing runs on them.
    fn provisional() -> Self {
        let at = DevicePtr(1 << 40);
        Self {
            persistent: at,
            arena: at,
            grads: at,
            stores: [at; 4],
            mirror: at,
            scratch: at,
            constants: at,
            counters: at,
            derived: at,
            moments: at,
        }
    }
}

/// A launch whose kernel is not loaded yet.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Name of the kernel.
    pub kernel: String,
    /// How many threads.
    pub config: Config,
    /// Its argument structure.
    pub args: Args,
}

/// All launches of a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Lowered {
    /// In the order of execution.
    pub launches: Vec<Planned>,
    /// The nodes of the graph that each launch belongs to.
    pub nodes: Vec<Range<usize>>,
    /// Launches that run once after parameters were written, before the next run.
    pub prepared: Vec<Planned>,
    /// Bytes of workspace that the neediest node takes.
    pub scratch_bytes: usize,
    /// Bytes of tickets of all nodes.
    pub counter_bytes: usize,
    /// Bytes of everything that prepared launches make.
    pub derived_bytes: usize,
    /// Bytes of the moments that products store for norms.
    pub moment_bytes: usize,
    /// Content of the constants.
    pub constants: Vec<u8>,
}

/// What was decided about a plan before its launches are made.
#[derive(Clone, Debug, Default)]
pub(super) struct Decisions {
    /// Which values are made by fusion, and how.
    pub roles: Roles,
    /// Values that are stored as e4m3.
    pub fp8: Quantised,
    /// What was measured to be fastest, where it overrides the cost model.
    pub tuning: Arc<Tuning>,
}

/// The launches of a plan with addresses that stand for none: only their number and sizes mean something.
///
/// # Errors
/// [`BackendError::Device`] for an operation that has no kernel.
pub(super) fn measure(plan: &Plan, decisions: &Decisions, limits: &DeviceLimits) -> Result<Lowered, BackendError> {
    lower_on(plan, decisions, limits, Addresses::provisional(), None)
}

/// Turns every node of the plan into launches.
///
/// # Errors
/// [`BackendError::Device`] for an operation that has no kernel, or a tensor map that the device refuses.
pub(super) fn lower(
    plan: &Plan,
    decisions: &Decisions,
    driver: &dyn Driver,
    addresses: Addresses,
) -> Result<Lowered, BackendError> {
    lower_on(plan, decisions, driver.limits(), addresses, Some(driver))
}

fn lower_on(
    plan: &Plan,
    decisions: &Decisions,
    limits: &DeviceLimits,
    addresses: Addresses,
    encoder: Option<&dyn Driver>,
) -> Result<Lowered, BackendError> {
    let lowered = Lowered { moment_bytes: decisions.roles.moment_bytes(), ..Lowered::default() };
    let mut ctx = Lowering { plan, decisions, limits, addresses, encoder, scratch_used: 0, lowered };
    let nodes = plan.graph().nodes();
    let mut next = 0;
    while next < nodes.len() {
        let first = next;
        let layers = layers::together(&ctx, first);
        next = first + layers.len().max(1);
        if decisions.roles.makes_nothing(&nodes[first]) {
            continue;
        }
        ctx.scratch_used = 0;
        match layers {
            [] => dispatch(&mut ctx, &nodes[first])?,
            layers => layers::lower(&mut ctx, layers)?,
        }
        ctx.lowered.nodes.resize(ctx.lowered.launches.len(), first..next);
    }
    Ok(ctx.lowered)
}

fn dispatch(ctx: &mut Lowering, node: &Node) -> Result<(), BackendError> {
    match &node.op {
        Op::Attention { .. } | Op::AttentionGrad { .. } => attention::lower(ctx, node),
        Op::Activation(_)
        | Op::ActivationGrad(_)
        | Op::Add
        | Op::Affine { .. }
        | Op::ToAct
        | Op::RepeatBatch
        | Op::Constant { .. }
        | Op::AbsMax => elementwise::lower(ctx, node),
        Op::AddPerImage
        | Op::DivideByTime
        | Op::SumPixels
        | Op::Upsample2x
        | Op::Upsample2xGrad
        | Op::AvgPool2x
        | Op::AvgPool2xGrad
        | Op::Fir(_)
        | Op::Concat
        | Op::Slice { .. }
        | Op::Dropout { .. } => image::lower(ctx, node),
        Op::TimeEmbedding(_)
        | Op::FourierEmbedding
        | Op::TimestepIndex { .. }
        | Op::Embedding
        | Op::EmbeddingGrad { .. } => embedding::lower(ctx, node),
        Op::GroupNorm(_) | Op::GroupNormGrad(_) => norm::lower(ctx, node),
        Op::Conv2d(..) | Op::ConvDgrad { .. } | Op::ConvWgrad { .. } => conv::lower(ctx, node),
        Op::Linear(_) | Op::LinearDgrad { .. } | Op::LinearWgrad { .. } => linear::lower(ctx, node),
        Op::Noising(_) | Op::DiffusionLoss { .. } => diffusion::lower(ctx, node),
        Op::PoolTokens
        | Op::PoolTokensGrad { .. }
        | Op::FirstToken
        | Op::FirstTokenGrad { .. }
        | Op::SpreadPixels { .. }
        | Op::LogProbability => classifier::lower(ctx, node),
        Op::SamplerStep(_) | Op::StepTimestep { .. } | Op::Advance => sampling::lower(ctx, node),
        Op::GlobalNorm | Op::AdamW(_) => optim::lower(ctx, node),
    }
}

/// What to say about an operation that has no kernel.
fn missing(op: &Op) -> BackendError {
    BackendError::Device { device: "gpu".into(), reason: format!("the operation {} has no kernel", op.name()) }
}

fn planned<A: Pod>(kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &A) -> Planned {
    Planned { kernel: kernel.to_string(), config: Config { grid, block, cluster: 1, shared }, args: Args::new(args) }
}

/// What the launchers see of a plan, and where they put their launches.
pub(super) struct Lowering<'a> {
    plan: &'a Plan,
    decisions: &'a Decisions,
    limits: &'a DeviceLimits,
    addresses: Addresses,
    /// Encodes tensor maps; none while measuring.
    encoder: Option<&'a dyn Driver>,
    scratch_used: usize,
    lowered: Lowered,
}

impl Lowering<'_> {
    /// The graph.
    pub fn graph(&self) -> &Graph {
        self.plan.graph()
    }

    /// Shape of a value.
    pub fn shape(&self, v: ValueId) -> Shape {
        self.graph().shape(v)
    }

    /// Type of the activations.
    pub fn precision(&self) -> Precision {
        self.plan.precision()
    }

    /// The suffix of kernel names: the type of the activations.
    pub fn dtype(&self) -> &'static str {
        self.precision().name()
    }

    /// Bytes of an activation.
    pub fn act_bytes(&self) -> usize {
        DType::Act.bytes(self.precision())
    }

    /// What the device offers.
    pub fn limits(&self) -> &DeviceLimits {
        self.limits
    }

    /// What was measured to be fastest on the device.
    pub fn tuning(&self) -> &Tuning {
        &self.decisions.tuning
    }

    /// The scale of a value that is stored as e4m3, `scale` times less; none for all others.
    pub fn e4m3_scale(&self, v: ValueId) -> Option<f32> {
        self.decisions.fp8.get(&v).copied()
    }

    /// Address of a value; null if fusion removed it.
    pub fn ptr(&self, v: ValueId) -> DevicePtr {
        let Some(place) = self.plan.place(v) else { return DevicePtr::NULL };
        let base = match place.region {
            Region::Persistent => self.addresses.persistent,
            Region::Params => self.addresses.stores[Store::Params as usize],
            Region::Grads => self.addresses.grads,
            Region::Arena => self.addresses.arena,
        };
        base.offset(place.offset)
    }

    /// What a reader of `v` reads: the value, or those that fusion put in its place.
    pub fn sources(&self, v: ValueId) -> Vec<Source> {
        let source = |v: ValueId| Source { at: self.ptr(v), channels: self.shape(v).channels() };
        self.plan.replaced().resolve(v).into_iter().map(source).collect()
    }

    /// Whether a reader of `v` doubles the size of what it reads.
    pub fn is_upsampled(&self, v: ValueId) -> bool {
        self.decisions.roles.is_upsampled(v)
    }

    /// The moments that the norm that makes `y` reads, of each of its sources, and where they lie.
    pub fn read_moments(&self, y: ValueId) -> Option<Vec<(DevicePtr, Stored)>> {
        let stored = self.decisions.roles.moments_of(y)?;
        Some(stored.into_iter().map(|m| (self.addresses.moments.offset(m.offset), m)).collect())
    }

    /// Where the product that makes `v` stores moments of it; null if nobody asks for them.
    pub fn stored_moments(&self, v: ValueId) -> DevicePtr {
        self.decisions.roles.stored(v).map_or(DevicePtr::NULL, |m| self.addresses.moments.offset(m.offset))
    }

    /// Address of operand or result `index`; null where there is none.
    pub fn optional_ptr(&self, values: &[ValueId], index: usize) -> DevicePtr {
        values.get(index).map_or(DevicePtr::NULL, |&v| self.ptr(v))
    }

    /// Address of an f32 operand: a bias, a norm's parameters, a table.
    pub fn param_f32(&self, v: ValueId) -> DevicePtr {
        debug_assert!(self.precision() == Precision::F32 || self.graph().value(v).dtype == DType::F32);
        self.ptr(v)
    }

    /// Address of a weight in the type of the activations.
    ///
    /// Parameters have a copy in that type; any other f32 value is converted by one more launch.
    pub fn weight(&mut self, v: ValueId) -> DevicePtr {
        let value = self.graph().value(v);
        if self.precision() == Precision::F32 || value.dtype == DType::Act {
            return self.ptr(v);
        }
        if let (Origin::Param(_), Some(place)) = (&value.source, self.plan.place(v)) {
            return self.addresses.mirror.offset(place.offset / 2);
        }
        elementwise::to_act(self, v)
    }

    /// Workspace that belongs to this node until the next one runs.
    pub fn scratch(&mut self, bytes: usize) -> DevicePtr {
        let at = self.addresses.scratch.offset(self.scratch_used);
        self.scratch_used += bytes.next_multiple_of(ALIGN);
        self.lowered.scratch_bytes = self.lowered.scratch_bytes.max(self.scratch_used);
        at
    }

    /// A table that is uploaded once.
    pub fn constant<T: Pod>(&mut self, data: &[T]) -> DevicePtr {
        let constants = &mut self.lowered.constants;
        constants.resize(constants.len().next_multiple_of(ALIGN), 0);
        let at = self.addresses.constants.offset(constants.len());
        constants.extend_from_slice(bytemuck::cast_slice(data));
        at
    }

    /// `count` tickets (u32) of this node's own. They are zero when its launches begin, and its kernels leave them at zero.
    pub fn counters(&mut self, count: usize) -> DevicePtr {
        let at = self.addresses.counters.offset(self.lowered.counter_bytes);
        self.lowered.counter_bytes += (count * size_of::<u32>()).next_multiple_of(ALIGN);
        at
    }

    /// The encoded form of a tensor map, for the arguments of a launch; zeros while the plan is measured.
    ///
    /// # Errors
    /// [`BackendError::Device`] with the rule that the map breaks.
    pub fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, BackendError> {
        match self.encoder {
            Some(driver) => driver.tensor_map(spec).map_err(|e| backend_error(driver.name(), e)),
            None => {
                spec.check().map_err(|e| backend_error("gpu", e))?;
                Ok(TensorMap([0; 16]))
            }
        }
    }

    /// All gradients of parameters: address and length in bytes. Gaps between them hold zeros.
    pub fn grads(&self) -> (DevicePtr, usize) {
        (self.addresses.grads, self.plan.region_bytes(Region::Grads))
    }

    /// Per-parameter arrays, laid out as the parameters: see [`Plan::param_places`].
    pub fn store(&self, store: Store) -> DevicePtr {
        self.addresses.stores[store as usize]
    }

    /// The bf16 copy of the parameters, at half their byte offsets.
    pub fn mirror(&self) -> Option<DevicePtr> {
        (self.precision() == Precision::Bf16).then_some(self.addresses.mirror)
    }

    /// The plan, for launchers that need its layout.
    pub fn plan(&self) -> &Plan {
        self.plan
    }

    /// Whether `v` is a parameter that no run changes: what [`Lowering::prepare`] may read.
    pub fn is_fixed(&self, v: ValueId) -> bool {
        matches!(self.graph().value(v).source, Origin::Param(_)) && !optimises(self.graph())
    }

    /// Memory for weights that prepared launches derive from [fixed](Lowering::is_fixed) parameters: kept from run to run.
    pub fn derived(&mut self, bytes: usize) -> DevicePtr {
        let at = self.addresses.derived.offset(self.lowered.derived_bytes);
        self.lowered.derived_bytes += bytes.next_multiple_of(ALIGN);
        at
    }

    /// Appends a launch that runs once after parameters were written, before the next run. It may read
    /// [fixed](Lowering::is_fixed) parameters, constants and what earlier prepared launches wrote, and writes
    /// [derived](Lowering::derived) memory only.
    pub fn prepare<A: Pod>(&mut self, kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &A) {
        debug_assert!(!optimises(self.graph()), "{kernel}: a training plan changes its parameters in every run");
        self.lowered.prepared.push(planned(kernel, grid, block, shared, args));
    }

    /// Appends a launch.
    pub fn launch<A: Pod>(&mut self, kernel: &str, grid: [u32; 3], block: u32, shared: u32, args: &A) {
        self.lowered.launches.push(planned(kernel, grid, block, shared, args));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::driver::Swizzle;
    use crate::bench::program::Program;
    use crate::bench::{Pass, Product};

    fn limits() -> DeviceLimits {
        DeviceLimits {
            name: "test".into(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            shared_bytes: 227 << 10,
            memory_bytes: 1 << 40,
            shifted_operands: true,
        }
    }

    fn measuring<'a>(plan: &'a Plan, decisions: &'a Decisions, limits: &'a DeviceLimits) -> Lowering<'a> {
        let addresses = Addresses::provisional();
        Lowering { plan, decisions, limits, addresses, encoder: None, scratch_used: 0, lowered: Lowered::default() }
    }

    #[test]
    fn tickets_belong_to_one_node() {
        let (plan, decisions, limits) = (Plan::new(Graph::new()), Decisions::default(), limits());
        let mut ctx = measuring(&plan, &decisions, &limits);
        let (a, b) = (ctx.counters(3), ctx.counters(100));
        assert!(b.0 >= a.0 + 3 * 4 && b.0.is_multiple_of(4));
        assert!(ctx.lowered.counter_bytes as u64 >= b.0 - a.0 + 400);
        // Workspace is handed out again for the next node, tickets are not.
        ctx.scratch_used = 0;
        assert!(ctx.counters(1).0 >= b.0 + 400);
    }

    #[test]
    fn a_measured_table_decides_what_is_launched() {
        let (product, limits) = (Product::Conv("n2h9w17c72k136".parse().unwrap()), limits());
        let launched = |tuning: Tuning| {
            let decisions = Decisions { tuning: Arc::new(tuning), ..Decisions::default() };
            let first = |pass| {
                let plan = Program::new(&product, pass, 1).unwrap().plan.relaid(Precision::Bf16);
                let launches = measure(&plan, &decisions, &limits).unwrap().launches;
                launches.into_iter().map(|l| l.kernel).find(|k| k.starts_with("conv_hopper")).unwrap()
            };
            Pass::ALL.map(first)
        };
        let table = r#"{"test": {"fprop n2h9w17c72k136": "128x128.halo.8x16x1.whole.2+4",
            "dgrad n2h9w17c72k136": "128x128.taps.9x9x1.whole.3+3", "wgrad n2h9w17c72k136": "128.6x9x1.s6.2"}}"#;
        let kernels = |[f, d, w]: [&str; 3]| {
            let passes = [("fprop", f), ("dgrad", d), ("wgrad", w)];
            passes.map(|(pass, tile)| format!("conv_hopper_{pass}_{tile}_bf16"))
        };
        assert_eq!(launched(Tuning::default()), kernels(["64x64", "64x64", "3x64"]));
        assert_eq!(launched(Tuning::parse("", table, &limits).unwrap()), kernels(["128x128", "128x128", "3x128"]));
    }

    #[test]
    fn measuring_checks_tensor_maps_and_encodes_none() {
        let (plan, decisions, limits) = (Plan::new(Graph::new()), Decisions::default(), limits());
        let ctx = measuring(&plan, &decisions, &limits);
        let spec = TensorMapSpec {
            base: ctx.addresses.arena,
            element_bytes: 2,
            dims: vec![64, 8],
            strides: vec![128],
            box_dims: vec![64, 8],
            swizzle: Swizzle::Bytes128,
        };
        assert_eq!(ctx.tensor_map(&spec).unwrap(), TensorMap([0; 16]));
        let error = ctx.tensor_map(&TensorMapSpec { strides: vec![100], ..spec }).unwrap_err().to_string();
        assert!(error.contains("a stride of 100 bytes"), "{error}");
    }
}
