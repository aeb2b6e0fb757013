//! The sampling step: single steps against the reference, thresholding against exact quantiles, whole loops.

use std::sync::Arc;

use warpdiff::backend::{Backend, BackendError, Executable, Precision};
use warpdiff::diffusion::{
    BetaConfig, Clip, Guidance, Keep, LearnedVariance, PredictionType, SamplerKind, SchedulerConfig, StepRow,
    StepTable, VarianceType,
};
use warpdiff::graph::op::SamplerStep;
use warpdiff::graph::{DType, Graph, NoiseSource, Op, Plan, ValueId};
use warpdiff::levels::Levels;

use super::graphs::{Measured, everywhere, held_by_bf16, judge, normals, on_devices};
use crate::common::gpu::check_families;

#[test]
fn shared_cases_match_the_reference() {
    check_families(&["sampler_step"], 20);
}

/// A sampling loop without a network: the caller writes the model's output before each step.
struct Loop {
    exe: Box<dyn Executable>,
    x: ValueId,
    x0: ValueId,
    /// The second previous x_0 and the saved state, where the table has them.
    states: Vec<ValueId>,
    step: ValueId,
    picture: ValueId,
    t: ValueId,
    model: ValueId,
    z: Option<ValueId>,
    levels: Levels,
}

impl Loop {
    /// The picture is that of the f32 state to the bit, whatever made the state.
    fn assert_picture_is_of_x(&self) -> Vec<u8> {
        let mut x = vec![0.0; self.exe.plan().graph().shape(self.x).numel()];
        let mut picture = vec![0; x.len()];
        self.exe.read_f32(self.x, &mut x).unwrap();
        self.exe.read_u8(self.picture, &mut picture).unwrap();
        let expected: Vec<u8> = x.iter().map(|&x| self.levels.byte(x)).collect();
        assert_eq!(picture, expected);
        picture
    }
}

/// What a loop runs on.
#[derive(Clone)]
struct Setting {
    table: Arc<StepTable>,
    shape: [usize; 4],
    model_channels: usize,
    guidance: Option<Guidance>,
    noise: NoiseSource,
    levels: Levels,
}

