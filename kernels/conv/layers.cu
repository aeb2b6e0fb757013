// Linear layers of vectors, all of which read the same: y_i[n, k] = sum over c of x[n, c] * w_i[k, c], plus bias_i[k].
//
// The projections of a time embedding, one or two for each residual block, are some twenty layers of the same [N, E] tensor.
// One by one each fills a few multiprocessors and costs a launch; together they are one product with all their columns.
// Grid: x = column tiles of all layers, layer by layer, y = row tiles. Shared memory: shared_bytes<Shape>(). One order of
// sums, ascending depth, whatever the batch and whichever layers stand together.
// Limit: latency up to some ten rows, then L2's bytes. Floor: the filters once, 2 * E bytes a column.
#include "conv/conv.cuh"
#include "conv/shapes.cuh"

struct LinearLayer {
    void* out;            // [rows, columns]
    const void* filter;   // [columns, depth]
    const float* bias;    // [columns] or null
    int32_t columns;
    int32_t first_tile;   // column tiles of the layers before it
};

// As many as one launch may have.
constexpr int MOST_LAYERS = 64;

struct LinearLayersArgs {
    const void* x;   // [rows, depth]
    int32_t count;
    int32_t rows;
    int32_t depth;
    int32_t padding;
    LinearLayer layers[MOST_LAYERS];
};

template <class Shape> __device__ __forceinline__ void linear_layers(const LinearLayersArgs& args) {
    int i = 0;
    while (i + 1 < args.count && args.layers[i + 1].first_tile <= int(blockIdx.x)) {
        ++i;
    }
    const LinearLayer layer = args.layers[i];
    const int column_tiles = (layer.columns + Shape::COLUMNS - 1) / Shape::COLUMNS;
    ConvArgs product{};
    product.source = args.x;
    product.filter = layer.filter;
    product.epilogue.out = layer.out;
    product.epilogue.bias = layer.bias;
    product.epilogue.columns = layer.columns;
    product.epilogue.pixels_per_image = 1;
    product.epilogue.scale = 1.0f;
    product.images = args.rows;
    product.source_h = product.source_w = product.out_h = product.out_w = 1;
    product.kernel_h = product.kernel_w = product.stride = 1;
    product.source_channels = args.depth;
    product.segment_steps = (args.depth + Shape::DEPTH - 1) / Shape::DEPTH;
    convolution<Shape, false, true>(product, int(blockIdx.y) * column_tiles + int(blockIdx.x) - layer.first_tile, 0);
}

KERNEL(linear_layers_bf16, LinearLayersArgs, SmallTile::THREADS, 3) { linear_layers<SmallTile>(args); }
KERNEL(linear_layers_f32, LinearLayersArgs, FloatTile::THREADS) { linear_layers<FloatTile>(args); }
