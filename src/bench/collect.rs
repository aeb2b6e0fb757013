//! The convolutions and linear layers of a network, read from its graph.

use super::{ConvShape, GemmShape, Pass, Product};
use crate::graph::autodiff::backward;
use crate::graph::fuse::fuse;
use crate::graph::{DType, Graph, Node, Op, Shape};
use crate::program::{Batch, ForwardProgram};
use crate::unet::{ConfigError, UNetConfig};

/// A product, and how often a network computes it in an evaluation (fprop) or a training step (all passes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Which product.
    pub product: Product,
    /// Which of its passes.
    pub pass: Pass,
    /// How often.
    pub count: usize,
}

/// The products of a network with their gradients, in the order of their first use.
///
/// # Errors
/// [`ConfigError`] if the configuration makes no network for this batch.
pub fn products(config: &UNetConfig, batch: Batch) -> Result<Vec<Counted>, ConfigError> {
    let program = ForwardProgram::new(config, batch, false)?;
    let mut graph = program.plan.graph().clone();
    let dout = graph.input("dout", graph.shape(program.out), DType::Act);
    backward(&mut graph, &[(program.out, dout)], &[])?;
    fuse(&mut graph);
    Ok(count(&graph))
}

/// The products among the nodes of a graph.
pub fn count(graph: &Graph) -> Vec<Counted> {
    let mut all: Vec<Counted> = Vec::new();
    for node in graph.nodes() {
        let Some((product, pass)) = product_of(graph, node) else { continue };
        match all.iter_mut().find(|c| (c.product, c.pass) == (product, pass)) {
            Some(known) => known.count += 1,
            None => all.push(Counted { product, pass, count: 1 }),
        }
    }
    all
}

fn product_of(graph: &Graph, node: &Node) -> Option<(Product, Pass)> {
    let input = |i: usize| graph.shape(node.inputs[i]);
    let output = || graph.shape(node.outputs[0]);
    let conv = |x: Shape, k: usize, geometry: &crate::graph::ConvGeometry| {
        let (h, w) = x.height_width();
        Product::Conv(ConvShape { n: x.batch(), h, w, c: x.channels(), k, geometry: *geometry })
    };
    let gemm = |x: Shape, n: usize, k: usize| Product::Gemm(GemmShape { m: x.rows(), n, k, b: x.batch() });
    Some(match &node.op {
        Op::Conv2d(geometry, _) => (conv(input(0), output().channels(), geometry), Pass::Fprop),
        Op::ConvDgrad { geometry, .. } => (conv(output(), input(0).channels(), geometry), Pass::Dgrad),
        Op::ConvWgrad { geometry, .. } => (conv(input(1), input(0).channels(), geometry), Pass::Wgrad),
        Op::Linear(_) => (gemm(input(0), output().channels(), input(0).channels()), Pass::Fprop),
        Op::LinearDgrad { .. } => (gemm(input(0), input(0).channels(), output().channels()), Pass::Dgrad),
        Op::LinearWgrad { .. } => (gemm(input(0), input(0).channels(), input(1).channels()), Pass::Wgrad),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::cost;
    use crate::unet::presets;

    fn of(config: &UNetConfig, n: usize) -> Vec<Counted> {
        let (h, w) = config.height_width().unwrap();
        products(config, Batch { n, h, w }).unwrap()
    }

    fn counts(all: &[Counted], pass: Pass, name: &str) -> usize {
        all.iter().filter(|c| c.pass == pass && c.product.to_string() == name).map(|c| c.count).sum()
    }

    /// Layers of DDPM's CIFAR-10 network, counted by hand from its published configuration.
    const CIFAR: [(&str, usize); 19] = [
        ("n2h32w32c128k128r3s1p1", 7),
        ("n2h16w16c256k256r3s1p1", 7),
        ("n2h16w16c512k256r3s1p1", 2),
        ("n2h32w32c256k256r3s1p1", 1),
        ("n2h32w32c256k128r3s1p1", 2),
        ("n2h32w32c384k128r3s1p1", 1),
        ("n2h8w8c256k256r3s1p1", 8),
        ("n2h8w8c512k256r3s1p1", 3),
        ("n2h16w16c384k256r3s1p1", 1),
        ("n2h4w4c256k256r3s1p1", 11),
        ("n2h16w16c128k256r3s1p1", 1),
        ("n2h4w4c512k256r3s1p1", 3),
        ("n2h32w32c128k128r3s2p0.0.1.1", 1),
        ("n2h16w16c256k256r3s2p0.0.1.1", 1),
        ("n2h8w8c256k256r3s2p0.0.1.1", 1),
        ("n2h32w32c3k128r3s1p1", 1),
        ("n2h32w32c128k3r3s1p1", 1),
        // qkv at 16x16; the projections behind it.
        ("m512n768k256b2", 5),
        ("m512n256k256b2", 5),
    ];

    #[test]
    fn the_products_of_the_cifar_network_are_all_there() {
        let all = of(&presets::ddpm_cifar10_32(), 2);
        for (name, count) in CIFAR {
            assert_eq!(counts(&all, Pass::Fprop, name), count, "{name}");
            assert_eq!(counts(&all, Pass::Wgrad, name), count, "{name}");
            // Nobody asks for the gradient of the picture.
            let first = name == "n2h32w32c3k128r3s1p1";
            assert_eq!(counts(&all, Pass::Dgrad, name), if first { 0 } else { count }, "{name}");
        }
        let convolutions = |c: &&Counted| matches!(c.product, Product::Conv(_)) && c.pass == Pass::Fprop;
        let named: usize = CIFAR[..17].iter().map(|(_, count)| count).sum();
        assert_eq!(all.iter().filter(convolutions).map(|c| c.count).sum::<usize>(), named);
        assert_eq!(all.iter().filter(convolutions).count(), 17);
        // 1x1 convolutions of the shortcuts: a change of channels at 32, 16, 8 and 4 pixels.
        let shortcuts =
            [(2048, 128, 256, 2), (2048, 128, 384, 1), (512, 256, 512, 2), (512, 256, 384, 1), (512, 256, 128, 1)];
        for (m, n, k, count) in shortcuts.into_iter().chain([(128, 256, 512, 3), (32, 256, 512, 3)]) {
            assert_eq!(counts(&all, Pass::Fprop, &GemmShape { m, n, k, b: 2 }.to_string()), count, "{m} {n} {k}");
        }
    }

    #[test]
    fn the_counted_products_are_all_the_work_but_attention() {
        for config in [presets::ddpm_cifar10_32(), presets::ddpm_256(), presets::digits_small()] {
            let (h, w) = config.height_width().unwrap();
            let program = ForwardProgram::new(&config, Batch { n: 1, h, w }, false).unwrap();
            let graph = program.plan.graph();
            let attention: u64 = graph
                .nodes()
                .iter()
                .filter(|n| matches!(n.op, Op::Attention { .. }))
                .map(|n| cost::flops(graph, n))
                .sum();
            let counted: u64 = of(&config, 1)
                .iter()
                .filter(|c| c.pass == Pass::Fprop)
                .map(|c| c.product.flops() * c.count as u64)
                .sum();
            assert_eq!(counted + attention, cost::total_flops(graph));
        }
    }
}
