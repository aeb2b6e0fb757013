//! Forward noising and the loss.

use std::sync::Arc;

use warpdiff::backend::{Backend, Precision};
use warpdiff::diffusion::{
    BetaConfig, LossWeighting, Objective, PredictionType, Schedule, TrainingObjective, VarianceType,
};
use warpdiff::graph::op::Noising;
use warpdiff::graph::{DType, Graph, LossNoise, Op, Plan};
use warpdiff::rng::{Sequence, Stream};

use super::graphs::{Measured, everywhere, held_by_bf16, judge, normals, on_devices};
use crate::common::gpu::{check, check_families};
use crate::common::{Case, Operand};

const KEY: [u32; 2] = [11, 12];
const PREDICTIONS: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];

#[test]
fn shared_cases_match_the_reference() {
    check_families(&["noising", "diffusion_loss"], 20);
}

#[test]
fn noising_matches_the_reference() {
    let schedule = Schedule::new(&BetaConfig::linear(1000)).unwrap();
    // One pixel; images that end within a quad; whole quads; several blocks an image.
    for [n, h, w, c] in [[1, 1, 1, 1], [3, 3, 5, 3], [2, 7, 1, 15], [2, 4, 4, 3], [1, 9, 10, 8], [2, 16, 16, 3]] {
        for eps in [false, true] {
            let examples = (0..n as u32).map(|i| 1_000_003 * i + 7).collect();
            let case = Case {
                id: format!("noising/{n}x{h}x{w}x{c}, eps {eps}"),
                op: Op::Noising(Noising::new(&schedule.alpha_bars, eps)),
                operands: vec![
                    Operand::Random(vec![n, h, w, c]),
                    Operand::Integers(examples),
                    Operand::Integers(KEY.to_vec()),
                ],
            };
            for precision in [Precision::F32, Precision::Bf16] {
                check(&case, precision, false, (h * w) as u64);
            }
        }
    }
}

/// The numbers of the generator, word for word: timesteps are integers, so they must be equal.
#[test]
fn timesteps_and_noise_are_those_of_the_counter() {
    let (schedule, shape) = (Schedule::new(&BetaConfig::linear(1000)).unwrap(), [40, 1, 3, 3]);
    on_devices(Precision::Bf16, |backend| {
        let mut graph = Graph::new();
        let x0 = graph.input("x0", shape, DType::F32);
        let examples = graph.input("examples", [40], DType::I32);
        let key = graph.input("key", [2], DType::I32);
        let out = graph.push(Op::Noising(Noising::new(&schedule.alpha_bars, true)), &[x0, examples, key]).unwrap();
        out.iter().for_each(|&v| graph.keep(v));
        let mut exe = backend.compile(Plan::new(graph)).unwrap();
        exe.write_u32(examples, &(0..40).map(|i| u32::MAX - 3 * i).collect::<Vec<_>>()).unwrap();
        exe.write_u32(key, &[u32::MAX, 5]).unwrap();
        exe.run().unwrap();
        let (t, eps) = (exe.read_f64(out[1]).unwrap(), exe.read_f64(out[2]).unwrap());
        for i in 0..40u32 {
            let sequence = |s| Sequence::with_key([u32::MAX, 5], s, u32::MAX - 3 * i, 0);
            assert_eq!(t[i as usize], f64::from(sequence(Stream::Timestep).below(0, 1000)));
            for k in 0..9 {
                let expected = sequence(Stream::TrainingNoise).normal_f64(k);
                let actual = eps[i as usize * 9 + k];
                assert!((actual - expected).abs() < 2e-6 * expected.abs().max(1.0), "{actual} {expected}");
            }
        }
    });
}

/// A batch with a timestep for each image.
struct Batch {
    shape: [usize; 4],
    t: Vec<f32>,
    examples: Vec<u32>,
    x0: Vec<f32>,
    x_t: Vec<f32>,
    eps: Vec<f32>,
    out: Vec<f32>,
    out_channels: usize,
}

