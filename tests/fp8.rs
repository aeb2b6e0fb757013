//! Sampling with convolutions of e4m3, in the simulator.

mod common;
#[path = "common/e4m3.rs"]
mod e4m3;

use std::sync::Arc;

use common::models::{load_random, noise, scheduler, tiny};
use common::process::{Place, warpdiff};
use common::training::objective;
use half::bf16;
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::gpu::driver::sim::{Async, Options, Schedule, Sim};
use warpdiff::backend::gpu::fp8::{Fp8Scales, Measuring, candidates};
use warpdiff::backend::{Backend, Executable, Precision, Store};
use warpdiff::compare::rule::Errors;
use warpdiff::graph::{AdamW, ConvGeometry, DType, Epilogue, Graph, GroupNorm, Op, ParamId, ParamSpec, Plan, ValueId};
use warpdiff::program::{Batch, ForwardProgram, TrainingInputs, TrainingOptions, TrainingProgram};
use warpdiff::reference::Reference;
use warpdiff::unet::UNetConfig;

const POINTWISE: ConvGeometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };

fn gpu(options: Options) -> Gpu {
    Gpu::new(Arc::new(Sim::new(options)), Precision::Bf16)
}

fn scales(of: &[(&str, f32)]) -> Fp8Scales {
    Fp8Scales::from_maxima(of.iter().map(|&(scope, largest)| (scope.to_string(), largest)))
}

/// Group norm with SiLU, then a convolution with every epilogue.
struct Block {
    plan: Plan,
    inputs: Vec<(ValueId, Vec<f32>)>,
    filter: Vec<f32>,
    normed: ValueId,
    out: ValueId,
    shape: [usize; 4],
    geometry: ConvGeometry,
    columns: usize,
}

const OUT_SCALE: f64 = 0.7;

