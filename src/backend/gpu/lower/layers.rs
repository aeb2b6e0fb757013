//! Linear layers that read the same vectors, as one launch: `kernels/conv/layers.cu`.

use bytemuck::{Pod, Zeroable};

use super::Lowering;
use super::conv::{blocks, int};
use crate::backend::BackendError;
use crate::backend::gpu::choice::mma::Tile;
use crate::backend::gpu::driver::DevicePtr;
use crate::graph::Node;
use crate::graph::gather::is_layer_of_vectors;

/// `struct LinearLayer` of `kernels/conv/layers.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinearLayer {
    out: DevicePtr,
    filter: DevicePtr,
    bias: DevicePtr,
    columns: i32,
    first_tile: i32,
}

/// `struct LinearLayersArgs` of the same file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinearLayersArgs {
    x: DevicePtr,
    count: i32,
    rows: i32,
    depth: i32,
    padding: i32,
    layers: [LinearLayer; MOST_LAYERS],
}

/// As many as one launch may have.
const MOST_LAYERS: usize = 64;

/// The nodes from `first` on that one launch computes: layers of the same vectors whose rows are whole 16-byte chunks. A
/// layer that stands alone is one of them, so that an operation by itself runs the kernel that a network runs.
pub(super) fn together<'a>(ctx: &Lowering<'a>, first: usize) -> &'a [Node] {
    let graph = ctx.plan.graph();
    let nodes = &graph.nodes()[first..];
    let x = nodes[0].inputs.first();
    let joins = |node: &&Node| node.inputs.first() == x && is_layer_of_vectors(graph, node);
    let count = nodes.iter().take_while(joins).count();
    let whole_chunks = x.is_some_and(|&x| (graph.shape(x).channels() * ctx.act_bytes()).is_multiple_of(16));
    if whole_chunks { &nodes[..count] } else { &[] }
}

/// Launches the layers that stand [`together`].
pub(super) fn lower(ctx: &mut Lowering, nodes: &[Node]) -> Result<(), BackendError> {
    nodes.chunks(MOST_LAYERS).try_for_each(|nodes| launch(ctx, nodes))
}

fn launch(ctx: &mut Lowering, nodes: &[Node]) -> Result<(), BackendError> {
    let tile = Tile::smallest(ctx.precision());
    let (tile_rows, tile_columns) = tile.size();
    let x = nodes[0].inputs[0];
    let (rows, depth) = (ctx.shape(x).rows(), ctx.shape(x).channels());
    let (mut layers, mut tiles) = ([LinearLayer::zeroed(); MOST_LAYERS], 0);
    for (layer, node) in layers.iter_mut().zip(nodes) {
        let columns = ctx.shape(node.outputs[0]).channels();
        *layer = LinearLayer {
            out: ctx.ptr(node.outputs[0]),
            filter: ctx.weight(node.inputs[1]),
            bias: node.inputs.get(2).map_or(DevicePtr::NULL, |&v| ctx.param_f32(v)),
            columns: int(columns)?,
            first_tile: int(tiles)?,
        };
        tiles += columns.div_ceil(tile_columns);
    }
    let (x, count) = (ctx.ptr(x), int(nodes.len())?);
    let args = LinearLayersArgs { x, count, rows: int(rows)?, depth: int(depth)?, padding: 0, layers };
    let grid = [blocks(tiles)?, blocks(rows.div_ceil(tile_rows))?, 1];
    ctx.launch(&format!("linear_layers_{}", ctx.dtype()), grid, tile.threads(), tile.shared_bytes(), &args);
    Ok(())
}
