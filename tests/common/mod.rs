//! Single-operation graphs at odd shapes, shared by the tests of every backend.
#![allow(dead_code)] // Each test binary uses a part.

pub mod cases;
pub mod device;
pub mod gpu;
pub mod late;
pub mod memory;
pub mod models;
pub mod optimizer;
pub mod process;
pub mod tolerance;
pub mod training;

use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;
use warpdiff::backend::{Backend, Executable, Precision};
use warpdiff::graph::autodiff::backward;
use warpdiff::graph::{DType, Graph, Op, Plan, Source, ValueId};
use warpdiff::reference::Reference;

pub use cases::{Case, Operand};

/// A graph of one operation, with the gradients of its floating-point operands if they were asked for.
pub struct Built {
    pub exe: Box<dyn Executable>,
    pub operands: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    pub dy: Option<ValueId>,
    pub gradients: Vec<Option<ValueId>>,
}

/// Compiles a case and writes its operands.
///
/// With bf16 `operands`, those that a bf16 backend holds or reads in bf16 are rounded beforehand, so that every backend
/// computes from the same numbers.
pub fn build(case: &Case, backend: &dyn Backend, gradients: bool, seed: u64, operands: Precision) -> Built {
    let mut graph = Graph::new();
    let types = case.op.operand_types(case.operands.len());
    let values: Vec<ValueId> = (case.operands.iter().zip(types).enumerate())
        .map(|(i, (o, dtype))| graph.input(&format!("operand{i}"), o.dims().as_slice(), dtype))
        .collect();
    let outputs = graph.push(case.op.clone(), &values).unwrap();
    for &v in &outputs {
        graph.keep(v);
    }
    let wrt: Vec<ValueId> = values.iter().copied().filter(|&v| is_float(&graph, v)).collect();
    let (mut dy, mut grads) = (None, vec![None; values.len()]);
    if gradients {
        let shape = graph.shape(outputs[0]);
        let seed = graph.input("dy", shape, DType::Act);
        let found = backward(&mut graph, &[(outputs[0], seed)], &wrt).unwrap();
        for (v, g) in wrt.iter().zip(found) {
            let at = values.iter().position(|o| o == v).unwrap();
            grads[at] = g;
            if let Some(g) = g {
                graph.keep(g);
            }
        }
        dy = Some(seed);
    }
    let mut exe = backend.compile(Plan::new(graph)).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let has_weight = matches!(case.op, Op::Conv2d(..) | Op::Linear(_));
    for (i, (v, o)) in values.iter().zip(&case.operands).enumerate() {
        match o {
            Operand::Integers(data) => exe.write_u32(*v, data).unwrap(),
            _ => {
                let narrow = exe.plan().graph().value(*v).dtype == DType::Act || (has_weight && i == 1);
                exe.write_f32(*v, &rounded(o.elements(&mut rng), narrow, operands)).unwrap();
            }
        }
    }
    if let Some(dy) = dy {
        let n = exe.plan().graph().shape(dy).numel();
        exe.write_f32(dy, &rounded(cases::uniform(&mut rng, n, -1.0..1.0), true, operands)).unwrap();
    }
    Built { exe, operands: values, outputs, dy, gradients: grads }
}