impl Block {
    fn new(shape: [usize; 4], geometry: ConvGeometry, columns: usize, groups: usize) -> Self {
        let [n, h, w, c] = shape;
        let mut graph = Graph::new();
        let mut inputs = Vec::new();
        let mut input = |graph: &mut Graph, name: &str, shape: &[usize], dtype| {
            let value = graph.input(name, shape, dtype);
            let mut data = noise(shape.iter().product(), 11 + inputs.len() as u64);
            if dtype == DType::Act {
                data.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            inputs.push((value, data));
            value
        };
        let x = input(&mut graph, "x", &shape, DType::Act);
        let (gamma, beta) = (input(&mut graph, "gamma", &[c], DType::F32), input(&mut graph, "beta", &[c], DType::F32));
        let bias = input(&mut graph, "bias", &[columns], DType::F32);
        let per_image = input(&mut graph, "per image", &[n, columns], DType::Act);
        let residual = input(&mut graph, "residual", &[n, h, w, columns], DType::Act);
        let norm = GroupNorm { groups, eps: 1e-5, silu: true, modulated: false };
        let normed = graph.push(Op::GroupNorm(norm), &[x, gamma, beta]).unwrap()[0];
        graph.set_scope("conv");
        let weight = graph.param(ParamSpec::conv("w", columns, c, geometry.kernel));
        let epilogue = Epilogue { bias: true, per_image: true, residual: true, scale: OUT_SCALE };
        let conv = Op::Conv2d(geometry, epilogue);
        let out = graph.push(conv, &[normed, weight, bias, per_image, residual]).unwrap()[0];
        graph.keep(out);
        let mut filter = noise(columns * geometry.kernel.0 * geometry.kernel.1 * c, 3);
        // A channel of zeros, and one that is much larger than the others.
        let depth = filter.len() / columns;
        filter[..depth].fill(0.0);
        filter[depth..2 * depth].iter_mut().for_each(|w| *w *= 50.0);
        Self { plan: Plan::new(graph), inputs, filter, normed, out, shape, geometry, columns }
    }

    fn run(&self, backend: &dyn Backend, read: ValueId) -> Vec<f64> {
        let mut graph = self.plan.graph().clone();
        graph.keep(read);
        let mut exe = backend.compile(Plan::new(graph)).unwrap();
        self.write(exe.as_mut());
        exe.write_param(Store::Params, ParamId::new(0), &self.filter).unwrap();
        exe.run().unwrap();
        exe.read_f64(read).unwrap()
    }

    fn write(&self, exe: &mut dyn Executable) {
        for (value, data) in &self.inputs {
            exe.write_f32(*value, data).unwrap();
        }
    }

    /// What quantised operands give, in f64, and how far a kernel may be off: the rounding of the sums and of the result, and
    /// the inputs that lie so close to a border that the norm's own rounding may move them over it.
    fn quantised(&self, largest: f32) -> (Vec<f64>, Vec<f64>) {
        let exact = self.run(&Reference::default(), self.normed);
        let scale = f64::from(largest / 448.0);
        let moved = |x: f64| -> Vec<f64> {
            let near =
                [1.0 - 2e-6, 1.0, 1.0 + 2e-6].map(|f| e4m3::decode(e4m3::encode((x * f / scale) as f32)) * scale);
            near.to_vec()
        };
        let x: Vec<Vec<f64>> = exact.iter().map(|&x| moved(x)).collect();
        let unsure = x.iter().filter(|v| v[0] != v[2]).count();
        assert!(unsure * 50 < x.len(), "{unsure} of {}", x.len());
        let [n, h, w, c] = self.shape;
        let (kh, kw) = self.geometry.kernel;
        let depth = kh * kw * c;
        let row_scale = |k: usize| {
            let row = self.filter[k * depth..][..depth].iter().fold(0.0f32, |m, w| m.max(w.abs()));
            if row > 0.0 { row / 448.0 } else { 1.0 }
        };
        let filter: Vec<f64> = (0..self.filter.len())
            .map(|i| {
                let scale = row_scale(i / depth);
                e4m3::decode(e4m3::encode(self.filter[i] / scale)) * f64::from(scale)
            })
            .collect();
        let value = |i: usize, at: usize| f64::from(self.inputs[i].1[at]);
        let (mut results, mut limits) = (Vec::new(), Vec::new());
        for at in 0..n * h * w * self.columns {
            let (k, p) = (at % self.columns, at / self.columns);
            let (image, y, z) = (p / (h * w), p / w % h, p % w);
            let (mut sum, mut size, mut unsure) = (0.0, 0.0, 0.0);
            for (r, s) in (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))) {
                let (iy, ix) = (y + r, z + s);
                let (top, left, ..) = self.geometry.padding;
                if iy < top || ix < left || iy - top >= h || ix - left >= w {
                    continue;
                }
                for i in 0..c {
                    let x = &x[((image * h + iy - top) * w + ix - left) * c + i];
                    let f = filter[((k * kh + r) * kw + s) * c + i];
                    sum += x[1] * f;
                    size += (x[1] * f).abs();
                    unsure += ((x[2] - x[0]) * f).abs();
                }
            }
            let result = OUT_SCALE * (sum + value(3, k) + value(4, image * self.columns + k) + value(5, at));
            results.push(result);
            // Half the distance of neighbouring bf16 numbers.
            let rounding = result.abs().max(1e-6).log2().floor().exp2() / 256.0;
            limits.push(OUT_SCALE * (2e-6 * size + unsure) + 1.001 * rounding);
        }
        (results, limits)
    }
}

