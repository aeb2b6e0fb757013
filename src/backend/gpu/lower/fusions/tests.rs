//! Roles in small graphs.

use super::*;
use crate::backend::gpu::lower::conv::Images;
use crate::backend::gpu::lower::{Decisions, measure};
use crate::graph::{Activation, ParamSpec, Plan, Region};
use crate::program::{Batch, ForwardProgram};
use crate::unet::presets;

const SAME: ConvGeometry = ConvGeometry::SAME_3X3;

fn hopper() -> DeviceLimits {
    DeviceLimits {
        name: "test".into(),
        compute_capability: (9, 0),
        multiprocessors: 132,
        shared_bytes: 232_448,
        memory_bytes: 1 << 36,
        shifted_operands: true,
    }
}

/// A graph in the making: `x` has 64 channels.
struct Net {
    graph: Graph,
    x: ValueId,
    params: usize,
}

impl Net {
    fn new(n: usize, h: usize, w: usize) -> Self {
        let mut graph = Graph::new();
        let x = graph.input("x", [n, h, w, 64], DType::Act);
        Self { graph, x, params: 0 }
    }

    fn param(&mut self, dims: &[usize]) -> ValueId {
        self.params += 1;
        self.graph.param(ParamSpec::plain(format!("p{}", self.params), dims))
    }

    fn conv_of(&mut self, x: ValueId, k: usize, geometry: ConvGeometry) -> ValueId {
        let c = self.graph.shape(x).channels();
        let w = self.param(&[k, geometry.kernel.0, geometry.kernel.1, c]);
        self.graph.conv2d(x, w, None, geometry).unwrap()
    }

    fn conv(&mut self, x: ValueId, k: usize) -> ValueId {
        self.conv_of(x, k, SAME)
    }

    fn linear(&mut self, x: ValueId, k: usize) -> ValueId {
        let w = self.param(&[k, self.graph.shape(x).channels()]);
        self.graph.linear(x, w, None).unwrap()
    }

    fn norm(&mut self, x: ValueId, groups: usize) -> ValueId {
        let c = self.graph.shape(x).channels();
        let (gamma, beta) = (self.param(&[c]), self.param(&[c]));
        self.graph.group_norm(x, gamma, beta, None, groups, 1e-5).unwrap()
    }

    fn apply(&mut self, op: Op, x: &[ValueId]) -> ValueId {
        self.graph.apply(op, x).unwrap()
    }

    fn roles(&self) -> Roles {
        self.roles_with(Fusions::default())
    }

    fn roles_with(&self, fusions: Fusions) -> Roles {
        Roles::new(&self.graph, Precision::Bf16, &hopper(), fusions)
    }
}

#[test]
fn a_convolution_reads_the_small_image_where_the_rules_allow() {
    let build = |case: &str| {
        let mut net = Net::new(2, 4, 6);
        let small = if case == "state" { net.graph.state("s", [2, 4, 6, 64], DType::Act) } else { net.x };
        let large = net.apply(Op::Upsample2x, &[small]);
        let y = match case {
            "stride" => net.conv_of(large, 64, ConvGeometry { stride: 2, ..SAME }),
            "pointwise" => net.conv_of(large, 64, ConvGeometry { kernel: (1, 1), padding: (0, 0, 0, 0), stride: 1 }),
            "given weights" => {
                let w = net.graph.input("w", [64, 3, 3, 64], DType::F32);
                net.graph.conv2d(large, w, None, SAME).unwrap()
            }
            _ => net.conv(large, 64),
        };
        net.graph.keep(y);
        match case {
            "kept" => net.graph.keep(large),
            "read twice" => {
                let z = net.apply(Op::Activation(Activation::Silu), &[large]);
                net.graph.keep(z);
            }
            _ => {}
        }
        (net, large, small)
    };
    let (net, large, small) = build("plain");
    let roles = net.roles();
    assert_eq!(roles.replaced().resolve(large), [small]);
    assert!(roles.is_upsampled(large) && roles.replaced().len() == 1);
    for case in ["kept", "read twice", "stride", "pointwise", "given weights", "state"] {
        assert_eq!(build(case).0.roles(), Roles::default(), "{case}");
    }
    assert_eq!(net.roles_with(Fusions { upsample: false, ..Fusions::default() }), Roles::default());
    assert_eq!(Roles::new(&net.graph, Precision::F32, &hopper(), Fusions::default()), Roles::default());
    let before = DeviceLimits { compute_capability: (8, 0), ..hopper() };
    assert_eq!(Roles::new(&net.graph, Precision::Bf16, &before, Fusions::default()), Roles::default());
}

