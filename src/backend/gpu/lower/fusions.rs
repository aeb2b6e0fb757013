//! What is fused around the products of Hopper when a plan is lowered: which values are never made, and which norms read
//! moments that a product stored. The graph stays as it is.
//!
//! A role depends on the graph and on the shape of one image, never on the batch, so that an image's bits do not.

use std::collections::{BTreeMap, BTreeSet};

use super::hopper::image::{ImageProduct, Source};
use super::norm;
use crate::backend::Precision;
use crate::backend::gpu::driver::{DeviceLimits, DevicePtr};
use crate::backend::gpu::plan_memory::optimises;
use crate::graph::plan::{Lifetime, Replaced, pack};
use crate::graph::{ConvGeometry, DType, Epilogue, Graph, Node, Op, Source as Origin, ValueId};

/// Which fusions around convolutions a device may make. All by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusions {
    /// A 3x3 convolution of an upsampled image reads the small image, with filters whose taps are summed: 4/9 of the
    /// products, and no copy.
    pub upsample: bool,
    /// Readers of a concatenation read its two parts: no copy.
    pub concat: bool,
    /// Norms read moments that the product before them stored: no pass of their own for statistics.
    pub statistics: bool,
}

impl Fusions {
    /// None of them.
    pub const NONE: Self = Self { upsample: false, concat: false, statistics: false };
}

impl Default for Fusions {
    fn default() -> Self {
        Self { upsample: true, concat: true, statistics: true }
    }
}

/// Moments that a product stores of its result: `[images, parts, channels]` of (mean, sum of squared deviations), f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::gpu) struct Stored {
    /// Bytes from the begin of the memory of moments.
    pub offset: usize,
    /// Parts of an image.
    pub parts: usize,
    /// Pixels of a part.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
}

/// Bytes of a channel's mean and sum of squared deviations.
const MOMENT_BYTES: usize = 8;

impl Stored {
    fn bytes(&self, images: usize) -> usize {
        images * self.parts * self.channels * MOMENT_BYTES
    }
}

/// What is fused in a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::backend::gpu) struct Roles {
    replaced: Replaced,
    upsampled: BTreeSet<ValueId>,
    stored: BTreeMap<ValueId, Stored>,
    /// The results of norms that read moments, with the values whose moments these are.
    normed: BTreeMap<ValueId, Vec<ValueId>>,
    moment_bytes: usize,
}

impl Roles {
    /// The roles of a graph's values on a device.
    pub fn new(graph: &Graph, precision: Precision, limits: &DeviceLimits, fusions: Fusions) -> Self {
        let mut analysis = Analysis::new(graph, precision, limits);
        if fusions.upsample && !optimises(graph) {
            analysis.find_upsampled();
        }
        if fusions.concat {
            analysis.find_concatenations();
        }
        if fusions.statistics {
            analysis.find_statistics();
        }
        analysis.roles
    }

    /// Values that nothing makes.
    pub fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Whether a reader of `v` doubles the size of what it reads.
    pub fn is_upsampled(&self, v: ValueId) -> bool {
        self.upsampled.contains(&v)
    }

    /// The moments that the product that makes `v` stores.
    pub fn stored(&self, v: ValueId) -> Option<Stored> {
        self.stored.get(&v).copied()
    }

    /// The moments that the norm that makes `y` reads: of the one or two parts of its operand.
    pub fn moments_of(&self, y: ValueId) -> Option<Vec<Stored>> {
        self.normed.get(&y)?.iter().map(|part| self.stored(*part)).collect()
    }

    /// Bytes of all moments.
    pub fn moment_bytes(&self) -> usize {
        self.moment_bytes
    }

    /// Whether all results of a node are left out.
    pub fn makes_nothing(&self, node: &Node) -> bool {
        self.replaced.makes_nothing(node)
    }
}

/// A node that reads a value, and as which operand.
#[derive(Clone, Copy)]
struct Reader {
    node: usize,
    operand: usize,
}

struct Analysis<'a> {
    graph: &'a Graph,
    precision: Precision,
    limits: &'a DeviceLimits,
    readers: Vec<Vec<Reader>>,
    kept: Vec<bool>,
    roles: Roles,
}

impl<'a> Analysis<'a> {
    fn new(graph: &'a Graph, precision: Precision, limits: &'a DeviceLimits) -> Self {
        let mut readers = vec![Vec::new(); graph.values().len()];
        for (node, n) in graph.nodes().iter().enumerate() {
            for (operand, v) in n.inputs.iter().enumerate() {
                readers[v.index()].push(Reader { node, operand });
            }
        }
        // Whatever counts as a use without being read by a node is wanted after the run.
        let kept = graph.use_counts().iter().zip(&readers).map(|(uses, readers)| *uses > readers.len()).collect();
        Self { graph, precision, limits, readers, kept, roles: Roles::default() }
    }