impl Batch {
    /// Noisy images with an output near the target: a few elements far off, so that the decoder's clamp is met, and
    /// images with grey levels at both ends.
    fn new(o: &TrainingObjective, prediction: PredictionType, [h, w, c]: [usize; 3], t: &[usize]) -> Self {
        let shape = [t.len(), h, w, c];
        let image = h * w * c;
        let count = t.len() * image;
        let examples: Vec<u32> = (0..t.len() as u32).map(|i| 90 - 7 * i).collect();
        let level = |x: f32| ((x * 127.5).round() / 127.5).clamp(-1.0, 1.0);
        let x0: Vec<f32> = normals(count, 1).into_iter().map(level).collect();
        let out_channels = if o.learned_variance() { 2 * c } else { c };
        let (mut x_t, mut eps, mut out) = (vec![0.0; count], vec![0.0; count], vec![0.0; count / c * out_channels]);
        let error = normals(count, 2);
        let variance = normals(count, 3);
        for (n, &t) in t.iter().enumerate() {
            let sequence = Sequence::with_key(KEY, Stream::TrainingNoise, examples[n], 0);
            sequence.fill_normal(&mut eps[n * image..][..image]);
            let alpha_bar = o.schedule().alpha_bars[t];
            let target = prediction.target(alpha_bar);
            for i in n * image..(n + 1) * image {
                let (clean, noise) = (f64::from(x0[i]), f64::from(eps[i]));
                x_t[i] = (alpha_bar.sqrt() * clean + (1.0 - alpha_bar).sqrt() * noise) as f32;
                let off = if i % 17 == 0 { 60.0 } else { 0.2 } * f64::from(error[i]);
                let at = i / c * out_channels + i % c;
                out[at] = (target.apply(clean, noise) + off) as f32;
                if out_channels > c {
                    out[at + c] = match o.variance_type() {
                        VarianceType::Learned => 1e-3 * (1.0 + variance[i].abs()),
                        _ => variance[i],
                    };
                }
            }
        }
        let t = t.iter().map(|&t| t as f32).collect();
        Self { shape, t, examples, x0, x_t, eps, out: held_by_bf16(out), out_channels }
    }

    /// Examples `range` alone.
    fn part(&self, range: std::ops::Range<usize>) -> Self {
        let cut = |data: &[f32]| {
            let each = data.len() / self.t.len();
            data[range.start * each..range.end * each].to_vec()
        };
        let [_, h, w, c] = self.shape;
        Self {
            shape: [range.len(), h, w, c],
            t: cut(&self.t),
            examples: self.examples[range.clone()].to_vec(),
            x0: cut(&self.x0),
            x_t: cut(&self.x_t),
            eps: cut(&self.eps),
            out: cut(&self.out),
            out_channels: self.out_channels,
        }
    }

    /// (losses, dout).
    fn run(&self, o: &Arc<TrainingObjective>, noise: LossNoise, backend: &dyn Backend) -> [Vec<f64>; 2] {
        let mut graph = Graph::new();
        let [n, h, w, _] = self.shape;
        let out = graph.input("out", [n, h, w, self.out_channels], DType::Act);
        let x0 = graph.input("x0", self.shape, DType::F32);
        let (a, b) = match noise {
            LossNoise::Given => {
                (graph.input("x_t", self.shape, DType::F32), graph.input("eps", self.shape, DType::F32))
            }
            LossNoise::Redrawn => (graph.input("examples", [n], DType::I32), graph.input("key", [2], DType::I32)),
        };
        let t = graph.input("t", [n], DType::F32);
        let op = Op::DiffusionLoss { objective: Arc::clone(o), noise };
        let results = graph.push(op, &[out, x0, a, b, t]).unwrap();
        results.iter().for_each(|&v| graph.keep(v));
        let mut exe = backend.compile(Plan::new(graph)).unwrap();
        exe.write_f32(out, &self.out).unwrap();
        exe.write_f32(x0, &self.x0).unwrap();
        exe.write_f32(t, &self.t).unwrap();
        match noise {
            LossNoise::Given => {
                exe.write_f32(a, &self.x_t).unwrap();
                exe.write_f32(b, &self.eps).unwrap();
            }
            LossNoise::Redrawn => {
                exe.write_u32(a, &self.examples).unwrap();
                exe.write_u32(b, &KEY).unwrap();
            }
        }
        exe.run().unwrap();
        [exe.read_f64(results[0]).unwrap(), exe.read_f64(results[1]).unwrap()]
    }

    /// Each example's losses and gradients apart, as they differ by orders of magnitude between timesteps.
    fn measure(&self, o: &Arc<TrainingObjective>, noise: LossNoise, backend: &dyn Backend) -> Vec<Measured> {
        let [losses, dout] = self.run(o, noise, backend);
        let each = dout.len() / self.t.len();
        let example = |n: usize| {
            let t = self.t[n];
            let loss = |i: usize, what| Measured::new(format!("{what} at t {t}"), DType::F32, vec![losses[3 * n + i]]);
            let gradient = Measured::new(format!("gradient at t {t}"), DType::Act, dout[n * each..][..each].to_vec());
            [loss(0, "loss"), loss(1, "L_simple"), loss(2, "bound"), gradient.gradient()]
        };
        (0..self.t.len()).flat_map(example).collect()
    }
}

