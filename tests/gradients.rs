//! Gradients of whole networks: against finite differences, and the same with and without fusion.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::models::{
    conditioned_norms, learned_times, load_random, noise, oblong, random_weights, skip, tiny, unconditional, wide,
};
use warpdiff::backend::{Backend, Executable, Store};
use warpdiff::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use warpdiff::graph::autodiff::backward;
use warpdiff::graph::{DType, Graph, ParamId, Plan, fuse::fuse};
use warpdiff::program::{Batch, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::reference::Reference;
use warpdiff::unet::{ClassInput, DropoutInputs, SampleSize, UNetConfig, UNetInputs, build};

/// Output, gradient of the input and gradients of all parameters, by name.
fn differentiate(config: &UNetConfig, fused: bool) -> (usize, BTreeMap<String, Vec<f64>>) {
    let (n, (h, w)) = (2, config.height_width().unwrap());
    let mut graph = Graph::new();
    let x = graph.input("x", [n, h, w, config.in_channels], DType::Act);
    let t = graph.input("t", [n], DType::F32);
    let class = graph.input("class", [n], DType::I32);
    let dy = graph.input("dy", [n, h, w, config.out_channels], DType::Act);
    let example_index = graph.input("example_index", [n], DType::I32);
    let key = graph.input("key", [2], DType::I32);
    let dropout = Some(DropoutInputs { example_index, key });
    let labels = config.num_class_embeds.map(|_| ClassInput::Index(class));
    let net = build(&mut graph, config, UNetInputs { x, t, class: labels, dropout }).unwrap();
    graph.keep(net.out);
    if fused {
        fuse(&mut graph);
    }
    let dx = backward(&mut graph, &[(net.out, dy)], &[x]).unwrap()[0].unwrap();
    graph.keep(dx);
    if fused {
        fuse(&mut graph);
    }
    let nodes = graph.nodes().len();
    let mut exe = Reference::default().compile(Plan::new(graph)).unwrap();
    load_random(exe.as_mut(), 3);
    for (value, seed) in [(x, 1), (dy, 2)] {
        let len = exe.plan().graph().shape(value).numel();
        exe.write_f32(value, &noise(len, seed)).unwrap();
    }
    exe.write_f32(t, &[17.0, 3.0]).unwrap();
    exe.write_u32(class, &[2, 0]).unwrap();
    exe.write_u32(example_index, &[5, 8]).unwrap();
    exe.write_u32(key, &[1, 2]).unwrap();
    exe.run().unwrap();
    let graph = exe.plan().graph();
    let mut results =
        BTreeMap::from([("out".to_string(), exe.read_f64(net.out).unwrap()), ("dx".into(), exe.read_f64(dx).unwrap())]);
    for (i, spec) in graph.params().iter().enumerate() {
        results.insert(spec.name.clone(), exe.read_f64(graph.grad(ParamId::new(i)).unwrap()).unwrap());
    }
    (nodes, results)
}

#[test]
fn fusion_changes_no_gradient() {
    let resampling = UNetConfig { mid_block_scale_factor: 1.5, dropout: 0.3, ..oblong() };
    for config in [tiny(), unconditional(), wide(), resampling, skip(), conditioned_norms(), learned_times()] {
        let ((plain_nodes, plain), (fused_nodes, fused)) =
            (differentiate(&config, false), differentiate(&config, true));
        assert!(fused_nodes < plain_nodes, "{fused_nodes} of {plain_nodes} operations are left");
        assert_eq!(plain.len(), fused.len());
        for (name, expected) in &plain {
            let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for (a, e) in fused[name].iter().zip(expected) {
                assert!((a - e).abs() <= 1e-12 * scale, "{name}: {a} instead of {e}");
            }
            assert!(expected.iter().any(|v| *v != 0.0), "{name} is all zero");
        }
    }
}

struct Step {
    exe: Box<dyn Executable>,
    program: TrainingProgram,
}

impl Step {
    fn new(config: &UNetConfig, prediction: PredictionType) -> Self {
        let (n, (h, w)) = (2, config.height_width().unwrap());
        let schedule = Schedule::new(&BetaConfig::default()).unwrap();
        let fixed = VarianceType::FixedSmall;
        let weighting = LossWeighting::MinSnr { gamma: 5.0 };
        let objective = TrainingObjective::new(schedule, prediction, fixed, Objective::Simple, weighting, 256);
        let options =
            TrainingOptions { objective: Arc::new(objective), optimizer: None, inputs: TrainingInputs::Given };
        let program = TrainingProgram::new(config, Batch { n, h, w }, &options).unwrap();
        let mut exe = Reference::default().compile(program.plan.clone()).unwrap();
        let given = program.given.unwrap();
        for (value, seed) in [(program.x0, 1), (given.x_t, 2), (given.eps, 3)] {
            let len = exe.plan().graph().shape(value).numel();
            exe.write_f32(value, &noise(len, seed)).unwrap();
        }
        exe.write_f32(given.t, &[600.0, 30.0]).unwrap();
        exe.write_u32(program.class.unwrap(), &[2, 0]).unwrap();
        Self { exe, program }
    }

    /// Mean of the examples' losses with one parameter replaced.
    fn loss(&mut self, param: ParamId, data: &[f32]) -> f64 {
        self.exe.write_param(Store::Params, param, data).unwrap();
        self.exe.run().unwrap();
        let losses = self.exe.read_f64(self.program.losses).unwrap();
        losses.iter().step_by(3).sum::<f64>() / (losses.len() / 3) as f64
    }
}

/// The largest gradient of every parameter of a network, and `others` more of each.
fn compare_with_differences(config: &UNetConfig, prediction: PredictionType, others: usize) {
    let mut step = Step::new(config, prediction);
    let weights = random_weights(step.program.plan.graph().params(), 3);
    for (i, data) in weights.iter().enumerate() {
        step.exe.write_param(Store::Params, ParamId::new(i), data).unwrap();
    }
    step.exe.run().unwrap();
    let graph = step.program.plan.graph();
    let specs = graph.params().to_vec();
    let gradients: Vec<Vec<f64>> =
        (0..specs.len()).map(|i| step.exe.read_f64(graph.grad_at(i).unwrap()).unwrap()).collect();
    let squares = gradients.iter().flatten().map(|g| g * g).sum::<f64>();
    let norm = step.exe.read_f64(step.program.grad_norm).unwrap()[0];
    assert!((norm - squares.sqrt()).abs() < 1e-12 * norm, "{norm} instead of {}", squares.sqrt());
    for (i, data) in weights.iter().enumerate() {
        let (id, gradient) = (ParamId::new(i), &gradients[i]);
        let largest = (0..data.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        for at in std::iter::once(largest).chain((1..=others).map(|k| k * data.len() / 3)) {
            // Weights are multiples of 2^-12, so f32 holds them plus a multiple of this step exactly. The error of the
            // difference falls with its fourth power; rounding shows from far smaller steps on.
            let h = 2.0f32.powi(-12);
            let mut difference = |k: f32| {
                let mut moved = data.clone();
                moved[at] = data[at] + k * h;
                let above = step.loss(id, &moved);
                moved[at] = data[at] - k * h;
                above - step.loss(id, &moved)
            };
            let expected = (8.0 * difference(1.0) - difference(2.0)) / (12.0 * f64::from(h));
            let (actual, scale) = (gradient[at], gradient[largest].abs().max(1e-3 * norm));
            assert!(
                (actual - expected).abs() < 1e-7 * scale,
                "{} at {at}: {actual} instead of {expected}, {:e} of the scale",
                specs[i].name,
                (actual - expected).abs() / scale
            );
        }
        step.exe.write_param(Store::Params, id, data).unwrap();
    }
}

#[test]
fn gradients_of_a_small_network_are_its_slopes() {
    let config = UNetConfig { sample_size: Some(SampleSize::Side(4)), ..tiny() };
    compare_with_differences(&config, PredictionType::Epsilon, 1);
}

#[test]
fn gradients_of_skip_blocks_are_their_slopes() {
    compare_with_differences(&skip(), PredictionType::Epsilon, 0);
}

#[test]
fn gradients_of_k_blocks_are_their_slopes() {
    compare_with_differences(&conditioned_norms(), PredictionType::Epsilon, 0);
}

#[test]
fn gradients_of_learned_times_are_their_slopes() {
    compare_with_differences(&learned_times(), PredictionType::Epsilon, 0);
}

#[test]
fn gradients_of_a_network_with_everything_are_its_slopes() {
    let config = UNetConfig {
        sample_size: Some(SampleSize::HeightWidth([4, 8])),
        out_channels: 2,
        mid_block_scale_factor: 1.25,
        center_input_sample: true,
        ..oblong()
    };
    compare_with_differences(&config, PredictionType::VPrediction, 0);
}