fn rounded(mut data: Vec<f32>, narrow: bool, precision: Precision) -> Vec<f32> {
    if narrow && precision == Precision::Bf16 {
        data.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    data
}

fn is_float(graph: &Graph, v: ValueId) -> bool {
    graph.value(v).dtype != DType::I32 && graph.value(v).source == Source::Input
}

/// A result of a case: what it is, its type, whether it is a gradient, and its elements.
pub struct CaseResult {
    pub what: String,
    pub dtype: DType,
    pub gradient: bool,
    pub data: Vec<f64>,
}

/// Runs a case on a backend.
pub fn results(case: &Case, backend: &dyn Backend, gradients: bool, seed: u64, operands: Precision) -> Vec<CaseResult> {
    let mut built = build(case, backend, gradients, seed, operands);
    built.exe.run().unwrap();
    let outputs = built.outputs.iter().enumerate().map(|(i, v)| (format!("output {i}"), false, *v));
    let gradients = built.gradients.iter().enumerate();
    let gradients = gradients.filter_map(|(i, g)| Some((format!("gradient of operand {i}"), true, (*g)?)));
    let result = |(what, gradient, v): (String, bool, ValueId)| {
        let dtype = built.exe.plan().graph().value(v).dtype;
        CaseResult { what, dtype, gradient, data: built.exe.read_f64(v).unwrap() }
    };
    outputs.chain(gradients).map(result).collect()
}

/// Rows of a table by timesteps: whole ones, halves, and some beyond either end, which meet the nearest row.
pub fn check_rows_of_timesteps(backend: &dyn Backend) {
    let (times, rows) = ([0.0, 59.0, 17.0, 2.5, 3.5, 2.6, 60.0, -3.0, 1e9], [0, 59, 17, 2, 4, 3, 59, 0, 59]);
    let mut graph = Graph::new();
    let t = graph.input("t", [times.len()], DType::F32);
    let table = graph.input("table", [60, 3], DType::F32);
    let index = graph.apply(Op::TimestepIndex { count: 60 }, &[t]).unwrap();
    let row = graph.apply(Op::Embedding, &[table, index]).unwrap();
    graph.keep(row);
    let mut exe = backend.compile(Plan::new(graph)).unwrap();
    exe.write_f32(t, &times).unwrap();
    let values: Vec<f32> = (0..180).map(|v| v as f32).collect();
    exe.write_f32(table, &values).unwrap();
    exe.run().unwrap();
    let expected: Vec<f64> = rows.iter().flat_map(|row| (0..3).map(move |c| f64::from(3 * row + c))).collect();
    assert_eq!(exe.read_f64(row).unwrap(), expected, "{}", backend.name());
}

/// Runs a case on a backend and judges every result by the rule of the backend's precision; returns how many there
/// were.
pub fn compare(case: &Case, backend: &dyn Backend, gradients: bool, seed: u64) -> Result<usize, String> {
    compare_on(case, &[backend], gradients, seed)
}

/// [`compare`] on several backends of one precision, with one run of the references; the backends must agree in every
/// bit.
pub fn compare_on(case: &Case, backends: &[&dyn Backend], gradients: bool, seed: u64) -> Result<usize, String> {
    let precision = backends[0].precision();
    let run = |on: &dyn Backend| results(case, on, gradients, seed, precision);
    let exact = run(&Reference::default());
    let rounded = (precision == Precision::Bf16).then(|| run(&Reference::new(precision)));
    let mut first: Option<Vec<CaseResult>> = None;
    for backend in backends {
        let actual = run(*backend);
        for (i, (a, e)) in actual.iter().zip(&exact).enumerate() {
            let rounded = rounded.as_ref().map(|r| r[i].data.as_slice());
            let verdict = tolerance::judge(a.dtype, a.gradient, &a.data, &e.data, rounded);
            verdict.map_err(|problem| format!("{} in {precision}: {}: {problem}", case.id, a.what))?;
        }
        let bits = |r: &[CaseResult]| r.iter().flat_map(|r| &r.data).map(|v| v.to_bits()).collect::<Vec<_>>();
        if first.as_ref().is_some_and(|f| bits(f) != bits(&actual)) {
            return Err(format!("{} in {precision}: the result depends on the order of threads", case.id));
        }
        first = Some(actual);
    }
    Ok(exact.len())
}

/// All cases on one backend; panics with every failure, so that one run shows them all.
pub fn compare_all(backend: &dyn Backend) -> usize {
    let (mut compared, mut failures) = (0, Vec::new());
    for (i, (case, gradients)) in cases::all().iter().enumerate() {
        match compare(case, backend, *gradients, i as u64) {
            Ok(results) => {
                assert!(results > usize::from(*gradients), "{}: {results} results compared", case.id);
                compared += results;
            }
            Err(problem) => failures.push(problem),
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    compared
}