impl Setting {
    fn new(table: StepTable, shape: [usize; 4]) -> Self {
        let model_channels = shape[3] * if table.learned_variance.is_some() { 2 } else { 1 };
        Self {
            table: Arc::new(table),
            shape,
            model_channels,
            guidance: None,
            noise: NoiseSource::Philox,
            levels: Levels::Rounded,
        }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn compile(&self, backend: &dyn Backend) -> Loop {
        let mut graph = Graph::new();
        let [n, h, w, _] = self.shape;
        let evaluations = if self.guidance.is_some() { 2 * n } else { n };
        let x = graph.state("x", self.shape, DType::F32);
        let x0 = graph.state("x0", self.shape, DType::F32);
        let step = graph.state("step", [1], DType::I32);
        let model = graph.input("model", [evaluations, h, w, self.model_channels], DType::Act);
        let index = graph.input("index", [n], DType::I32);
        let key = graph.input("key", [2], DType::I32);
        let z = (self.noise == NoiseSource::Given).then(|| graph.input("z", self.shape, DType::F32));
        let timestep = Op::StepTimestep { table: Arc::clone(&self.table), batch: evaluations };
        let t = graph.apply(timestep, &[step]).unwrap();
        graph.keep(t);
        let table = Arc::clone(&self.table);
        let sampler = SamplerStep {
            table,
            guidance: self.guidance,
            noise: self.noise,
            picture: Some(self.levels),
            classifier_scale: None,
        };
        let levels = self.levels;
        let history = self.table.history();
        let mut state = |name: &str, used: bool| used.then(|| graph.state(name, self.shape, DType::F32));
        let states: Vec<ValueId> =
            [state("x0_prev2", history.x0_prev2), state("saved", history.saved)].into_iter().flatten().collect();
        let operands: Vec<ValueId> =
            [x, model, x0, step, index, key].into_iter().chain(z).chain(states.iter().copied()).collect();
        let results = graph.push(Op::SamplerStep(sampler), &operands).unwrap();
        let next = graph.apply(Op::Advance, &[step]).unwrap();
        graph.keep(results[2]);
        graph.bind(results[0], x);
        graph.bind(results[1], x0);
        for (&next, &state) in results[3..].iter().zip(&states) {
            graph.bind(next, state);
        }
        graph.bind(next, step);
        let mut exe = backend.compile(Plan::new(graph)).unwrap();
        exe.write_f32(x, &normals(self.elements(), 1)).unwrap();
        // Nothing may read it before a step has written it.
        for &state in [x0].iter().chain(&states) {
            exe.write_f32(state, &vec![f32::NAN; self.elements()]).unwrap();
        }
        exe.write_u32(step, &[0]).unwrap();
        exe.write_u32(index, &(0..n as u32).map(|i| 1_000_000 + 3 * i).collect::<Vec<_>>()).unwrap();
        exe.write_u32(key, &[3, 4]).unwrap();
        Loop { exe, x, x0, states, step, picture: results[2], t, model, z, levels }
    }

    /// The model's output of a step: normals, or positive variances in the upper channels where they are read directly.
    fn output(&self, step: usize) -> Vec<f32> {
        let [n, h, w, c] = self.shape;
        let count = n * h * w * self.model_channels * if self.guidance.is_some() { 2 } else { 1 };
        let mut out = held_by_bf16(normals(count, 100 + step as u32));
        if self.table.learned_variance == Some(LearnedVariance::Direct) {
            for pixel in out.chunks_mut(2 * c) {
                pixel[c..].iter_mut().for_each(|v| *v = v.abs());
            }
        }
        out
    }

    /// Results of every step of a run.
    fn run(&self, backend: &dyn Backend) -> Vec<Measured> {
        let mut l = self.compile(backend);
        let mut results = Vec::new();
        for step in 0..self.table.rows.len() {
            l.exe.write_f32(l.model, &self.output(step)).unwrap();
            if let Some(z) = l.z {
                l.exe.write_f32(z, &normals(self.elements(), 200 + step as u32)).unwrap();
            }
            l.exe.run().unwrap();
            for (name, value) in [("x", l.x), ("x0", l.x0), ("t", l.t), ("step", l.step)] {
                // Counters are compared as they are read.
                let dtype = DType::F32;
                let data = if name == "step" { vec![step as f64 + 1.0] } else { l.exe.read_f64(value).unwrap() };
                results.push(Measured::new(format!("{name} after step {step}"), dtype, data));
            }
            // What is not written yet is NaN everywhere and compares with nothing.
            for (i, &state) in l.states.iter().enumerate() {
                let data = l.exe.read_f64(state).unwrap();
                if data.iter().all(|v| v.is_nan()) {
                    continue;
                }
                results.push(Measured::new(format!("state {i} after step {step}"), DType::F32, data));
            }
            l.assert_picture_is_of_x();
        }
        results
    }
}

fn scheduler(kind: SamplerKind, prediction: PredictionType, variance: VarianceType) -> SchedulerConfig {
    SchedulerConfig { prediction_type: prediction, variance_type: variance, ..SchedulerConfig::new(kind) }
}

/// Five steps of each sampler; the states are updated in place.
#[test]
fn loops_follow_the_reference() {
    for kind in SamplerKind::ALL {
        for (betas, prediction) in [
            (BetaConfig::linear(1000), PredictionType::Epsilon),
            // Coefficients of x_0 in the thousands at the first step.
            (BetaConfig::cosine(1000), PredictionType::Epsilon),
            (BetaConfig::linear(1000), PredictionType::VPrediction),
            (BetaConfig::linear(1000), PredictionType::Sample),
        ] {
            let eta = if kind == SamplerKind::Ddim { 0.7 } else { 0.0 };
            let mut config = SchedulerConfig { betas, ..scheduler(kind, prediction, VarianceType::FixedSmall) };
            // With all the states that the sampler can have; and inversion of x_0 needs noise to start from.
            config.dpm_solver.solver_order = if kind == SamplerKind::DpmSolverPp { 2 } else { 3 };
            config.set_alpha_to_one = kind != SamplerKind::DdimInverse;
            let table = StepTable::build(&config, 5, eta).unwrap();
            for shape in [[2, 3, 5, 3], [1, 4, 4, 1]] {
                let setting = Setting::new(table.clone(), shape);
                judge(&format!("{kind}, {prediction:?}, {shape:?}"), |backend| setting.run(backend));
            }
        }
    }
}

fn rows(p: f64) -> Vec<StepRow> {
    let row = StepRow {
        timestep: 900.0,
        c_x0x: 2.5,
        c_x0m: -1.75,
        a: 0.4,
        b: 0.7,
        e: -0.2,
        p: 0.0,
        s: 0.3,
        log_min: -4.0,
        log_max: -1.0,
        noise: true,
        ..StepRow::default()
    };
    let late = StepRow { timestep: 1.5, p, noise: false, ..row };
    vec![row, StepRow { p, ..row }, late]
}

/// Everything that a row can ask for, with every clip, variance and source of noise.
#[test]
fn all_variants_of_a_step_match_the_reference() {
    let clips = [
        Clip::None,
        Clip::Range(1.25),
        Clip::Dynamic { ratio: 0.9, max_value: 3.0 },
        Clip::Dynamic { ratio: 1.0, max_value: 0.5 },
    ];
    for clip in clips {
        for learned_variance in [None, Some(LearnedVariance::Direct), Some(LearnedVariance::LogRange)] {
            for (guidance, noise) in
                [(None, NoiseSource::Given), (Some(Guidance { scale: 2.5, rescale: 0.6 }), NoiseSource::Philox)]
            {
                let table = StepTable { rows: rows(-0.3), clip, learned_variance, ..StepTable::default() };
                for shape in [[2, 3, 5, 3], [3, 2, 4, 1]] {
                    let setting = Setting { guidance, noise, ..Setting::new(table.clone(), shape) };
                    judge(&format!("{clip:?}, {learned_variance:?}, {guidance:?}"), |backend| setting.run(backend));
                }
            }
        }
    }
}

/// Rows that read and replace every state, and rows that use one of the two only.
#[test]
fn history_matches_the_reference() {
    let keep = Keep { x: 0.3, x0: -0.6, ..Keep::default() };
    let begin = StepRow { keep, ..rows(0.0)[0] };
    let next = StepRow { p: -0.3, keep: Keep { x0_prev: 0.2, saved: 0.5, ..keep }, r: 0.4, ..begin };
    let all = StepRow { q: 0.15, keep: Keep { x0_prev2: -0.7, ..next.keep }, noise: false, ..next };
    let two = StepRow { q: 0.25, ..rows(-0.3)[1] };
    let tables = [vec![begin, next, all], vec![begin, next, next], vec![rows(0.0)[0], rows(-0.3)[1], two, two]];
    for rows in tables {
        for (clip, learned_variance) in [
            (Clip::None, None),
            (Clip::Range(1.25), Some(LearnedVariance::LogRange)),
            (Clip::Dynamic { ratio: 0.9, max_value: 3.0 }, None),
        ] {
            for (guidance, noise) in [(None, NoiseSource::Given), (Some(2.5.into()), NoiseSource::Philox)] {
                let table = StepTable { rows: rows.clone(), clip, learned_variance, ..StepTable::default() };
                for shape in [[2, 3, 5, 3], [3, 2, 4, 1], [1, 1, 1, 1]] {
                    let setting = Setting { guidance, noise, ..Setting::new(table.clone(), shape) };
                    judge(&format!("{:?}, {clip:?}, {guidance:?}", table.history()), |backend| setting.run(backend));
                }
            }
        }
    }
}

/// A sampler with a fixed variance leaves the variance channels of a model unread.
#[test]
fn variance_channels_may_be_left_unread() {
    let table = StepTable { rows: rows(0.0), clip: Clip::Range(1.0), ..StepTable::default() };
    let setting = Setting { model_channels: 6, guidance: Some(1.5.into()), ..Setting::new(table, [2, 3, 5, 3]) };
    judge("unread variance", |backend| setting.run(backend));
}

/// x_0 of one step that gives the model's output itself, thresholded.
fn thresholded(clip: Clip, shape: [usize; 4], output: &[f32], backend: &dyn Backend) -> Vec<f64> {
    let row = StepRow { c_x0m: 1.0, b: 1.0, ..StepRow::default() };
    let table = StepTable { rows: vec![row], clip, ..StepTable::default() };
    let mut l = Setting::new(table, shape).compile(backend);
    l.exe.write_f32(l.model, output).unwrap();
    l.exe.run().unwrap();
    l.exe.read_f64(l.x0).unwrap()
}

/// Images of a block each and images of many, with ties, zeros and outliers: S is the exact quantile, so the results
/// are those of f64 up to one rounding.
#[test]
fn thresholds_are_exact_quantiles() {
    for shape in [[2, 3, 5, 3], [3, 1, 1, 1], [1, 40, 32, 3], [2, 74, 75, 3]] {
        let image: usize = shape[1..].iter().product();
        let mut output = held_by_bf16(normals(shape[0] * image, 9));
        for (i, v) in output.iter_mut().enumerate() {
            match i % 11 {
                0 => *v *= 40.0,
                1 | 2 => *v = 1.5,
                3 => *v = 0.0,
                _ => *v *= 2.0,
            }
        }
        for ratio in [0.0, 0.3, 0.8, 0.995, 1.0] {
            let clip = Clip::Dynamic { ratio, max_value: 60.0 };
            on_devices(Precision::F32, |backend| {
                let actual = thresholded(clip, shape, &output, backend);
                for (actual, image) in actual.chunks(image).zip(output.chunks(image)) {
                    let mut magnitudes: Vec<f64> = image.iter().map(|v| f64::from(v.abs())).collect();
                    let scale = clip.dynamic_scale(&mut magnitudes);
                    for (a, v) in actual.iter().zip(image) {
                        assert_eq!(
                            *a,
                            f64::from(clip.apply(f64::from(*v), scale) as f32),
                            "{shape:?} {ratio}: S {scale}"
                        );
                    }
                }
            });
        }
    }
}

/// The values at which a byte changes and their neighbours, beyond both ends, and what is not a number.
fn levels_and_borders() -> Vec<f32> {
    let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0, -0.0, 1.0, -1.0, 1e-40];
    for k in 0..=510u16 {
        // Every second one is where a byte is cut down, the others where it is rounded to another.
        let value = f32::from(k) / 255.0 - 1.0;
        // Of data in [-1, 1] and in [0, 1].
        for value in [value, f32::from(k) / 510.0] {
            values.extend([value, value.next_up(), value.next_down()]);
        }
    }
    values
}