fn objective(
    betas: &BetaConfig,
    prediction: PredictionType,
    variance: VarianceType,
    objective: Objective,
) -> Arc<TrainingObjective> {
    let (schedule, weighting) = (Schedule::new(betas).unwrap(), LossWeighting::MinSnr { gamma: 5.0 });
    Arc::new(TrainingObjective::new(schedule, prediction, variance, objective, weighting, 256))
}

#[test]
fn every_objective_matches_the_reference() {
    let variances =
        [VarianceType::FixedSmall, VarianceType::FixedLargeLog, VarianceType::Learned, VarianceType::LearnedRange];
    for prediction in PREDICTIONS {
        for variance in variances {
            for kind in [Objective::Simple, Objective::hybrid(1000), Objective::Vlb] {
                let o = objective(&BetaConfig::linear(1000), prediction, variance, kind);
                for noise in [LossNoise::Given, LossNoise::Redrawn] {
                    let batch = Batch::new(&o, prediction, [5, 7, 3], &[0, 1, 2, 500, 999]);
                    let name = format!("{prediction:?}, {variance:?}, {kind:?}, {noise:?}");
                    judge(&name, |backend| batch.measure(&o, noise, backend));
                }
            }
        }
    }
}

#[test]
fn images_of_any_shape_match_the_reference() {
    let kind = Objective::hybrid(1000);
    let o = objective(&BetaConfig::cosine(1000), PredictionType::Epsilon, VarianceType::LearnedRange, kind);
    // One element; whole quads; more channels than a quad; two chunks, the second of a single pixel.
    for shape in [[1, 1, 1], [4, 4, 1], [3, 3, 8], [1, 2, 15], [17, 241, 1]] {
        let batch = Batch::new(&o, PredictionType::Epsilon, shape, &[0, 3, 700]);
        for noise in [LossNoise::Given, LossNoise::Redrawn] {
            judge(&format!("{shape:?}, {noise:?}"), |backend| batch.measure(&o, noise, backend));
        }
    }
}

/// What an example contributes does not depend on its batch, apart from the gradient's factor 1/N.
#[test]
fn an_example_has_the_same_loss_in_any_batch() {
    let o =
        objective(&BetaConfig::linear(1000), PredictionType::VPrediction, VarianceType::LearnedRange, Objective::Vlb);
    for shape in [[5, 7, 3], [40, 36, 3]] {
        let batch = Batch::new(&o, PredictionType::VPrediction, shape, &[0, 400]);
        on_devices(Precision::F32, |backend| {
            let [together, dout] = batch.run(&o, LossNoise::Redrawn, backend);
            for n in 0..2 {
                let [alone, gradient] = batch.part(n..n + 1).run(&o, LossNoise::Redrawn, backend);
                assert_eq!(together[3 * n..][..3], alone);
                let half = &dout[n * gradient.len()..][..gradient.len()];
                // Halving is exact.
                assert!(half.iter().zip(&gradient).all(|(h, g)| 2.0 * h == *g));
            }
        });
    }
}

#[test]
fn a_timestep_without_a_loss_makes_it_nan_and_leaves_the_others() {
    let betas = BetaConfig { rescale_zero_terminal_snr: true, ..BetaConfig::linear(10) };
    let o = objective(&betas, PredictionType::Epsilon, VarianceType::FixedSmall, Objective::Vlb);
    let mut batch = Batch::new(&o, PredictionType::Epsilon, [3, 3, 3], &[4; 9]);
    // At t = 9 there is no signal: x_0 does not follow from eps.
    batch.t = vec![4.0, 10.0, 9.0, f32::NAN, -1.0, 3.5, -0.5, f32::INFINITY, 3.0];
    for noise in [LossNoise::Given, LossNoise::Redrawn] {
        everywhere(|backend| {
            let [losses, dout] = batch.run(&o, noise, backend);
            let each = dout.len() / 9;
            for n in 0..9 {
                let (losses, dout) = (&losses[3 * n..][..3], &dout[n * each..][..each]);
                let name = backend.name();
                if [0, 8].contains(&n) {
                    assert!(losses.iter().all(|l| l.is_finite()), "{name}, t {}: {losses:?}", batch.t[n]);
                    assert!(dout.iter().all(|d| d.is_finite()) && dout.iter().any(|d| *d != 0.0), "{name}");
                } else {
                    assert!(losses.iter().all(|l| l.is_nan()), "{name}, t {}: {losses:?}", batch.t[n]);
                    assert!(dout.iter().all(|d| *d == 0.0), "{name}, t {}", batch.t[n]);
                }
            }
        });
    }
}
