//! Brings together the linear layers that read the same vectors, so that a backend may run them as one.
//!
//! The projections of a time embedding stand all over a network, one or two for each residual block, and all of them could
//! run as soon as the embedding is there.

use std::collections::HashMap;

use super::{Epilogue, Graph, Node, Op, Source, fuse};

/// Whether a node is a linear layer of vectors with a bias at most: `[N, I] -> [N, O]` by parameters.
pub(crate) fn is_layer_of_vectors(graph: &Graph, node: &Node) -> bool {
    let Op::Linear(epilogue) = &node.op else { return false };
    let by_parameters = node.inputs[1..].iter().all(|&v| matches!(graph.value(v).source, Source::Param(_)));
    graph.shape(node.inputs[0]).rank() == 2 && by_parameters && *epilogue == Epilogue::bias(epilogue.bias)
}

/// Moves every layer of vectors behind the first that reads the same.
pub(super) fn gather(graph: &mut Graph) {
    let mut first = HashMap::new();
    let place = |(position, node): (usize, &Node)| match is_layer_of_vectors(graph, node) {
        true => *first.entry(node.inputs[0]).or_insert(position),
        false => position,
    };
    let places: Vec<usize> = graph.nodes.iter().enumerate().map(place).collect();
    let mut nodes: Vec<(usize, Node)> = places.into_iter().zip(std::mem::take(&mut graph.nodes)).collect();
    nodes.sort_by_key(|(place, _)| *place);
    graph.nodes = nodes.into_iter().map(|(_, node)| node).collect();
    fuse::renumber(graph);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, ParamSpec};

    #[test]
    fn layers_of_the_same_vectors_stand_together_and_nothing_else_moves() {
        let mut graph = Graph::new();
        let emb = graph.input("emb", [2, 8], DType::Act);
        let pixels = graph.input("x", [2, 3, 3, 8], DType::Act);
        let layer = |graph: &mut Graph, name: &str, x| {
            graph.set_scope(name);
            let w = graph.param(ParamSpec::plain(name, &[4, 8]));
            graph.linear(x, w, None).unwrap()
        };
        let a = layer(&mut graph, "a", emb);
        let of_pixels = layer(&mut graph, "pixels", pixels);
        let sum = graph.apply(Op::AddPerImage, &[of_pixels, a]).unwrap();
        let b = layer(&mut graph, "b", emb);
        let more_pixels = layer(&mut graph, "more pixels", pixels);
        let activated = graph.silu(b).unwrap();
        let c = layer(&mut graph, "c", emb);
        [sum, more_pixels, activated, c].into_iter().for_each(|v| graph.keep(v));
        gather(&mut graph);
        let scopes: Vec<&str> = graph.nodes().iter().map(|n| n.scope.as_str()).collect();
        assert_eq!(scopes, ["a", "b", "c", "pixels", "pixels", "more pixels", "more pixels"]);
        for (i, node) in graph.nodes().iter().enumerate() {
            assert_eq!(graph.value(node.outputs[0]).source, Source::Node { node: i, index: 0 });
        }
    }
}