#[test]
fn a_convolution_multiplies_what_was_quantised() {
    let blocks = [
        Block::new([2, 5, 7, 48], ConvGeometry::SAME_3X3, 40, 8),
        Block::new([3, 4, 4, 272], ConvGeometry::SAME_3X3, 72, 16),
        Block::new([1, 16, 16, 128], ConvGeometry::SAME_3X3, 136, 32),
        Block::new([2, 9, 8, 144], POINTWISE, 64, 8),
        // Too large for a norm in one block.
        Block::new([1, 48, 48, 32], POINTWISE, 32, 2),
    ];
    let variants = [
        Options::default(),
        Options { shifted_operands: false, multiprocessors: 3, ..Options::default() },
        Options { schedule: Schedule::Lifo, asynchronous: Async::Late, ..Options::default() },
    ];
    for block in &blocks {
        let exact = block.run(&Reference::default(), block.normed);
        // Less than the largest: a few inputs saturate.
        let largest = 0.9 * exact.iter().fold(0.0f64, |m, x| m.max(x.abs())) as f32;
        let (expected, limits) = block.quantised(largest);
        let mut first: Option<Vec<f64>> = None;
        for options in &variants {
            let fp8 = gpu(*options).with_fp8(scales(&[("conv", largest)])).unwrap();
            let actual = block.run(&fp8, block.out);
            for (i, ((a, e), limit)) in actual.iter().zip(&expected).zip(&limits).enumerate() {
                assert!((a - e).abs() <= *limit, "{:?}, element {i}: {a}, not {e} +- {limit}", block.shape);
            }
            assert_eq!(*first.get_or_insert_with(|| actual.clone()), actual, "{:?}: bits", block.shape);
        }
    }
}

/// e4m3 rounds an operand by 2^-4 of it at most, and by 2.6 % in the mean square; sums of products of two such lose 3.7 % if
/// all terms are alike. The whole must stay within what one operand may lose.
#[test]
fn quantisation_costs_a_few_percent() {
    for (shape, columns) in [([2, 8, 8, 64], 64), ([1, 6, 10, 160], 48)] {
        let block = Block::new(shape, ConvGeometry::SAME_3X3, columns, 8);
        let exact = block.run(&Reference::default(), block.normed);
        let largest = exact.iter().fold(0.0f64, |m, x| m.max(x.abs())) as f32;
        let expected = block.run(&Reference::default(), block.out);
        let fp8 = gpu(Options::default()).with_fp8(scales(&[("conv", largest)])).unwrap();
        let errors = Errors::between(&block.run(&fp8, block.out), &expected);
        let without = Errors::between(&block.run(&gpu(Options::default()), block.out), &expected);
        println!("{shape:?}: fp8 {errors:?}, bf16 {without:?}");
        assert!(errors.norm < 0.0625 && errors.norm > 4.0 * without.norm, "{errors:?}, bf16 {without:?}");
    }
}

#[test]
fn filters_are_quantised_again_when_weights_are_written() {
    let block = Block::new([1, 5, 6, 32], ConvGeometry::SAME_3X3, 32, 4);
    let fp8 = gpu(Options::default()).with_fp8(scales(&[("conv", 3.0)])).unwrap();
    let expected = block.run(&fp8, block.out);
    let mut exe = fp8.compile(block.plan.clone()).unwrap();
    block.write(exe.as_mut());
    exe.write_param(Store::Params, ParamId::new(0), &noise(block.filter.len(), 77)).unwrap();
    exe.run().unwrap();
    assert_ne!(exe.read_f64(block.out).unwrap(), expected);
    exe.write_param(Store::Params, ParamId::new(0), &block.filter).unwrap();
    exe.run_timed(1).unwrap();
    assert_eq!(exe.read_f64(block.out).unwrap(), expected);
}

/// 8x8, two levels of 32 and 48 channels, with attention.
fn network() -> UNetConfig {
    UNetConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![32, 48],
        norm_num_groups: Some(8),
        attention_head_dim: Some(16),
        ..tiny()
    }
}

