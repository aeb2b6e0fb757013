//! What is fused around the products of Hopper when a plan is lowered: graphs of several operations, with and without
//! fusions, against the reference.

use std::cell::Cell;

use warpdiff::backend::gpu::{Fusions, Gpu};
use warpdiff::backend::{Backend, BackendError, Executable, Precision, Store};
use warpdiff::graph::{Activation, ConvGeometry, DType, Epilogue, Graph, Op, ParamId, ParamSpec, Plan, ValueId};
use warpdiff::program::{Batch, ForwardProgram};
use warpdiff::reference::Reference;
use warpdiff::rng::{Sequence, Stream};
use warpdiff::unet::{DownBlock, SampleSize, UNetConfig, UpBlock};

use crate::common::gpu::{device, devices};
use crate::common::models::{load_random, noise};
use crate::common::tolerance;
use crate::common::training::training_steps;

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;
const UPSAMPLE: Fusions = Fusions { upsample: true, ..Fusions::NONE };
const CONCAT: Fusions = Fusions { concat: true, ..Fusions::NONE };
const STATISTICS: Fusions = Fusions { statistics: true, ..Fusions::NONE };

/// A graph for `n` images; parameters and the images of each input are random and the same for any `n`.
struct Net {
    graph: Graph,
    n: usize,
    inputs: Vec<ValueId>,
    /// Mean and deviation of each parameter.
    params: Vec<(f32, f32)>,
    outputs: Vec<ValueId>,
}

impl Net {
    fn new(n: usize) -> Self {
        Self { graph: Graph::new(), n, inputs: Vec::new(), params: Vec::new(), outputs: Vec::new() }
    }

    fn input(&mut self, of_one: &[usize]) -> ValueId {
        let dims = [&[self.n], of_one].concat();
        let v = self.graph.input(&format!("input {}", self.inputs.len()), &dims[..], DType::Act);
        self.inputs.push(v);
        v
    }

    fn param(&mut self, dims: &[usize], mean: f32, deviation: f32) -> ValueId {
        let name = format!("param {}", self.params.len());
        self.params.push((mean, deviation));
        self.graph.param(ParamSpec::plain(name, dims))
    }

    fn channels(&self, v: ValueId) -> usize {
        self.graph.shape(v).channels()
    }

    /// Every epilogue is some number of 0..8: bias, per image, residual.
    fn epilogue(&mut self, bits: usize, of_one: &[usize]) -> (Epilogue, Vec<ValueId>) {
        let epilogue = Epilogue { bias: bits & 1 != 0, per_image: bits & 2 != 0, residual: bits & 4 != 0, scale: 0.7 };
        let k = of_one[of_one.len() - 1];
        let mut operands = Vec::new();
        if epilogue.bias {
            operands.push(self.param(&[k], 0.5, 0.3));
        }
        if epilogue.per_image {
            operands.push(self.input(&[k]));
        }
        if epilogue.residual {
            operands.push(self.input(of_one));
        }
        (epilogue, operands)
    }

    fn conv(&mut self, x: ValueId, k: usize, bits: usize) -> ValueId {
        let (c, (h, w)) = (self.channels(x), self.graph.shape(x).height_width());
        let filter = self.param(&[k, 3, 3, c], 0.0, 1.0 / (9.0 * c as f32).sqrt());
        let (epilogue, operands) = self.epilogue(bits, &[h, w, k]);
        self.graph.apply(Op::Conv2d(SAME, epilogue), &[&[x, filter], &operands[..]].concat()).unwrap()
    }

    fn linear(&mut self, x: ValueId, k: usize, bits: usize) -> ValueId {
        let (c, (h, w)) = (self.channels(x), self.graph.shape(x).height_width());
        let weight = self.param(&[k, c], 0.0, 1.0 / (c as f32).sqrt());
        let (epilogue, operands) = self.epilogue(bits, &[h, w, k]);
        self.graph.apply(Op::Linear(epilogue), &[&[x, weight], &operands[..]].concat()).unwrap()
    }

    fn norm(&mut self, x: ValueId, groups: usize) -> ValueId {
        let c = self.channels(x);
        let (gamma, beta) = (self.param(&[c], 1.0, 0.2), self.param(&[c], 0.0, 0.2));
        self.graph.group_norm(x, gamma, beta, None, groups, 1e-5).unwrap()
    }

    fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        self.graph.apply(op, operands).unwrap()
    }

    fn keep(&mut self, v: ValueId) {
        self.graph.keep(v);
        self.outputs.push(v);
    }

    fn compile(&self, backend: &dyn Backend) -> Box<dyn Executable> {
        let mut exe = backend.compile(Plan::new(self.graph.clone())).unwrap();
        for (i, &(mean, deviation)) in self.params.iter().enumerate() {
            let mut data = vec![0.0; self.graph.params()[i].numel()];
            Sequence::new(3, Stream::Weights, i as u32, 0).fill_normal(&mut data);
            data.iter_mut().for_each(|v| *v = mean + deviation * *v);
            exe.write_param(Store::Params, ParamId::new(i), &data).unwrap();
        }
        for (i, &input) in self.inputs.iter().enumerate() {
            let mut data = vec![0.0; self.graph.shape(input).numel()];
            let of_one = data.len() / self.n;
            for (image, part) in data.chunks_mut(of_one).enumerate() {
                Sequence::new(4, Stream::InitialNoise, i as u32, image as u32).fill_normal(part);
            }
            exe.write_f32(input, &data).unwrap();
        }
        exe
    }

    /// The outputs, one after the other.
    fn run(&self, backend: &dyn Backend) -> Vec<Vec<f64>> {
        let mut exe = self.compile(backend);
        exe.run().unwrap();
        self.outputs.iter().map(|&v| exe.read_f64(v).unwrap()).collect()
    }
}

fn gpu(fusions: Fusions) -> Gpu {
    Gpu::new(device(), Precision::Bf16).with_fusions(fusions)
}

fn same_bits(a: &[Vec<f64>], b: &[Vec<f64>]) -> bool {
    a.iter().flatten().map(|v| v.to_bits()).eq(b.iter().flatten().map(|v| v.to_bits()))
}

/// Fused results keep the tolerance rule, on every device with the same bits; an image has those of a batch of its own; and
/// `fusions` did change something: there are fewer bytes, or other bits.
fn check(name: &str, fusions: Fusions, net: impl Fn(usize) -> Net) {
    let three = net(3);
    let (exact, rounded) = (three.run(&Reference::default()), three.run(&Reference::new(Precision::Bf16)));
    let mut first: Option<Vec<Vec<f64>>> = None;
    for driver in devices() {
        let fused = three.run(&Gpu::new(driver, Precision::Bf16).with_fusions(fusions));
        for (i, ((actual, exact), rounded)) in fused.iter().zip(&exact).zip(&rounded).enumerate() {
            let verdict = tolerance::judge(DType::Act, false, actual, exact, Some(rounded));
            let errors = verdict.unwrap_or_else(|reason| panic!("{name}: output {i}: {reason}"));
            let yardstick = tolerance::judge(DType::Act, false, rounded, exact, Some(rounded)).unwrap();
            println!(
                "{name}: norm {:.2} of rounding alone, worst {:.2}",
                errors.norm / yardstick.norm,
                errors.worst / yardstick.worst
            );
        }
        assert!(same_bits(first.get_or_insert_with(|| fused.clone()), &fused), "{name}: the schedule changes the bits");
    }
    let together = first.unwrap();
    let alone = net(1).run(&gpu(fusions));
    let of_one: Vec<Vec<f64>> = together.iter().map(|data| data[..data.len() / 3].to_vec()).collect();
    assert!(same_bits(&of_one, &alone), "{name}: the batch changes the bits");
    let bytes = |fusions| three.compile(&gpu(fusions)).memory_bytes();
    let unfused = three.run(&gpu(Fusions::NONE));
    assert!(bytes(fusions) != bytes(Fusions::NONE), "{name}: nothing was fused");
    assert!(unfused.iter().flatten().all(|v| v.is_finite()));
}

#[test]
fn upsampling_convolutions_keep_the_rule() {
    let shapes =
        [([1, 1], 40, 72), ([3, 5], 32, 40), ([4, 4], 136, 64), ([8, 8], 64, 24), ([7, 9], 72, 128), ([2, 3], 40, 16)];
    for (i, ([h, w], c, k)) in shapes.into_iter().enumerate() {
        check(&format!("upsample {h}x{w} {c} to {k}"), UPSAMPLE, |n| {
            let mut net = Net::new(n);
            let x = net.input(&[h, w, c]);
            let large = net.op(Op::Upsample2x, &[x]);
            let y = net.conv(large, k, if i == 3 { 7 } else { i });
            net.keep(y);
            net
        });
    }
}