/// A step that leaves x as it is, on images of whole words, of single bytes and of both.
#[test]
fn pictures_are_rounded_or_cut_down_as_files_are() {
    let row = StepRow { c_x0x: 1.0, a: 0.5, b: 0.5, ..StepRow::default() };
    let table = StepTable { rows: vec![row], ..StepTable::default() };
    let values = levels_and_borders();
    let rounded = [[1, 40, 77, 1], [6, 1, 1, 515], [513, 1, 2, 3], [1, 1, 1, 1]].map(|shape| (shape, Levels::Rounded));
    let others = [Levels::Truncated, Levels::Unit].map(|levels| [[1, 40, 77, 1], [6, 1, 1, 515]].map(|s| (s, levels)));
    for (shape, levels) in rounded.into_iter().chain(others.into_iter().flatten()) {
        let setting = Setting { levels, ..Setting::new(table.clone(), shape) };
        let mut x = values.clone();
        x.resize(setting.elements(), 0.5);
        everywhere(|backend| {
            let mut l = setting.compile(backend);
            l.exe.write_f32(l.x, &x).unwrap();
            l.exe.run().unwrap();
            let picture = l.assert_picture_is_of_x();
            // x / 2 + x / 2 is x.
            let expected: Vec<u8> = x.iter().map(|&x| levels.byte(x)).collect();
            assert_eq!(picture, expected, "{} {shape:?} {levels:?}", backend.name());
            assert_eq!(l.exe.read_f64(l.picture).unwrap(), expected.iter().map(|&b| f64::from(b)).collect::<Vec<_>>());
        });
    }
}

