//! Single-operation graphs at odd shapes, shared by the tests of every backend.
#![allow(dead_code)] // Each test binary uses a part.

pub mod memory;
pub mod models;
pub mod process;
pub mod training;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use warpdiff::backend::{Backend, Executable};
use warpdiff::diffusion::{SamplerKind, SchedulerConfig, StepTable, VarianceType};
use warpdiff::graph::autodiff::backward;
use warpdiff::graph::op::{ConvGeometry, Epilogue, GroupNorm, NoiseSource, Op, SamplerStep, TimeEmbedding};
use warpdiff::graph::{DType, Graph, Plan, Source, ValueId};

/// Integer operands have fixed values, the others are random.
pub enum Operand {
    Random(Vec<usize>),
    /// Random in 0.5..1.5, for divisors and noise levels.
    Positive(Vec<usize>),
    Integers(Vec<u32>),
}

pub struct Case {
    pub name: String,
    pub op: Op,
    pub operands: Vec<Operand>,
}

fn random(dims: &[usize]) -> Operand {
    Operand::Random(dims.to_vec())
}

fn case(name: impl Into<String>, op: Op, operands: Vec<Operand>) -> Case {
    Case { name: name.into(), op, operands }
}

fn epilogue(bits: usize, scale: f64) -> Epilogue {
    Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale }
}

fn epilogue_operands(e: &Epilogue, out: &[usize]) -> Vec<Operand> {
    let k = out[out.len() - 1];
    let mut operands = Vec::new();
    if e.bias {
        operands.push(random(&[k]));
    }
    if e.per_image {
        operands.push(random(&[out[0], k]));
    }
    if e.residual {
        operands.push(random(out));
    }
    operands
}

/// Every differentiable operation, `scale` times larger than its smallest interesting shape.
pub fn differentiable(scale: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let geometries = [
        ("3x3", (3, 3), 1, (1, 1, 1, 1)),
        ("1x1", (1, 1), 1, (0, 0, 0, 0)),
        ("stride 2", (3, 3), 2, (1, 1, 1, 1)),
        ("stride 2, right and bottom", (3, 3), 2, (0, 0, 1, 1)),
        ("valid", (3, 3), 1, (0, 0, 0, 0)),
    ];
    for (i, (name, kernel, stride, padding)) in geometries.into_iter().enumerate() {
        let g = ConvGeometry { kernel, stride, padding };
        for (n, h, w, c, k) in [(2, 4, 6, 3, 2), (1, 5, 3, 1, 3 * scale), (3, 8, 8, 8 * scale, 5 * scale)] {
            let (oh, ow) = g.output_size(h, w).unwrap();
            let e = epilogue(i + n, if n == 2 { 0.7 } else { 1.0 });
            let mut operands = vec![random(&[n, h, w, c]), random(&[k, kernel.0, kernel.1, c])];
            operands.extend(epilogue_operands(&e, &[n, oh, ow, k]));
            cases.push(case(format!("conv {name} {n}x{h}x{w}x{c} -> {k}"), Op::Conv2d(g, e), operands));
        }
    }
    for bits in 0..8 {
        let e = epilogue(bits, if bits > 4 { 0.5 } else { 1.0 });
        let (n, i, o) = (3, 5 * scale, 7);
        let mut operands = vec![random(&[n, 2, 3, i]), random(&[o, i])];
        operands.extend(epilogue_operands(&e, &[n, 2, 3, o]));
        cases.push(case(format!("linear {bits}"), Op::Linear(e), operands));
    }
    for (groups, c, silu, modulated) in
        [(1, 3, false, false), (3, 6, true, false), (5, 5, false, true), (2, 8 * scale, true, true)]
    {
        let norm = GroupNorm { groups, eps: 1e-3, silu, modulated };
        let (n, h, w) = (2, 3, 4 * scale);
        let mut operands = vec![random(&[n, h, w, c]), random(&[c]), random(&[c])];
        if modulated {
            operands.push(random(&[n, 2 * c]));
        }
        cases.push(case(format!("group norm {norm:?}"), Op::GroupNorm(norm), operands));
    }
    for (heads, c, h, w) in [(1, 3, 2, 3), (2, 4, 3, 3), (3, 21, 1, 5), (1, 8 * scale, 4, 4 * scale)] {
        let operands = vec![random(&[2, h, w, 3 * c])];
        cases.push(case(format!("attention {heads} heads of {}", c / heads), Op::Attention { heads }, operands));
    }
    let image = || random(&[2, 4, 6, 3 * scale]);
    let examples = || Operand::Integers(vec![7, 1_000_003]);
    cases.extend([
        case("embedding", Op::Embedding, vec![random(&[5, 3]), Operand::Integers(vec![4, 0, 4])]),
        case("upsample", Op::Upsample2x, vec![image()]),
        case("average pool", Op::AvgPool2x, vec![image()]),
        case("concat", Op::Concat, vec![random(&[2, 3, 2, 5]), random(&[2, 3, 2, scale])]),
        case("silu", Op::Silu, vec![image()]),
        case("add", Op::Add, vec![image(), image()]),
        case("add per image", Op::AddPerImage, vec![image(), random(&[2, 3 * scale])]),
        case("affine", Op::Affine { mul: -1.5, add: 0.25 }, vec![image()]),
        case("divide by time", Op::DivideByTime, vec![image(), Operand::Positive(vec![2])]),
        case("dropout", Op::Dropout { p: 0.3, layer: 2 }, vec![image(), examples(), Operand::Integers(vec![11, 12])]),
    ]);
    cases
}

