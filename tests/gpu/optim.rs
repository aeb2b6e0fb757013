//! The global norm and AdamW, without a network: the gradients are noise that the forward process draws.

use std::sync::Arc;

use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::{Backend, Precision, Store};
use warpdiff::graph::autodiff::backward;
use warpdiff::graph::op::Noising;
use warpdiff::graph::{AdamW, DType, Graph, Op, ParamId, ParamSpec, Plan, ValueId};

use crate::common::gpu::devices;
use crate::common::optimizer::compare_optimizer;

use super::graphs::{Measured, judge, normals, on_devices};

const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 };
const STORES: [Store; 4] = [Store::Params, Store::Moment1, Store::Moment2, Store::Ema];

/// Shapes of parameters, with whether they have a gradient: lengths off every power of two, a single number, a frozen
/// one in the middle and one at the end.
const PARAMS: [([usize; 4], bool); 6] = [
    ([3, 3, 5, 3], true),
    ([1, 1, 1, 1], true),
    ([2, 3, 3, 1], false),
    ([5, 16, 17, 4], true),
    ([1, 2, 2, 15], true),
    ([7, 1, 1, 1], false),
];

struct Training {
    plan: Plan,
    examples: Vec<(ValueId, usize)>,
    key: ValueId,
    hyper: ValueId,
    norm: ValueId,
    grads: Vec<Option<ValueId>>,
}

fn training(optimizer: AdamW) -> Training {
    let mut graph = Graph::new();
    let key = graph.input("key", [2], DType::I32);
    let hyper = graph.input("hyper", [AdamW::HYPER], DType::F32);
    let (mut seeds, mut examples) = (Vec::new(), Vec::new());
    for (i, (shape, trained)) in PARAMS.into_iter().enumerate() {
        let param = graph.param(ParamSpec::plain(format!("p{i}"), &shape));
        if !trained {
            continue;
        }
        let x0 = graph.input(&format!("x0 {i}"), shape, DType::F32);
        let index = graph.input(&format!("index {i}"), [shape[0]], DType::I32);
        let noising = Noising { rows: Arc::new(vec![(0.6, 0.8)]), eps: true };
        let noised = graph.push(Op::Noising(noising), &[x0, index, key]).unwrap();
        seeds.push((param, noised[2]));
        examples.push((index, shape[0]));
    }
    backward(&mut graph, &seeds, &[]).unwrap();
    let grads: Vec<ValueId> = seeds.iter().map(|s| s.1).collect();
    let norm = graph.apply(Op::GlobalNorm, &grads).unwrap();
    graph.keep(norm);
    let operands: Vec<ValueId> = [norm, hyper].into_iter().chain(grads).collect();
    graph.push(Op::AdamW(optimizer), &operands).unwrap();
    let grads = (0..PARAMS.len()).map(|i| graph.grad(ParamId::new(i))).collect();
    Training { plan: Plan::new(graph), examples, key, hyper, norm, grads }
}

fn len(i: usize) -> usize {
    PARAMS[i].0.iter().product()
}

/// All stores and the norm after `steps` updates.
fn train(t: &Training, steps: usize, backend: &dyn Backend) -> Vec<Measured> {
    let mut exe = backend.compile(t.plan.clone()).unwrap();
    for i in 0..PARAMS.len() {
        for (s, store) in STORES.into_iter().enumerate() {
            let mut data = normals(len(i), (10 * i + s) as u32);
            if store == Store::Moment2 {
                data.iter_mut().for_each(|v| *v = v.abs() * 1e-3);
            }
            exe.write_param(store, ParamId::new(i), &data).unwrap();
        }
    }
    for (n, (value, count)) in t.examples.iter().enumerate() {
        exe.write_u32(*value, &(0..*count as u32).map(|i| 100 * n as u32 + i).collect::<Vec<_>>()).unwrap();
    }
    let mut results = Vec::new();
    for step in 1..=steps {
        exe.write_u32(t.key, &[step as u32, 9]).unwrap();
        let corrections = [0.9f64, 0.999].map(|beta| (1.0 - beta.powi(step as i32)) as f32);
        exe.write_f32(t.hyper, &[1e-2 / step as f32, corrections[0], corrections[1], 0.99]).unwrap();
        exe.run().unwrap();
        results.push(Measured::new(format!("norm of step {step}"), DType::F32, exe.read_f64(t.norm).unwrap()));
    }
    for i in 0..PARAMS.len() {
        for store in STORES {
            let mut data = vec![f32::NAN; len(i)];
            exe.read_param(store, ParamId::new(i), &mut data).unwrap();
            let data = data.into_iter().map(f64::from).collect();
            results.push(Measured::new(format!("{store:?} of p{i}"), DType::F32, data));
        }
    }
    results
}

#[test]
fn three_updates_match_the_reference() {
    // Gradients are clipped by their norm of about 75, and not clipped; an eps that does not show, and one that does.
    for (max_grad_norm, eps) in [(1.0, 1e-8), (1e3, 0.1)] {
        let t = training(AdamW { max_grad_norm, eps, ..OPTIMIZER });
        assert!(t.grads.iter().map(Option::is_some).eq(PARAMS.iter().map(|p| p.1)));
        judge(&format!("AdamW, max norm {max_grad_norm}"), |backend| train(&t, 3, backend));
    }
}

#[test]
fn parameters_without_a_gradient_keep_their_bits() {
    let t = training(OPTIMIZER);
    on_devices(Precision::Bf16, |backend| {
        let results = train(&t, 2, backend);
        for (i, (_, trained)) in PARAMS.into_iter().enumerate() {
            for (s, store) in STORES.into_iter().enumerate() {
                let name = format!("{store:?} of p{i}");
                let after = &results.iter().find(|m| m.name == name).unwrap().data;
                let mut before = normals(len(i), (10 * i + s) as u32);
                if store == Store::Moment2 {
                    before.iter_mut().for_each(|v| *v = v.abs() * 1e-3);
                }
                let same = after.iter().zip(&before).filter(|(a, b)| **a == f64::from(**b)).count();
                assert_eq!(same, if trained { 0 } else { len(i) }, "{name}");
            }
        }
    });
}

/// Two linear layers over three steps: the gradients of a step are those of the weights that the step before left, in
/// the copy that bf16 layers read, too.
#[test]
fn layers_read_the_weights_that_the_step_before_left() {
    for precision in [Precision::F32, Precision::Bf16] {
        for driver in devices() {
            assert_eq!(compare_optimizer(&Gpu::new(driver, precision)).unwrap(), 2 * 3 * 17, "{precision}");
        }
    }
}