#[test]
fn bytes_are_read_as_bytes_and_nothing_else_is() {
    let table = StepTable { rows: rows(0.0), ..StepTable::default() };
    everywhere(|backend| {
        let mut l = Setting::new(table.clone(), [2, 3, 5, 3]).compile(backend);
        l.exe.run().unwrap();
        let (mut floats, mut bytes) = (vec![0.0; 90], vec![0; 90]);
        assert!(matches!(l.exe.read_f32(l.picture, &mut floats), Err(BackendError::Type { .. })));
        assert!(matches!(l.exe.read_u8(l.x, &mut bytes), Err(BackendError::Type { .. })));
        assert!(matches!(l.exe.read_u8(l.picture, &mut bytes[1..]), Err(BackendError::Length { .. })));
        l.exe.read_u8(l.picture, &mut bytes).unwrap();
    });
}

/// Large images under bf16, with guidance, through the counting kernels.
#[test]
fn large_images_are_thresholded_after_guidance() {
    let clip = Clip::Dynamic { ratio: 0.95, max_value: 10.0 };
    let table = StepTable { rows: rows(0.0)[..1].to_vec(), clip, ..StepTable::default() };
    let setting = Setting { guidance: Some(3.0.into()), ..Setting::new(table, [2, 79, 70, 3]) };
    judge("large images", |backend| setting.run(backend));
}