/// Model output for `n` images; image i is the same in any batch. `run` runs what was compiled.
fn forward(n: usize, backend: &dyn Backend, measure: Option<&mut Option<Measuring>>) -> Vec<f64> {
    let batch = Batch { n, h: 8, w: 8 };
    let program = ForwardProgram::new(&network(), batch, false).unwrap();
    let mut measuring = measure.is_some().then(|| Measuring::new(&program.plan).unwrap());
    let plan = measuring.as_ref().map_or(&program.plan, |m| &m.plan);
    let mut exe = backend.compile(plan.clone()).unwrap();
    load_random(exe.as_mut(), 3);
    exe.write_f32(program.x, &noise(4 * batch.numel(3) / n, 5)[..batch.numel(3)]).unwrap();
    exe.write_f32(program.t, &[700.0, 31.0, 2.0, 950.0][..n]).unwrap();
    exe.write_u32(program.class.unwrap(), &[0, 1, 2, 0][..n]).unwrap();
    exe.run().unwrap();
    if let Some(m) = &mut measuring {
        m.read(exe.as_ref()).unwrap();
    }
    if let Some(to) = measure {
        *to = measuring;
    }
    exe.read_f64(program.out).unwrap()
}

fn calibrated(backend: &dyn Backend) -> Fp8Scales {
    let mut measuring = None;
    forward(4, backend, Some(&mut measuring));
    measuring.unwrap().scales().unwrap()
}

#[test]
fn the_convolutions_of_residual_blocks_are_quantised() {
    let program = ForwardProgram::new(&network(), Batch { n: 1, h: 8, w: 8 }, false).unwrap();
    let scopes: Vec<String> = candidates(program.plan.graph()).into_iter().map(|c| c.scope).collect();
    assert!(scopes.contains(&"down_blocks.0.resnets.0.conv1".to_string()), "{scopes:?}");
    assert!(
        scopes.iter().all(|s| s.contains("resnets") && (s.ends_with("conv1") || s.ends_with("conv2"))),
        "{scopes:?}"
    );
    // Two levels of one and two blocks each way, and two in the middle.
    assert_eq!(scopes.len(), 2 * (2 + 2 + 4), "{scopes:?}");
    // Few channels: none.
    let narrow = ForwardProgram::new(&tiny(), Batch { n: 1, h: 8, w: 8 }, false).unwrap();
    assert!(candidates(narrow.plan.graph()).is_empty());
}

#[test]
fn scales_are_those_of_the_reference_to_rounding() {
    let (expected, actual) = (calibrated(&Reference::default()), calibrated(&gpu(Options::default())));
    assert_eq!(expected.len(), 16);
    for ((scope, e), (other, a)) in expected.iter().zip(actual.iter()) {
        assert_eq!(scope, other);
        assert!((a / e - 1.0).abs() < 0.02, "{scope}: {a}, not {e}");
    }
}

#[test]
fn a_network_in_fp8_is_near_and_its_images_do_not_depend_on_their_batch() {
    let plain = gpu(Options::default());
    let scales = calibrated(&plain);
    let fp8 = plain.clone().with_fp8(scales).unwrap();
    let expected = forward(4, &Reference::default(), None);
    let whole = forward(4, &fp8, None);
    let errors = Errors::between(&whole, &expected);
    let bf16 = Errors::between(&forward(4, &plain, None), &expected);
    println!("network: fp8 {errors:?}, bf16 {bf16:?}");
    assert!(errors.norm < 0.1 && errors.norm > 2.0 * bf16.norm, "{errors:?}, bf16 {bf16:?}");
    for n in 1..4 {
        let part = forward(n, &fp8, None);
        assert_eq!(part, whole[..part.len()], "batch {n}");
    }
}

#[test]
fn what_cannot_run_in_fp8_is_refused() {
    let old = gpu(Options { capability: (8, 0), ..Options::default() }).with_fp8(Fp8Scales::default());
    assert!(old.err().unwrap().to_string().contains("9.0"));
    let f32 = Gpu::new(Arc::new(Sim::new(Options::default())), Precision::F32).with_fp8(Fp8Scales::default());
    assert!(f32.err().unwrap().to_string().contains("bf16"));

    let config = network();
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let options = TrainingOptions {
        objective: objective(&scheduler(&config, 50)),
        optimizer: Some(optimizer),
        inputs: TrainingInputs::Drawn,
    };
    let program = TrainingProgram::new(&config, Batch { n: 1, h: 8, w: 8 }, &options).unwrap();
    let fp8 = gpu(Options::default()).with_fp8(scales(&[("down_blocks.0.resnets.0.conv1", 1.0)])).unwrap();
    let error = fp8.compile(program.plan).err().unwrap().to_string();
    assert!(error.contains("fp8 is for sampling"), "{error}");
}