#[test]
fn concatenations_are_read_from_their_parts() {
    for (i, ([h, w], [a, b], groups)) in
        [([4, 4], [64, 40], 8), ([5, 3], [40, 72], 4), ([8, 8], [128, 64], 32), ([1, 1], [64, 64], 16)]
            .into_iter()
            .enumerate()
    {
        let net = |n: usize| {
            let mut net = Net::new(n);
            let (x, y) = (net.input(&[h, w, a]), net.input(&[h, w, b]));
            let joined = net.op(Op::Concat, &[x, y]);
            let normed = net.norm(joined, groups);
            let normed = net.op(Op::Activation(Activation::Silu), &[normed]);
            let convolved = net.conv(normed, 40, i);
            let shortcut = net.linear(joined, 72, 1);
            let direct = net.conv(joined, 48, 2);
            [convolved, shortcut, direct].into_iter().for_each(|v| net.keep(v));
            net
        };
        check(&format!("concat {a} + {b}"), CONCAT, net);
        let bytes = |fusions| net(3).compile(&gpu(fusions)).memory_bytes();
        // Smaller images need more workspace for their segments than the copy takes.
        assert!(h * w < 64 || bytes(CONCAT) < bytes(Fusions::NONE), "{a} + {b}");
        if a % 64 == 0 {
            // The slabs of the parts are those of the concatenation, and so the order of sums.
            assert!(same_bits(&net(2).run(&gpu(CONCAT)), &net(2).run(&gpu(Fusions::NONE))), "{a} + {b}");
        }
    }
}

#[test]
fn norms_read_the_moments_of_products() {
    let shapes =
        [([8, 8], 64, 32, 3), ([4, 4], 40, 8, 7), ([16, 8], 72, 6, 1), ([3, 5], 128, 32, 4), ([1, 1], 40, 4, 3)];
    for ([h, w], c, groups, bits) in shapes {
        for linear in [false, true] {
            check(&format!("{h}x{w} {c} norm, linear {linear}"), STATISTICS, |n| {
                let mut net = Net::new(n);
                let x = net.input(&[h, w, 40]);
                let made = if linear { net.linear(x, c, bits) } else { net.conv(x, c, bits) };
                let normed = net.norm(made, groups);
                net.keep(normed);
                net.keep(made);
                net
            });
        }
    }
}

/// Results for the channels of an image are stored without views, in one phase.
#[test]
fn an_upsampling_convolution_to_few_channels_is_not_fused() {
    let mut net = Net::new(1);
    let x = net.input(&[2, 3, 40]);
    let large = net.op(Op::Upsample2x, &[x]);
    let y = net.conv(large, 3, 0);
    net.keep(y);
    assert!(same_bits(&net.run(&gpu(UPSAMPLE)), &net.run(&gpu(Fusions::NONE))));
}

/// A level of the way up: both halves of a concatenation come from products, one of them upsampled, and 12 channels of a
/// group lie in both.
fn level(n: usize, [h, w]: [usize; 2]) -> Net {
    let mut net = Net::new(n);
    let (x, small) = (net.input(&[2 * h, 2 * w, 40]), net.input(&[h, w, 48]));
    let skipped = net.conv(x, 32, 1);
    let large = net.op(Op::Upsample2x, &[small]);
    let up = net.conv(large, 64, 1);
    let joined = net.op(Op::Concat, &[up, skipped]);
    let normed = net.norm(joined, 8);
    let y = net.conv(normed, 64, 3);
    let shortcut = net.linear(joined, 64, 1);
    let normed = net.norm(y, 16);
    let sum = net.op(Op::Add, &[normed, shortcut]);
    net.keep(sum);
    net
}

#[test]
fn all_fusions_together_keep_the_rule() {
    for size in [[4, 4], [8, 4], [3, 5]] {
        check(&format!("level {size:?}"), Fusions::default(), |n| level(n, size));
    }
}

#[test]
fn other_precisions_and_chips_fuse_nothing() {
    let net = level(2, [4, 4]);
    let f32 = |fusions| Gpu::new(device(), Precision::F32).with_fusions(fusions);
    let (fused, unfused) = (f32(Fusions::default()), f32(Fusions::NONE));
    assert!(same_bits(&net.run(&fused), &net.run(&unfused)));
    assert_eq!(net.compile(&fused).memory_bytes(), net.compile(&unfused).memory_bytes());
}