#[test]
fn a_nan_stays_in_its_element() {
    let mut output = normals(2 * 45, 9);
    output[50] = f32::NAN;
    for clip in [Clip::None, Clip::Range(1.0), Clip::Dynamic { ratio: 0.8, max_value: 60.0 }] {
        on_devices(Precision::F32, |backend| {
            let x0 = thresholded(clip, [2, 3, 5, 3], &output, backend);
            let lost: Vec<usize> = (0..90).filter(|&i| x0[i].is_nan()).collect();
            assert_eq!(lost, [50], "{clip:?}");
        });
    }
}

/// A step beyond the table shows as NaN instead of reading other memory.
#[test]
fn a_step_beyond_the_table_gives_nan() {
    let clip = Clip::Dynamic { ratio: 0.8, max_value: 60.0 };
    let table = StepTable { rows: rows(0.0), clip, ..StepTable::default() };
    on_devices(Precision::F32, |backend| {
        let setting = Setting::new(table.clone(), [2, 3, 5, 3]);
        let mut l = setting.compile(backend);
        l.exe.write_f32(l.model, &setting.output(0)).unwrap();
        l.exe.write_u32(l.step, &[3]).unwrap();
        l.exe.run().unwrap();
        for value in [l.x, l.x0, l.t] {
            assert!(l.exe.read_f64(value).unwrap().iter().all(|v| v.is_nan()));
        }
        assert_eq!(l.assert_picture_is_of_x(), [0; 90]);
    });
}

/// The bits of an image do not depend on the batch that it is in.
#[test]
fn an_image_has_the_same_bits_in_any_batch() {
    let clip = Clip::Dynamic { ratio: 0.9, max_value: 3.0 };
    let table =
        StepTable { rows: rows(0.2), clip, learned_variance: Some(LearnedVariance::LogRange), ..StepTable::default() };
    let table = Arc::new(table);
    on_devices(Precision::Bf16, |backend| {
        let result = |n: usize| {
            let setting = Setting {
                table: Arc::clone(&table),
                shape: [n, 5, 7, 3],
                model_channels: 6,
                guidance: None,
                noise: NoiseSource::Philox,
                levels: Levels::Rounded,
            };
            setting.run(backend).into_iter().filter(|m| m.name.starts_with('x')).map(|m| m.data).collect::<Vec<_>>()
        };
        let (alone, together) = (result(1), result(3));
        assert!(alone.iter().zip(&together).all(|(a, t)| a[..] == t[..a.len()]));
    });
}
