// Forward convolution and data gradient as an implicit matrix product.
//
//   y[n, p, q, k]  = sum over r, s, c of x[n, p * stride - pad + r, q * stride - pad + s, c] * w[k, r, s, c]
//   dx[n, h, w, c] = sum over r, s, k of dy[n, (h + pad - r) / stride, (w + pad - s) / stride, k] * w[k, r, s, c]
//
// followed by the epilogue. NHWC, KRSC. Linear layers are the 1x1 case. Grid: x = tiles (columns fastest, so that the blocks
// that share source pixels run together), z = phase + phases * split. Shared memory: shared_bytes<Shape>().
// Limit: tensor core (or FFMA) rate for 3x3 layers from 16x16 pixels on, bytes for 1x1 layers and thin channels.
// Floor: 2 * pixels * columns * depth FLOPs; (source + filter + out + residual) bytes.
#pragma once

#include "conv/loaders.cuh"
#include "gemm/mainloop.cuh"

// The block of tile `tile` and of `part` = phase + phases * split.
template <class Shape, bool BACKWARD, bool VECTOR>
__device__ __forceinline__ void convolution(const ConvArgs& args, int tile, int part) {
    using T = typename Shape::T;
    constexpr Major FILTER_MAJOR = BACKWARD ? Major::outer : Major::depth;
    using Product = typename ProductFor<Shape, Major::depth, FILTER_MAJOR, false>::Type;
    using BLoader = std::conditional_t<BACKWARD, FilterColumns<Shape, VECTOR>, FilterRows<Shape, VECTOR>>;

    const int phases = BACKWARD ? args.stride * args.stride : 1;
    const int phase = part % phases, split = part / phases;
    const PhaseAxis vertical =
        phase_axis<BACKWARD>(phase / args.stride, args.out_h, args.kernel_h, args.stride, args.pad_top);
    const PhaseAxis horizontal =
        phase_axis<BACKWARD>(phase % args.stride, args.out_w, args.kernel_w, args.stride, args.pad_left);

    const int columns = args.epilogue.columns;
    const int column_tiles = (columns + Shape::COLUMNS - 1) / Shape::COLUMNS;
    const int first_row = tile / column_tiles * Shape::ROWS;
    const int first_column = tile % column_tiles * Shape::COLUMNS;
    const int rows = args.images * vertical.outputs * horizontal.outputs;
    // Phases of odd sizes differ in length; the grid is made for the longest.
    if (first_row >= rows) {
        return;
    }

    const int depth = vertical.taps * horizontal.taps * args.source_channels;
    int first_step = 0, steps = (depth + Shape::DEPTH - 1) / Shape::DEPTH;
    if (args.partial) {
        first_step = min(split * args.segment_steps, steps);
        steps = min(args.segment_steps, steps - first_step);
    }
    SourceRows<Shape, BACKWARD, VECTOR> a(args, vertical, horizontal, first_row, first_step * Shape::DEPTH);
    BLoader b(args, vertical, horizontal, first_column, first_step * Shape::DEPTH);
    Product product;
    mainloop<Shape>(product, a, b, steps, args.segment_steps, false);

    StagedTile<Shape>::hand_out(product, [&](int tile_row, int tile_column, float(&values)[Shape::CHUNK]) {
        const int row = first_row + tile_row, column = first_column + tile_column;
        if (row >= rows || column >= columns) {
            return;
        }
        int64_t pixel = row;
        if (BACKWARD && phases > 1) {
            const int x = row % horizontal.outputs, y = row / horizontal.outputs;
            const int image = y / vertical.outputs;
            pixel = int64_t(image * args.out_h + y % vertical.outputs * vertical.step + vertical.first) * args.out_w +
                    x * horizontal.step + horizontal.first;
        }
        if (args.partial) {
            const int64_t pixels = int64_t(args.images) * args.out_h * args.out_w;
            store_row(args.partial + (split * pixels + pixel) * columns, values, column, columns);
        } else {
            apply_epilogue<T>(args.epilogue, pixel, column, values);
        }
    });
}

template <class Shape, bool BACKWARD, bool VECTOR> __device__ __forceinline__ void convolution(const ConvArgs& args) {
    convolution<Shape, BACKWARD, VECTOR>(args, int(blockIdx.x), int(blockIdx.z));
}