    fn node(&self, reader: Reader) -> &'a Node {
        &self.graph.nodes()[reader.node]
    }

    /// The only node that reads a value that nobody keeps.
    fn only_reader(&self, v: ValueId) -> Option<&'a Node> {
        match (&self.readers[v.index()][..], self.kept[v.index()]) {
            ([reader], false) if reader.operand == 0 => Some(self.node(*reader)),
            _ => None,
        }
    }

    /// Whether a value may be read later than where the graph reads it: a state may have changed by then.
    fn may_be_read_later(&self, v: ValueId) -> bool {
        matches!(self.graph.value(v).source, Origin::Node { .. } | Origin::Input)
    }

    /// The product of a node that reads `parts` as its operand 0, if the kernels of Hopper take it.
    fn product(&self, node: &Node, parts: &[ValueId], upsampled: bool) -> Option<ImageProduct> {
        let source = |&v: &ValueId| Source { at: DevicePtr::NULL, channels: self.graph.shape(v).channels() };
        let product = ImageProduct::forward(self.graph, node, parts.iter().map(source).collect())?.upsampled(upsampled);
        product.taken(self.precision, adds_tensor(&node.op), self.limits).ok()?;
        Some(product)
    }

    fn find_upsampled(&mut self) {
        for node in self.graph.nodes() {
            let (Op::Upsample2x, &[small], &[large]) = (&node.op, &node.inputs[..], &node.outputs[..]) else {
                continue;
            };
            let Some(reader) = self.only_reader(large) else { continue };
            let is_weight = matches!(self.graph.value(reader.inputs[1]).source, Origin::Param(_));
            let fits = matches!(&reader.op, Op::Conv2d(geometry, _) if *geometry == ConvGeometry::SAME_3X3);
            if fits && is_weight && self.may_be_read_later(small) && self.product(reader, &[small], true).is_some() {
                self.roles.replaced.insert(large, &[small]);
                self.roles.upsampled.insert(large);
            }
        }
    }

    fn find_concatenations(&mut self) {
        for node in self.graph.nodes() {
            let (Op::Concat, &[a, b], &[joined]) = (&node.op, &node.inputs[..], &node.outputs[..]) else { continue };
            let reads_parts = |reader: &Reader| {
                let by = self.node(*reader);
                let takes = match &by.op {
                    Op::GroupNorm(_) => self.precision == Precision::Bf16 && self.limits.compute_capability.0 == 9,
                    _ => self.product(by, &[a, b], false).is_some(),
                };
                takes && reader.operand == 0
            };
            let readers = &self.readers[joined.index()];
            let legal = !self.kept[joined.index()] && !readers.is_empty() && readers.iter().all(reads_parts);
            if legal && [a, b].iter().all(|&part| self.may_be_read_later(part)) {
                self.roles.replaced.insert(joined, &[a, b]);
            }
        }
    }

    /// Every norm whose whole operand was made by products. Where only one half of a concatenation was, the norm computes
    /// its own: it would have to read the other half anyway, by one more launch. Where the concatenation is written (a plan
    /// that trains), its parts may be gone when the norm runs.
    fn find_statistics(&mut self) {
        let mut lives: BTreeMap<ValueId, (Stored, Lifetime)> = BTreeMap::new();
        for (index, node) in self.graph.nodes().iter().enumerate() {
            let Op::GroupNorm(norm) = &node.op else { continue };
            let parts = self.roles.replaced.resolve(node.inputs[0]);
            let stored: Option<Vec<_>> = parts.iter().map(|&part| self.storable(part)).collect();
            let Some(stored) = stored else { continue };
            let sources: Vec<_> = stored.iter().map(|(_, moments)| (moments.channels, *moments)).collect();
            let (pixels, element) = (self.graph.shape(node.inputs[0]).pixels(), DType::Act.bytes(self.precision));
            if !norm::reads_moments(pixels, &sources, norm.groups, element) {
                continue;
            }
            for (&part, (made, moments)) in parts.iter().zip(stored) {
                let life = Lifetime { first: made, last: index };
                lives.entry(part).and_modify(|(_, l)| l.last = index).or_insert((moments, life));
            }
            self.roles.normed.insert(node.outputs[0], parts);
        }
        let bytes = |(v, (moments, life)): (&ValueId, &(Stored, Lifetime))| {
            (*life, moments.bytes(self.graph.shape(*v).batch()))
        };
        let buffers: Vec<(Lifetime, usize)> = lives.iter().map(bytes).collect();
        let (offsets, total) = pack(&buffers);
        self.roles.moment_bytes = total;
        let placed = lives.iter().zip(offsets).map(|((&v, &(moments, _)), offset)| (v, Stored { offset, ..moments }));
        self.roles.stored = placed.collect();
    }

    /// The node that makes a value and the moments that it can store.
    fn storable(&self, v: ValueId) -> Option<(usize, Stored)> {
        let Origin::Node { node: made, index: 0 } = self.graph.value(v).source else { return None };
        let node = &self.graph.nodes()[made];
        let x = *node.inputs.first()?;
        let product = self.product(node, &self.roles.replaced.resolve(x), self.roles.is_upsampled(x))?;
        let residual = adds_tensor(&node.op);
        let (cell, parts) = product.cells(self.precision, residual)?;
        // Asked for moments, the product needs another tile and other patches.
        product.clone().with_moments(DevicePtr(1)).taken(self.precision, residual, self.limits).ok()?;
        Some((made, Stored { offset: 0, parts, pixels: cell.pixels(), channels: product.columns }))
    }
}

fn adds_tensor(op: &Op) -> bool {
    matches!(op, Op::Conv2d(_, Epilogue { residual: true, .. }) | Op::Linear(Epilogue { residual: true, .. }))
}

#[cfg(test)]
mod tests;
