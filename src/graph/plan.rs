//! Memory planning: every value gets a place before anything runs.
//!
//! Values with overlapping lifetimes never overlap in memory; others share one arena. Larger values are placed first,
//! each at the lowest free offset, which comes close to the lower bound for networks with long skip connections.

use std::collections::BTreeMap;

use super::{Graph, Node, Source, ValueId};
use crate::backend::Precision;

/// Alignment of every value in bytes: a multiple of all vector widths and of a GPU's memory transactions.
pub const ALIGN: usize = 256;

/// The kinds of memory a plan uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// Inputs and states: kept from run to run.
    Persistent,
    /// Parameters, in the order of the graph.
    Params,
    /// Gradients, laid out as the parameters.
    Grads,
    /// Everything that lives only during a run.
    Arena,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which memory.
    pub region: Region,
    /// Offset in bytes, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Place {
    fn overlaps(&self, other: &Place) -> bool {
        self.region == other.region && self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// Values that a backend never makes, each with the values that its readers read in its place.
///
/// Those are made before it and are not replaced themselves; they live until its last reader has run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced(BTreeMap<ValueId, Vec<ValueId>>);

impl Replaced {
    /// Lets readers of `value` read `parts`.
    pub fn insert(&mut self, value: ValueId, parts: &[ValueId]) {
        debug_assert!(parts.iter().all(|part| !self.0.contains_key(part)), "a replaced value replaces another");
        self.0.insert(value, parts.to_vec());
    }

    /// Whether nothing makes `value`.
    pub fn contains(&self, value: ValueId) -> bool {
        self.0.contains_key(&value)
    }

    /// What a reader of `value` reads.
    pub fn resolve(&self, value: ValueId) -> Vec<ValueId> {
        self.0.get(&value).cloned().unwrap_or_else(|| vec![value])
    }

    /// Whether all results of a node are replaced.
    pub fn makes_nothing(&self, node: &Node) -> bool {
        !node.outputs.is_empty() && node.outputs.iter().all(|&v| self.contains(v))
    }

    /// How many values are replaced.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it replaces nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A graph with a place for every value: all that a backend needs to run it.
#[derive(Clone, Debug)]
pub struct Plan {
    graph: Graph,
    precision: Precision,
    replaced: Replaced,
    places: Vec<Option<Place>>,
    param_places: Vec<Place>,
    persistent_bytes: usize,
    param_bytes: usize,
    grad_bytes: usize,
    arena_bytes: usize,
}

impl Plan {
    /// Lays out a graph for 32-bit activations.
    pub fn new(graph: Graph) -> Self {
        Self::with_precision(graph, Precision::F32)
    }

    /// Lays out a graph for the activations of a precision.
    pub fn with_precision(graph: Graph, precision: Precision) -> Self {
        Self::without(graph, precision, Replaced::default())
    }

    /// Lays out a graph for the activations of a precision and a backend that does not make the `replaced` values: they
    /// have no place.
    pub fn without(graph: Graph, precision: Precision, replaced: Replaced) -> Self {
        let mut layout =
            Layout { places: vec![None; graph.values.len()], graph: &graph, precision, replaced: &replaced };
        let (param_places, param_bytes) = layout.place_params();
        let grad_bytes = layout.place_grads(&param_places, param_bytes);
        let persistent_bytes = layout.place_persistent();
        let arena_bytes = layout.place_arena();
        let places = layout.places;
        Self {
            graph,
            precision,
            replaced,
            places,
            param_places,
            persistent_bytes,
            param_bytes,
            grad_bytes,
            arena_bytes,
        }
    }

    /// The same graph laid out for another precision, with all of its values.
    pub fn relaid(self, precision: Precision) -> Self {
        self.relaid_without(precision, Replaced::default())
    }

    /// The same graph laid out for another precision, [without](Plan::without) some of its values.
    pub fn relaid_without(self, precision: Precision, replaced: Replaced) -> Self {
        if (self.precision, &self.replaced) == (precision, &replaced) {
            return self;
        }
        Self::without(self.graph, precision, replaced)
    }

    /// What the activations were laid out for.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The graph that was laid out.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The values that were left out, and what is read in their place.
    pub fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Place of a value; `None` for values that fusion removed.
    pub fn place(&self, value: ValueId) -> Option<Place> {
        self.places[value.index()]
    }

    /// Places of the parameters, in the order of [`Graph::params`].
    pub fn param_places(&self) -> &[Place] {
        &self.param_places
    }

    /// Size of a region in bytes.
    pub fn region_bytes(&self, region: Region) -> usize {
        match region {
            Region::Persistent => self.persistent_bytes,
            Region::Params => self.param_bytes,
            Region::Grads => self.grad_bytes,
            Region::Arena => self.arena_bytes,
        }
    }

    /// Bytes of all regions together: the peak memory of a run, apart from a backend's workspace.
    pub fn total_bytes(&self) -> usize {
        self.persistent_bytes + self.param_bytes + self.grad_bytes + self.arena_bytes
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// A plan in the making.
struct Layout<'a> {
    graph: &'a Graph,
    precision: Precision,
    replaced: &'a Replaced,
    places: Vec<Option<Place>>,
}

impl Layout<'_> {
    fn bytes(&self, value: ValueId) -> usize {
        let v = self.graph.value(value);
        v.shape.numel() * v.dtype.bytes(self.precision)
    }

    fn place_params(&mut self) -> (Vec<Place>, usize) {
        let mut offset = 0;
        let mut places = Vec::with_capacity(self.graph.param_values.len());
        for &v in &self.graph.param_values {
            let len = self.bytes(v);
            let place = Place { region: Region::Params, offset, len };
            offset += aligned(len);
            self.places[v.index()] = Some(place);
            places.push(place);
        }
        (places, offset)
    }

    /// Gives every gradient the place of its parameter; returns the size of their region.
    fn place_grads(&mut self, param_places: &[Place], param_bytes: usize) -> usize {
        let mut grad_bytes = 0;
        for (grad, place) in self.graph.grads.iter().zip(param_places) {
            if let Some(v) = grad {
                debug_assert_eq!(self.bytes(*v), place.len);
                self.places[v.index()] = Some(Place { region: Region::Grads, ..*place });
                grad_bytes = param_bytes;
            }
        }
        grad_bytes
    }

    /// Places inputs and states, but for given gradients, and the values bound to states where these are.
    fn place_persistent(&mut self) -> usize {
        let mut offset = 0;
        for (i, value) in self.graph.values.iter().enumerate() {
            if matches!(value.source, Source::Input | Source::State) && self.places[i].is_none() {
                let len = self.bytes(ValueId(i as u32));
                self.places[i] = Some(Place { region: Region::Persistent, offset, len });
                offset += aligned(len);
            }
        }
        for (value, state) in &self.graph.bindings {
            self.places[value.index()] = self.places[state.index()];
        }
        offset
    }

    fn place_arena(&mut self) -> usize {
        let lives = lifetimes(self.graph, self.replaced);
        let waiting: Vec<(ValueId, Lifetime)> = lives
            .iter()
            .enumerate()
            .filter(|(i, _)| self.places[*i].is_none())
            .filter_map(|(i, life)| life.map(|l| (ValueId(i as u32), l)))
            .collect();
        let sizes: Vec<(Lifetime, usize)> = waiting.iter().map(|&(v, life)| (life, self.bytes(v))).collect();
        let (offsets, total) = pack(&sizes);
        for (&(value, _), offset) in waiting.iter().zip(offsets) {
            let len = self.bytes(value);
            self.places[value.index()] = Some(Place { region: Region::Arena, offset, len });
        }
        total
    }
}

/// Offsets of buffers that share one memory, each a lifetime and a size in bytes, and the size of that memory. Buffers
/// that live at the same time do not overlap.
pub(crate) fn pack(buffers: &[(Lifetime, usize)]) -> (Vec<usize>, usize) {
    let mut waiting: Vec<usize> = (0..buffers.len()).collect();
    waiting.sort_by_key(|&i| std::cmp::Reverse(aligned(buffers[i].1)));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<(Lifetime, usize, usize)> = Vec::new();
    let mut total = 0;
    for i in waiting {
        let (life, size) = (buffers[i].0, aligned(buffers[i].1));
        let mut busy: Vec<(usize, usize)> =
            placed.iter().filter(|(l, ..)| l.meets(&life)).map(|&(_, offset, size)| (offset, offset + size)).collect();
        busy.sort_unstable();
        let mut offset = 0;
        for (start, end) in busy {
            if start >= offset + size {
                break;
            }
            offset = offset.max(end);
        }
        placed.push((life, offset, size));
        total = total.max(offset + size);
        offsets[i] = offset;
    }
    (offsets, total)
}

/// First and last node that touches a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub first: usize,
    pub last: usize,
}

impl Lifetime {
    fn meets(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

fn lifetimes(graph: &Graph, replaced: &Replaced) -> Vec<Option<Lifetime>> {
    let mut lives: Vec<Option<Lifetime>> = vec![None; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate().filter(|(_, node)| !replaced.makes_nothing(node)) {
        for v in &node.outputs {
            lives[v.index()] = Some(Lifetime { first: i, last: i });
        }
        for v in node.inputs.iter().flat_map(|&v| replaced.resolve(v)) {
            if let Some(life) = &mut lives[v.index()] {
                life.last = i;
            }
        }
    }
    for v in &graph.outputs {
        if let Some(life) = &mut lives[v.index()] {
            life.last = graph.nodes.len();
        }
    }
    lives
}

/// Checks that no two values that live at the same time overlap; returns the first pair that does.
///
/// Values bound to a state may lie on it.
pub fn find_overlap(plan: &Plan) -> Option<(ValueId, ValueId)> {
    let lives = lifetimes(plan.graph(), plan.replaced());
    let arena: Vec<(ValueId, Lifetime, Place)> = (0..lives.len())
        .filter_map(|i| {
            let v = ValueId(i as u32);
            let place = plan.place(v).filter(|p| p.region == Region::Arena)?;
            Some((v, lives[i]?, place))
        })
        .collect();
    arena.iter().enumerate().find_map(|(i, (a, la, pa))| {
        arena[..i].iter().find(|(_, lb, pb)| la.meets(lb) && pa.overlaps(pb)).map(|(b, ..)| (*a, *b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, DType, Op};

    #[test]
    fn only_activations_shrink_under_bf16() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 4, 4, 25], DType::Act);
        let t = graph.input("t", [1, 4, 4, 25], DType::F32);
        let w = graph.param(crate::graph::ParamSpec::plain("w", &[7, 25]));
        let y = graph.linear(x, w, None).unwrap();
        let z = graph.silu(y).unwrap();
        graph.keep(z);
        let wide = Plan::new(graph.clone());
        let narrow = wide.clone().relaid(Precision::Bf16);
        assert_eq!((wide.precision(), narrow.precision()), (Precision::F32, Precision::Bf16));
        let len = |plan: &Plan, v| plan.place(v).unwrap().len;
        for v in [x, y, z] {
            assert_eq!(2 * len(&narrow, v), len(&wide, v));
        }
        for v in [t, w] {
            assert_eq!(len(&narrow, v), len(&wide, v));
        }
        let bytes = |plan: &Plan| [Region::Persistent, Region::Params, Region::Arena].map(|r| plan.region_bytes(r));
        // Each value rounded up to 256 bytes: 400 and 112 activations, 400 and 175 f32.
        assert_eq!(bytes(&wide), [1792 + 1792, 768, 512 + 512]);
        assert_eq!(bytes(&narrow), [1024 + 1792, 768, 256 + 256]);
        assert_eq!(find_overlap(&narrow), None);
        let again = narrow.relaid(Precision::F32);
        assert_eq!(bytes(&again), bytes(&wide));
    }

    #[test]
    fn a_planted_overlap_is_found() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 4], DType::Act);
        let a = graph.apply(Op::Activation(Activation::Silu), &[x]).unwrap();
        let b = graph.apply(Op::Activation(Activation::Silu), &[a]).unwrap();
        let c = graph.apply(Op::Activation(Activation::Silu), &[b]).unwrap();
        let d = graph.apply(Op::Add, &[a, c]).unwrap();
        graph.keep(d);
        let plan = Plan::new(graph);
        assert_eq!(find_overlap(&plan), None);
        let planted = |moved: ValueId, onto: ValueId, by: usize| {
            let mut broken = plan.clone();
            let place = broken.places[onto.index()].unwrap();
            broken.places[moved.index()] = Some(Place { offset: place.offset + by, ..place });
            find_overlap(&broken)
        };
        // `a` lives until `d` is made, so neither `b` nor `c` may touch it, not even in its last bytes.
        assert_eq!(planted(b, a, 0), Some((b, a)));
        assert_eq!(planted(c, a, 12), Some((c, a)));
        // An operation's operands live while its results are written.
        assert_eq!(planted(d, c, 0), Some((d, c)));
        // `b` is read for the last time before `d` is made.
        assert_eq!(planted(d, b, 0), None);
    }

    #[test]
    fn parts_of_a_replaced_value_live_as_long_as_its_readers() {
        let mut graph = Graph::new();
        let x = graph.input("x", [1, 64], DType::Act);
        let a = graph.apply(Op::Activation(Activation::Silu), &[x]).unwrap();
        let b = graph.apply(Op::Activation(Activation::Silu), &[x]).unwrap();
        let joined = graph.apply(Op::Concat, &[a, b]).unwrap();
        let between = graph.apply(Op::Activation(Activation::Silu), &[x]).unwrap();
        let read = graph.apply(Op::Activation(Activation::Silu), &[joined]).unwrap();
        let out = graph.apply(Op::Concat, &[between, read]).unwrap();
        graph.keep(out);
        let whole = Plan::new(graph);
        let mut replaced = Replaced::default();
        replaced.insert(joined, &[a, b]);
        let plan = whole.clone().relaid_without(Precision::F32, replaced);
        assert_eq!(plan.place(joined), None);
        assert_eq!(find_overlap(&plan), None);
        // `out`, `read` and `between` live at the end.
        assert_eq!(plan.region_bytes(Region::Arena), 768 + 512 + 256);
        for part in [a, b] {
            for later in [between, read] {
                let mut broken = plan.clone();
                broken.places[later.index()] = plan.place(part).map(|p| Place { len: 256, ..p });
                assert_eq!(find_overlap(&broken), Some((later, part)));
            }
        }
        let again = plan.relaid(Precision::F32);
        assert_eq!(again.place(joined), whole.place(joined));
    }
}