#[test]
fn products_read_a_concatenation_from_its_parts_where_all_readers_can() {
    let build = |channels: usize, reader: &str| {
        let mut net = Net::new(1, 4, 4);
        let b = net.graph.input("b", [1, 4, 4, channels], DType::Act);
        let joined = net.apply(Op::Concat, &[net.x, b]);
        let first = net.conv(joined, 40);
        net.graph.keep(first);
        let second = match reader {
            "linear" => net.linear(joined, 40),
            "norm" => net.norm(joined, 8),
            "silu" => net.apply(Op::Activation(Activation::Silu), &[joined]),
            "residual" => {
                let w = net.param(&[64 + channels, 64]);
                let epilogue = Epilogue { residual: true, ..Epilogue::bias(false) };
                net.apply(Op::Linear(epilogue), &[net.x, w, joined])
            }
            _ => joined,
        };
        net.graph.keep(second);
        (net, joined, b)
    };
    for (channels, reader) in [(32, "linear"), (72, "linear"), (64, "norm")] {
        let (net, joined, b) = build(channels, reader);
        assert_eq!(net.roles().replaced().resolve(joined), [net.x, b], "{reader} {channels}");
        assert_eq!(net.roles_with(Fusions { concat: false, ..Fusions::default() }).replaced().len(), 0);
    }
    for (channels, reader) in [(24, "linear"), (36, "linear"), (32, "silu"), (32, "residual"), (32, "kept")] {
        assert_eq!(build(channels, reader).0.roles(), Roles::default(), "{reader} {channels}");
    }
}

#[test]
fn norms_read_moments_of_products() {
    let mut net = Net::new(2, 16, 16);
    let a = net.conv(net.x, 128);
    let y = net.norm(a, 32);
    let b = net.linear(y, 64);
    let z = net.norm(b, 32);
    net.graph.keep(z);
    let roles = net.roles();
    let [of_a, of_b] = [a, b].map(|v| roles.stored(v).unwrap());
    assert_eq!((of_a.parts, of_a.pixels, of_a.channels), (4, 64, 128));
    assert_eq!((of_b.parts, of_b.pixels, of_b.channels), (4, 64, 64));
    assert_eq!((roles.moments_of(y), roles.moments_of(z)), (Some(vec![of_a]), Some(vec![of_b])));
    // The first are read before the second are made.
    assert_eq!((of_a.offset, of_b.offset), (0, 0));
    assert_eq!(roles.moment_bytes(), 2 * 4 * 128 * 8);
    assert_eq!(net.roles_with(Fusions { statistics: false, ..Fusions::default() }), Roles::default());
    // Neither an input of the graph nor images that cells do not cover.
    for (h, w, k) in [(9, 9, 64), (12, 16, 64), (8, 8, 60)] {
        let mut net = Net::new(1, h, w);
        let unmade = net.norm(net.x, 4);
        let a = net.conv(net.x, k);
        let y = net.norm(a, 4);
        [unmade, y].into_iter().for_each(|v| net.graph.keep(v));
        assert_eq!(net.roles(), Roles::default(), "{h} {w} {k}");
    }
}

#[test]
fn moments_that_live_together_lie_apart() {
    let mut net = Net::new(1, 8, 8);
    let a = net.conv(net.x, 64);
    let b = net.conv(net.x, 64);
    let joined = net.apply(Op::Concat, &[a, b]);
    let y = net.norm(joined, 32);
    let z = net.conv(y, 64);
    net.graph.keep(z);
    let roles = net.roles();
    let both = roles.moments_of(y).unwrap();
    assert_eq!(both, [roles.stored(a).unwrap(), roles.stored(b).unwrap()]);
    assert_ne!(both[0].offset, both[1].offset);
    // One half is not made by a product: the norm computes its own, and nobody stores moments.
    let mut net = Net::new(1, 8, 8);
    let a = net.conv(net.x, 64);
    let joined = net.apply(Op::Concat, &[a, net.x]);
    let y = net.norm(joined, 32);
    net.graph.keep(y);
    let roles = net.roles();
    assert_eq!((roles.moments_of(y), roles.stored(a), roles.moment_bytes()), (None, None, 0));
    assert_eq!(roles.replaced().len(), 1);
}