/// Operations without a gradient.
pub fn forward_only() -> Vec<Case> {
    let mut cases: Vec<Case> = [(8, true, 0.0), (7, false, 1.0), (15, true, 1.0), (128, false, 0.0)]
        .into_iter()
        .map(|(dim, flip_sin_to_cos, freq_shift)| {
            let e = TimeEmbedding { dim, flip_sin_to_cos, freq_shift };
            case(format!("time embedding {e:?}"), Op::TimeEmbedding(e), vec![Operand::Positive(vec![3])])
        })
        .collect();
    cases.extend([
        case("fourier", Op::FourierEmbedding, vec![Operand::Positive(vec![3]), random(&[7])]),
        case("slice", Op::Slice { start: 2, len: 3 }, vec![random(&[2, 3, 2, 7])]),
        case("sum pixels", Op::SumPixels, vec![random(&[2, 5, 3, 7])]),
        sampler_step(None),
        sampler_step(Some(2.5)),
        case("repeat batch", Op::RepeatBatch, vec![random(&[3, 2, 2, 5])]),
    ]);
    cases
}

/// One step of DDPM with a learned variance, outside a loop: x is not a state, so the step must not work in place.
fn sampler_step(guidance: Option<f64>) -> Case {
    let scheduler =
        SchedulerConfig { variance_type: VarianceType::LearnedRange, ..SchedulerConfig::new(SamplerKind::Ddpm) };
    let table = Arc::new(StepTable::build(&scheduler, 10, 0.0).unwrap());
    let evaluations = if guidance.is_some() { 4 } else { 2 };
    let operands = vec![
        random(&[2, 3, 5, 3]),
        random(&[evaluations, 3, 5, 6]),
        random(&[2, 3, 5, 3]),
        Operand::Integers(vec![4]),
        Operand::Integers(vec![7, 1_000_003]),
        Operand::Integers(vec![11, 12]),
    ];
    let step = SamplerStep { table, guidance, noise: NoiseSource::Philox };
    case(format!("sampler step, guidance {guidance:?}"), Op::SamplerStep(step), operands)
}

/// A graph of one operation, with the gradients of its floating-point operands where `gradients` is set.
pub struct Built {
    pub exe: Box<dyn Executable>,
    pub operands: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    pub dy: Option<ValueId>,
    pub gradients: Vec<Option<ValueId>>,
}

pub fn build(case: &Case, backend: &dyn Backend, gradients: bool, seed: u64) -> Built {
    let mut graph = Graph::new();
    let operands: Vec<ValueId> = case
        .operands
        .iter()
        .enumerate()
        .zip(case.op.operand_types(case.operands.len()))
        .map(|((i, o), dtype)| match o {
            Operand::Random(dims) | Operand::Positive(dims) => {
                graph.input(&format!("operand{i}"), dims.as_slice(), dtype)
            }
            Operand::Integers(data) => graph.input(&format!("operand{i}"), [data.len()], DType::I32),
        })
        .collect();
    let outputs = graph.push(case.op.clone(), &operands).unwrap();
    for &v in &outputs {
        graph.keep(v);
    }
    let wrt: Vec<ValueId> = operands.iter().copied().filter(|&v| is_float(&graph, v)).collect();
    let (mut dy, mut grads) = (None, vec![None; operands.len()]);
    if gradients {
        let shape = graph.shape(outputs[0]);
        let seed = graph.input("dy", shape, DType::Act);
        let found = backward(&mut graph, &[(outputs[0], seed)], &wrt).unwrap();
        for (v, g) in wrt.iter().zip(found) {
            let at = operands.iter().position(|o| o == v).unwrap();
            grads[at] = g;
            if let Some(g) = g {
                graph.keep(g);
            }
        }
        dy = Some(seed);
    }
    let mut exe = backend.compile(Plan::new(graph)).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    for (v, o) in operands.iter().zip(&case.operands) {
        match o {
            Operand::Random(d) => exe.write_f32(*v, &uniform(&mut rng, d.iter().product(), -1.0)).unwrap(),
            Operand::Positive(d) => exe.write_f32(*v, &uniform(&mut rng, d.iter().product(), 1.0)).unwrap(),
            Operand::Integers(data) => exe.write_u32(*v, data).unwrap(),
        }
    }
    if let Some(dy) = dy {
        let n = exe.plan().graph().shape(dy).numel();
        exe.write_f32(dy, &uniform(&mut rng, n, -1.0)).unwrap();
    }
    Built { exe, operands, outputs, dy, gradients: grads }
}

fn is_float(graph: &Graph, v: ValueId) -> bool {
    graph.value(v).dtype != DType::I32 && graph.value(v).source == Source::Input
}

/// `low` -1: uniform in -1..1; `low` 1: in 0.5..1.5. Multiples of 2^-16, so that small steps from them are exact.
fn uniform(rng: &mut StdRng, n: usize, low: f32) -> Vec<f32> {
    let range = if low < 0.0 { -1.0..1.0 } else { 0.5..1.5f32 };
    (0..n).map(|_| (rng.random_range(range.clone()) * 65536.0).round() / 65536.0).collect()
}

/// Worst element error relative to the largest expected magnitude, and the relative error of the whole.
pub fn errors(actual: &[f64], expected: &[f64]) -> (f64, f64) {
    assert_eq!(actual.len(), expected.len());
    let max = expected.iter().fold(1e-30f64, |m, e| m.max(e.abs()));
    let worst = actual.iter().zip(expected).map(|(a, e)| {
        let d = (a - e).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    });
    let worst = worst.fold(0.0, f64::max) / max;
    let norm = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    let total =
        norm(&mut actual.iter().zip(expected).map(|(a, e)| a - e)) / norm(&mut expected.iter().copied()).max(1e-30);
    (worst, total)
}
