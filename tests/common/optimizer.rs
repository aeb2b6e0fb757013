//! Global norm, AdamW and the moving average, as the end of a tiny training step.

use rand::SeedableRng;
use rand::rngs::StdRng;
use warpdiff::backend::{Backend, Executable, Precision, Store};
use warpdiff::graph::autodiff::backward;
use warpdiff::graph::{AdamW, DType, Graph, Op, ParamId, ParamSpec, Plan, ValueId};
use warpdiff::reference::Reference;

use super::cases::uniform;
use super::tolerance::{bf16_rule, f32_rule};

/// Two linear layers with given gradients at their output, and the optimiser.
struct Tiny {
    exe: Box<dyn Executable>,
    hyper: ValueId,
    norm: ValueId,
    initial: Vec<Vec<f32>>,
}

impl Tiny {
    fn new(backend: &dyn Backend, optimizer: AdamW) -> Self {
        let mut graph = Graph::new();
        let x = graph.input("x", [5, 7], DType::Act);
        let dy = graph.input("dy", [5, 3], DType::Act);
        let hyper = graph.input("hyper", [AdamW::HYPER], DType::F32);
        // One parameter that fills several blocks of any kernel, others with less than a vector.
        let param = |graph: &mut Graph, name: &str, shape: &[usize]| graph.param(ParamSpec::plain(name, shape));
        let (w1, b1) = (param(&mut graph, "w1", &[1031, 7]), param(&mut graph, "b1", &[1031]));
        let (w2, b2) = (param(&mut graph, "w2", &[3, 1031]), param(&mut graph, "b2", &[3]));
        let h = graph.linear(x, w1, Some(b1)).unwrap();
        let y = graph.linear(h, w2, Some(b2)).unwrap();
        backward(&mut graph, &[(y, dy)], &[]).unwrap();
        let grads: Vec<ValueId> = (0..4).map(|i| graph.grad_at(i).unwrap()).collect();
        let norm = graph.apply(Op::GlobalNorm, &grads).unwrap();
        graph.keep(norm);
        graph.push(Op::AdamW(optimizer), &[vec![norm, hyper], grads].concat()).unwrap();
        let mut exe = backend.compile(Plan::new(graph)).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        // Multiples of 2^-7 in -1..1, which bf16 holds exactly.
        let mut coarse = |n: usize| -> Vec<f32> {
            uniform(&mut rng, n, -1.0..1.0).iter().map(|v| (v * 128.0).round() / 128.0).collect()
        };
        for v in [x, dy] {
            let n = exe.plan().graph().shape(v).numel();
            exe.write_f32(v, &coarse(n)).unwrap();
        }
        let lens: Vec<usize> = exe.plan().graph().params().iter().map(ParamSpec::numel).collect();
        let initial: Vec<Vec<f32>> = lens.into_iter().map(&mut coarse).collect();
        for (i, data) in initial.iter().enumerate() {
            for store in [Store::Params, Store::Ema] {
                exe.write_param(store, ParamId::new(i), data).unwrap();
            }
        }
        Self { exe, hyper, norm, initial }
    }

    /// Takes a step and returns the gradient norm, then how far every array of the optimiser is from its beginning.
    fn step(&mut self, optimizer: &AdamW, k: i32) -> Vec<(String, Vec<f64>)> {
        let correction = |beta: f64| (1.0 - beta.powi(k)) as f32;
        // Large steps: a small one would drown in the rounding of the weight that it is added to.
        let hyper = [0.25, correction(optimizer.beta1), correction(optimizer.beta2), 0.5];
        self.exe.write_f32(self.hyper, &hyper).unwrap();
        self.exe.run().unwrap();
        let mut results = vec![("gradient norm".to_string(), self.exe.read_f64(self.norm).unwrap())];
        for store in Store::ALL {
            for (i, initial) in self.initial.iter().enumerate() {
                let mut data = vec![f32::NAN; initial.len()];
                self.exe.read_param(store, ParamId::new(i), &mut data).unwrap();
                let starts_at_zero = matches!(store, Store::Moment1 | Store::Moment2);
                let moved = data.iter().zip(initial);
                let moved = moved.map(|(d, s)| f64::from(*d) - if starts_at_zero { 0.0 } else { f64::from(*s) });
                results.push((format!("{store:?} of parameter {i}"), moved.collect()));
            }
        }
        results
    }
}

/// Three steps with and without clipping and weight decay, judged as gradients are.
pub fn compare_optimizer(backend: &dyn Backend) -> Result<usize, String> {
    let mut compared = 0;
    for (max_grad_norm, weight_decay) in [(1.0, 0.0), (1e6, 0.1)] {
        let optimizer = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay, max_grad_norm };
        let precision = backend.precision();
        let (mut actual, mut exact) = (Tiny::new(backend, optimizer), Tiny::new(&Reference::default(), optimizer));
        let mut rounded = Tiny::new(&Reference::new(precision), optimizer);
        for k in 1..=3 {
            let exact = exact.step(&optimizer, k);
            let rounded = rounded.step(&optimizer, k);
            for (((what, a), (_, e)), (_, r)) in actual.step(&optimizer, k).iter().zip(&exact).zip(&rounded) {
                let verdict = match precision {
                    Precision::F32 => f32_rule(true, a, e),
                    Precision::Bf16 => bf16_rule(DType::F32, true, a, e, r),
                };
                verdict.map_err(|p| format!("clip {max_grad_norm}, step {k}: {what}: {p}"))?;
                compared += 1;
            }
        }
    }
    Ok(compared)
}