#[test]
fn roles_do_not_depend_on_the_batch() {
    let roles = |n: usize, size: usize| {
        let mut net = Net::new(n, size, size);
        let large = net.apply(Op::Upsample2x, &[net.x]);
        let a = net.conv(large, 96);
        let b = net.conv(a, 64);
        let joined = net.apply(Op::Concat, &[a, b]);
        let normed = net.norm(joined, 32);
        let shortcut = net.linear(joined, 64);
        [normed, shortcut].into_iter().for_each(|v| net.graph.keep(v));
        let roles = net.roles();
        let stored: Vec<_> = [a, b].iter().map(|&v| roles.stored(v).map(|m| (m.parts, m.pixels))).collect();
        (roles.replaced().clone(), roles.upsampled.clone(), stored)
    };
    for size in [4, 8, 5, 16] {
        let one = roles(1, size);
        assert_eq!(one.0.len(), 2, "{size}");
        for n in [2, 3, 64] {
            assert_eq!(roles(n, size), one, "{n} images of {size}");
        }
    }
}

#[test]
fn what_a_node_reads_is_what_the_launcher_is_given() {
    let mut net = Net::new(3, 4, 6);
    let large = net.apply(Op::Upsample2x, &[net.x]);
    let y = net.conv(large, 64);
    net.graph.keep(y);
    let (upsampling, shape) = (&net.graph.nodes()[1], net.graph.shape(large));
    let product = Analysis::new(&net.graph, Precision::Bf16, &hopper()).product(upsampling, &[net.x], true).unwrap();
    assert_eq!((product.source_size, product.out_size, product.images), ((4, 6), (8, 12), 3));
    assert_eq!((Images::of(shape).height, Images::of(shape).width), product.out_size);
}

/// The U-Net of DDPM for CIFAR-10: no copy is left.
#[test]
fn the_cifar_network_makes_no_copy() {
    let program = ForwardProgram::new(&presets::ddpm_cifar10_32(), Batch { n: 256, h: 32, w: 32 }, false).unwrap();
    let graph = program.plan.graph().clone();
    let count = |of: fn(&Op) -> bool| graph.nodes().iter().filter(|n| of(&n.op)).count();
    let lowered = |fusions: Fusions| {
        let roles = Roles::new(&graph, Precision::Bf16, &hopper(), fusions);
        let plan = Plan::without(graph.clone(), Precision::Bf16, roles.replaced().clone());
        assert_eq!(crate::graph::plan::find_overlap(&plan), None);
        let decisions = Decisions { roles, ..Decisions::default() };
        let lowered = measure(&plan, &decisions, &hopper()).unwrap();
        (decisions.roles, plan.region_bytes(Region::Arena), lowered)
    };
    let (_, whole_bytes, whole) = lowered(Fusions::NONE);
    let (roles, fused_bytes, fused) = lowered(Fusions::default());
    let (concats, doublings) = (count(|op| matches!(op, Op::Concat)), count(|op| matches!(op, Op::Upsample2x)));
    let norms = count(|op| matches!(op, Op::GroupNorm(_)));
    assert_eq!((concats, doublings, norms), (12, 3, 51));
    assert_eq!(roles.replaced().len(), concats + doublings);
    // The first convolution has 3 channels, and no kernel of Hopper: neither of the two norms that read its result finds
    // its moments.
    assert_eq!(roles.normed.len(), norms - 2);
    // The most memory is needed where a norm reads one tensor of 384 channels or its two parts, and writes another.
    assert_eq!(fused_bytes, whole_bytes);
    assert_eq!((fused.moment_bytes, whole.moment_bytes), (17_301_504, 0));
    assert_eq!(fused.derived_bytes, doublings * 256 * 16 * 256 * 2);
    assert_eq!((whole.launches.len(), fused.launches.len(), fused.prepared.len()), (155, 140, doublings));
}
