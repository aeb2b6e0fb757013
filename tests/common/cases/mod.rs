//! Operations at odd shapes, as cases that every backend must pass.
//!
//! An id begins with the operation's family, `conv2d/..`, by which a backend's tests pick theirs. Each case is small
//! enough for a simulator: at most some 0.1 GFLOP with its gradients, most of them a thousandth of that.

mod classifier;
mod diffusion;
mod elementwise;
mod layers;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use warpdiff::graph::Op;

/// What an operand holds. Its element type follows from the operation: [`Op::operand_types`].
pub enum Operand {
    /// Uniform in -1..1.
    Random(Vec<usize>),
    /// Uniform in 0.5..1.5, for divisors, variances and noise levels.
    Positive(Vec<usize>),
    /// Uniform in 15..17: a mean that is large beside the deviation.
    Offset(Vec<usize>),
    /// These numbers.
    Values(Vec<usize>, Vec<f32>),
    /// These integers.
    Integers(Vec<u32>),
}

impl Operand {
    /// The elements of a floating-point operand: multiples of 2^-16, so that small steps from them are exact.
    pub fn elements(&self, rng: &mut StdRng) -> Vec<f32> {
        match self {
            Operand::Random(dims) => uniform(rng, dims.iter().product(), -1.0..1.0),
            Operand::Positive(dims) => uniform(rng, dims.iter().product(), 0.5..1.5),
            Operand::Offset(dims) => uniform(rng, dims.iter().product(), 15.0..17.0),
            Operand::Values(_, data) => data.clone(),
            Operand::Integers(_) => unreachable!("integers are written as they are"),
        }
    }

    pub fn dims(&self) -> Vec<usize> {
        match self {
            Operand::Random(d) | Operand::Positive(d) | Operand::Offset(d) | Operand::Values(d, _) => d.clone(),
            Operand::Integers(data) => vec![data.len()],
        }
    }
}

pub fn uniform(rng: &mut StdRng, n: usize, range: std::ops::Range<f32>) -> Vec<f32> {
    (0..n).map(|_| (rng.random_range(range.clone()) * 65536.0).round() / 65536.0).collect()
}

/// One operation and its operands.
pub struct Case {
    pub id: String,
    pub op: Op,
    pub operands: Vec<Operand>,
}

impl Case {
    fn new(id: impl Into<String>, op: Op, operands: Vec<Operand>) -> Self {
        Case { id: id.into(), op, operands }
    }

    /// What the id begins with.
    pub fn family(&self) -> &str {
        self.id.split('/').next().unwrap()
    }
}

fn random(dims: &[usize]) -> Operand {
    Operand::Random(dims.to_vec())
}

/// `2x4x6x3`.
fn extent(dims: &[usize]) -> String {
    dims.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

/// Uniform numbers that belong to a case, whatever the seed of its random operands.
fn fixed(seed: u64, n: usize, range: std::ops::Range<f32>) -> Vec<f32> {
    uniform(&mut StdRng::seed_from_u64(seed), n, range)
}

/// Every differentiable operation, `scale` times larger than its smallest interesting shape. At scale 1 the cases are
/// small enough for finite differences.
pub fn differentiable(scale: usize) -> Vec<Case> {
    [layers::small(scale), elementwise::small(scale)].into_iter().flatten().collect()
}

/// Every differentiable operation over channel counts 1, 3, 8, 15, 24 and 128, batch 1, odd images, single pixels,
/// and sizes at which kernels split their work.
pub fn sweep() -> Vec<Case> {
    [layers::sweep(), elementwise::sweep()].into_iter().flatten().collect()
}

/// Operations without a gradient.
pub fn forward_only() -> Vec<Case> {
    [
        elementwise::forward_only(),
        diffusion::noising(),
        diffusion::losses(),
        diffusion::sampler_steps(),
        classifier::heads(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// All cases, each with whether its gradients are to be compared, too.
pub fn all() -> Vec<(Case, bool)> {
    let mut cases = differentiable(1);
    // Some cases do not depend on the scale.
    let larger = differentiable(4).into_iter().filter(|c| cases.iter().all(|small| small.id != c.id));
    let larger: Vec<Case> = larger.collect();
    cases.extend(larger);
    cases.extend(sweep());
    let differentiable = cases.into_iter().map(|c| (c, true));
    differentiable.chain(forward_only().into_iter().map(|c| (c, false))).collect()
}
