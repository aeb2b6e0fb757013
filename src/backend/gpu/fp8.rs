//! fp8 for sampling: which convolutions read e4m3, and with what scales.
//!
//! A quantised convolution's input is stored as `e4m3(x / scale)`, one scale a tensor, measured beforehand
//! ([`crate::sample::calibrate`]); its filter as `e4m3(w / scale[k])`, one scale an output channel, taken from the weights.
//! Products are summed as of bf16, scaled back, and stored as bf16 like everything else.

use std::collections::BTreeMap;

use super::choice::{ImageProblem, takes_image};
use super::driver::DeviceLimits;
use crate::backend::{BackendError, Executable};
use crate::graph::{ConvGeometry, Graph, GraphError, Node, Op, Plan, Source, ValueId};

/// The largest e4m3.
pub const LARGEST: f32 = 448.0;

/// Fewest channels on either side: with fewer, most of a slab of 128 would be empty.
const FEWEST_CHANNELS: usize = 32;

/// Values that are stored as e4m3, and what 1 in them stands for.
pub(super) type Quantised = BTreeMap<ValueId, f32>;

/// The scale of each quantised convolution's input, by the convolution's scope.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fp8Scales(BTreeMap<String, f32>);

impl Fp8Scales {
    /// From the largest magnitude of each input: it becomes the largest e4m3. Where all is zero, the scale is 1.
    pub fn from_maxima(maxima: impl IntoIterator<Item = (String, f32)>) -> Self {
        let scale = |largest: f32| if largest > 0.0 { largest / LARGEST } else { 1.0 };
        Self(maxima.into_iter().map(|(scope, largest)| (scope, scale(largest))).collect())
    }

    /// Scopes and scales, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f32)> {
        self.0.iter().map(|(scope, &scale)| (scope.as_str(), scale))
    }

    /// Number of convolutions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A convolution that may be quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its scope.
    pub scope: String,
    /// Its position in [`Graph::nodes`].
    pub node: usize,
    /// Its input, which nothing else reads.
    pub source: ValueId,
    geometry: ConvGeometry,
    residual: bool,
}

/// The convolutions of a network that may be quantised: 3x3 or 1x1 at stride 1, with a parameter as filter, on what a group
/// norm made for them alone, from and to at least 32 channels, input channels in multiples of 16. That leaves out a network's
/// first convolution and, for its few channels, its last.
pub fn candidates(graph: &Graph) -> Vec<Candidate> {
    let uses = graph.use_counts();
    let candidate = |(node, n): (usize, &Node)| {
        let Op::Conv2d(geometry, epilogue) = n.op else { return None };
        let (source, filter) = (n.inputs[0], n.inputs[1]);
        let (c, k) = (graph.shape(source).channels(), graph.shape(filter).dims()[0]);
        let normed = match graph.value(source).source {
            Source::Node { node, index: 0 } => matches!(graph.nodes()[node].op, Op::GroupNorm(_)),
            _ => false,
        };
        let fits = geometry.stride == 1
            && [(1, 1), (3, 3)].contains(&geometry.kernel)
            && normed
            && uses[source.index()] == 1
            && matches!(graph.value(filter).source, Source::Param(_))
            && c >= FEWEST_CHANNELS
            && c.is_multiple_of(16)
            && k >= FEWEST_CHANNELS
            && k.is_multiple_of(8);
        let residual = epilogue.residual;
        fits.then(|| Candidate { scope: n.scope.clone(), node, source, geometry, residual })
    };
    graph.nodes().iter().enumerate().filter_map(candidate).collect()
}

/// The values of a plan that become e4m3: inputs of candidates that have a scale and that the kernels take.
pub(super) fn quantised(graph: &Graph, limits: &DeviceLimits, scales: &Fp8Scales) -> Quantised {
    let value = |c: Candidate| {
        let scale = *scales.0.get(&c.scope)?;
        let (x, y) = (graph.shape(c.source), graph.shape(graph.nodes()[c.node].outputs[0]));
        let (source, out) = (x.height_width(), y.height_width());
        let problem = ImageProblem::fprop(&c.geometry, x.batch(), source, out, &[x.channels()], y.channels());
        takes_image(&problem.with_residual(c.residual).with_e4m3(true), limits).ok()?;
        Some((c.source, scale))
    };
    candidates(graph).into_iter().filter_map(value).collect()
}

/// A plan that measures what calibration needs: the [largest magnitude](Op::AbsMax) of the input of each candidate.
#[derive(Clone, Debug)]
pub struct Measuring {
    /// What a backend compiles; otherwise the same.
    pub plan: Plan,
    scopes: Vec<String>,
    maxima: Vec<ValueId>,
    largest: Vec<f32>,
}

impl Measuring {
    /// Measures in a plan that is not differentiated.
    ///
    /// # Errors
    /// None for a plan whose group norms make activations, as all do.
    pub fn new(plan: &Plan) -> Result<Self, GraphError> {
        let mut graph = plan.graph().clone();
        let (scopes, values): (Vec<String>, Vec<ValueId>) =
            candidates(&graph).into_iter().map(|c| (c.scope, c.source)).unzip();
        let maxima = graph.measure(&values)?;
        Ok(Self { plan: Plan::new(graph), largest: vec![0.0; scopes.len()], scopes, maxima })
    }

    /// Takes in what the last run of the plan measured.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&mut self, exe: &dyn Executable) -> Result<(), BackendError> {
        for (largest, &value) in self.largest.iter_mut().zip(&self.maxima) {
            let mut now = [0.0];
            exe.read_f32(value, &mut now)?;
            // Not `max`, which would lose a NaN.
            if now[0].is_nan() || now[0] > *largest {
                *largest = now[0];
            }
        }
        Ok(())
    }

    /// The scales by the largest of all runs.
    ///
    /// # Errors
    /// The scope of a convolution whose input was not finite.
    pub fn scales(&self) -> Result<Fp8Scales, String> {
        let measured = self.scopes.iter().zip(&self.largest);
        match measured.clone().find(|(_, largest)| !largest.is_finite()) {
            Some((scope, _)) => Err(scope.clone()),
            None => Ok(Fp8Scales::from_maxima(measured.map(|(scope, &largest)| (scope.clone(), largest)))),
        }
    }
}
