//! Linear layers that read the same vectors run as one launch.

use warpdiff::backend::{Backend, Precision, Store};
use warpdiff::graph::{Activation, DType, Graph, Op, ParamId, ParamSpec, Plan, ValueId, fuse::fuse};

use super::graphs::{Measured, held_by_bf16, judge, normals, on_devices};

/// Column counts around the tiles' 64, and rows that are no whole chunks of 16 bytes.
const COLUMNS: [usize; 6] = [3, 64, 65, 136, 1, 200];

/// One activation, and layers of it with and without bias, among operations that do not read it.
struct Layers {
    plan: Plan,
    x: ValueId,
    results: Vec<ValueId>,
}

impl Layers {
    fn new(rows: usize, depth: usize) -> Self {
        let mut graph = Graph::new();
        let x = graph.input("x", [rows, depth], DType::Act);
        let mut results = Vec::new();
        for (i, columns) in COLUMNS.into_iter().enumerate() {
            let w = graph.param(ParamSpec::plain(format!("w{i}"), &[columns, depth]));
            let bias = (i % 2 == 0).then(|| graph.param(ParamSpec::plain(format!("b{i}"), &[columns])));
            let y = graph.linear(x, w, bias).unwrap();
            results.extend([y, graph.apply(Op::Activation(Activation::Silu), &[y]).unwrap()]);
        }
        results.iter().for_each(|&v| graph.keep(v));
        fuse(&mut graph);
        Self { plan: Plan::new(graph), x, results }
    }

    fn run(&self, backend: &dyn Backend) -> Vec<Measured> {
        let mut exe = backend.compile(self.plan.clone()).unwrap();
        let graph = self.plan.graph();
        for (i, spec) in graph.params().iter().enumerate() {
            let values: Vec<f32> = normals(spec.numel(), i as u32 + 1).iter().map(|v| v * 0.1).collect();
            exe.write_param(Store::Params, ParamId::new(i), &held_by_bf16(values)).unwrap();
        }
        exe.write_f32(self.x, &held_by_bf16(normals(graph.shape(self.x).numel(), 0))).unwrap();
        exe.run().unwrap();
        let read = |(i, &v): (usize, &ValueId)| Measured::new(format!("{i}"), DType::Act, exe.read_f64(v).unwrap());
        self.results.iter().enumerate().map(read).collect()
    }
}

#[test]
fn layers_of_the_same_vectors_match_the_reference() {
    for (rows, depth) in [(1, 512), (3, 8), (65, 72), (130, 40)] {
        let layers = Layers::new(rows, depth);
        judge(&format!("{rows} rows of {depth}"), |backend| layers.run(backend));
    }
}

#[test]
fn one_launch_computes_all_of_them_and_a_row_has_the_same_bits_in_any_batch() {
    let layers = Layers::new(1, 512);
    for precision in [Precision::F32, Precision::Bf16] {
        on_devices(precision, |backend| {
            let mut exe = backend.compile(layers.plan.clone()).unwrap();
            let trace = exe.trace(1).unwrap();
            let named = |step: &warpdiff::backend::trace::Step| {
                step.kernel.as_ref().is_some_and(|k| k.name == format!("linear_layers_{precision}"))
            };
            let of_layers: Vec<_> = trace.steps.iter().filter(|step| named(step)).map(|s| s.nodes.clone()).collect();
            assert_eq!((of_layers.len(), of_layers[0].clone()), (1, 0..COLUMNS.len()));
            assert_eq!(trace.steps.len(), 1 + COLUMNS.len());
            for (alone, batched) in layers.run(backend).iter().zip(Layers::new(70, 512).run(backend)) {
                assert!(alone.data.iter().zip(&batched.data).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        });
    }
}