#[test]
fn a_value_that_is_not_made_cannot_be_read() {
    let mut net = Net::new(1);
    let x = net.input(&[4, 4, 40]);
    let large = net.op(Op::Upsample2x, &[x]);
    let y = net.conv(large, 40, 0);
    net.keep(y);
    let mut exe = net.compile(&gpu(Fusions::default()));
    exe.run().unwrap();
    let Err(BackendError::Device { reason, .. }) = exe.read_f64(large) else { panic!("{large:?} was read") };
    assert!(reason.contains("fused away"), "{reason}");
    // A kept value is made.
    net.keep(large);
    let copies = net.run(&gpu(Fusions::default()));
    assert_eq!(copies[1], net.run(&Reference::new(Precision::Bf16))[1]);
}

/// Summed filters follow weights that are written later.
#[test]
fn weights_may_be_written_again() {
    let mut net = Net::new(1);
    let x = net.input(&[4, 4, 40]);
    let large = net.op(Op::Upsample2x, &[x]);
    let y = net.conv(large, 40, 0);
    net.keep(y);
    let mut exe = net.compile(&gpu(UPSAMPLE));
    exe.run().unwrap();
    let before = exe.read_f64(y).unwrap();
    let mut weights = vec![0.0; net.graph.params()[0].numel()];
    exe.read_param(Store::Params, ParamId::new(0), &mut weights).unwrap();
    weights.iter_mut().for_each(|w| *w *= -2.0);
    exe.write_param(Store::Params, ParamId::new(0), &weights).unwrap();
    exe.run().unwrap();
    let after: Vec<f64> = before.iter().map(|v| -2.0 * v).collect();
    assert_eq!(exe.read_f64(y).unwrap(), after);
}

/// Two levels whose channels the kernels of Hopper take.
fn unet() -> UNetConfig {
    UNetConfig {
        sample_size: Some(SampleSize::Side(8)),
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        attention_head_dim: Some(64),
        norm_num_groups: Some(8),
        ..UNetConfig::default()
    }
}

#[test]
fn a_network_keeps_the_rule_and_does_not_depend_on_its_batch() {
    let bytes = Cell::new(0);
    let forward = |n: usize, backend: &dyn Backend| {
        let batch = Batch { n, h: 8, w: 8 };
        let program = ForwardProgram::new(&unet(), batch, false).unwrap();
        let mut exe = backend.compile(program.plan.clone()).unwrap();
        load_random(exe.as_mut(), 3);
        exe.write_f32(program.x, &noise(batch.numel(3), 5)).unwrap();
        exe.write_f32(program.t, &[7.0, 31.0, 2.0][..n]).unwrap();
        exe.run().unwrap();
        bytes.set(exe.memory_bytes());
        vec![exe.read_f64(program.out).unwrap()]
    };
    let (exact, rounded) = (forward(2, &Reference::default()), forward(2, &Reference::new(Precision::Bf16)));
    let unfused = forward(2, &gpu(Fusions::NONE));
    let before = bytes.get();
    let fused = forward(2, &gpu(Fusions::default()));
    println!("{before} bytes without fusions, {} with", bytes.get());
    for actual in [&unfused, &fused] {
        let errors = tolerance::judge(DType::Act, false, &actual[0], &exact[0], Some(&rounded[0])).unwrap();
        println!("{errors:?}");
    }
    let alone = forward(1, &gpu(Fusions::default()));
    assert!(same_bits(&alone, &[fused[0][..fused[0].len() / 2].to_vec()]), "the batch changes the bits");
}

/// Norms read moments in training, too, and their gradients read what those made of them.
#[test]
fn training_follows_the_reference_that_rounds() {
    let config = UNetConfig { num_class_embeds: Some(4), null_class: Some(3), ..unet() };
    let losses = |backend: &dyn Backend| training_steps(&config, 3, backend);
    let exact = losses(&Reference::default());
    let off = |losses: &[f64]| losses.iter().zip(&exact).map(|(a, e)| ((a - e) / e).abs()).fold(0.0, f64::max);
    let rounded = off(&losses(&Reference::new(Precision::Bf16)));
    let (fused, unfused) = (losses(&gpu(Fusions::default())), losses(&gpu(Fusions::NONE)));
    println!("rounding {rounded:e}, fused {:e}, unfused {:e}", off(&fused), off(&unfused));
    assert!(off(&fused) <= 2.0 * rounded.max(1e-3));
    // Merged in another order, the statistics differ somewhere.
    assert_ne!(fused, unfused);
}