#[test]
fn samples_do_not_depend_on_their_batch() {
    let place = Place::new();
    let model = place.model("model", &network());
    let draw = |precision: &str, batch: &str, guidance: &str| {
        let out = place.arg(&format!("{precision}{batch}{guidance}.npz"));
        let device = ["--device", "sim", "--precision", precision];
        let options = ["--num", "3", "--steps", "5", "--seed", "4", "--batch", batch, "--guidance", guidance];
        let run = warpdiff(&[&["sample", &model, "--sampler", "ddim", "--out", &out], &device[..], &options].concat());
        let run = run.expect_success();
        assert_eq!(run.stderr.contains("fp8: 16 convolutions"), precision == "fp8", "{}", run.stderr);
        std::fs::read(out).unwrap()
    };
    let whole = draw("fp8", "3", "1");
    assert_eq!(draw("fp8", "1", "1"), whole);
    assert_eq!(draw("fp8", "2", "1"), whole);
    assert_ne!(draw("bf16", "3", "1"), whole);
    assert_eq!(draw("fp8", "1", "1.5"), draw("fp8", "2", "1.5"));
}

#[test]
fn compare_reports_the_error_of_outputs_and_convolutions() {
    let place = Place::new();
    let (model, out) = (place.model("model", &network()), place.arg("fp8.json"));
    let fp8 = ["--b", "sim", "--precision", "fp8"];
    let run = warpdiff(&[&["compare", &model, "--batch", "2", "--json", &out], &fp8[..]].concat());
    let run = run.expect_success();
    println!("{}", run.stdout);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((&json["precision"], &json["passed"]), (&"fp8".into(), &true.into()));
    let (outputs, convolutions) = (json["outputs"].as_array().unwrap(), json["convolutions"].as_array().unwrap());
    assert_eq!((outputs.len(), convolutions.len()), (4, 16));
    for report in outputs.iter().chain(convolutions) {
        let norm = |precision: &str| report[precision]["norm"].as_f64().unwrap();
        assert!(norm("fp8") > norm("bf16") && norm("fp8") < 0.1 && norm("bf16") > 0.0, "{report}");
    }
    assert!(outputs.windows(2).all(|o| o[0]["timestep"].as_f64() > o[1]["timestep"].as_f64()), "{json}");
}

#[test]
fn commands_that_do_not_sample_refuse_fp8() {
    let place = Place::new();
    let (model, narrow) = (place.model("model", &network()), place.model("narrow", &tiny()));
    let refused = |words: &[&str], args: &[&str]| {
        warpdiff(&[args, &["--precision", "fp8"]].concat()).expect_error(2, words);
    };
    let sim = ["--device", "sim"];
    let elsewhere = ["only sample, compare and bench unet", "--precision bf16"];
    refused(&elsewhere, &[&["train", "digits", "--out", &place.arg("run")], &sim[..]].concat());
    refused(&elsewhere, &[&["nll", &model, "digits"], &sim[..]].concat());
    refused(&elsewhere, &[&["bench", "unet", "--train"], &sim[..]].concat());
    for device in ["cpu", "ref"] {
        refused(&[device, "--device cuda or sim"], &["sample", &model, "--device", device]);
    }
    let fp8 = ["--b", "sim", "--precision", "fp8"];
    warpdiff(&[&["compare", &model, "--train"], &fp8[..]].concat()).expect_error(1, &["--train", "bf16"]);
    warpdiff(&[&["compare", &narrow], &fp8[..]].concat()).expect_error(1, &["no convolution", "32"]);
}
