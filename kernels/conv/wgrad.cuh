// Weight gradient of a convolution, and the bias gradient in the same pass.
//
//   dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p * stride - pad + r, q * stride - pad + s, c]
//   db[k]          = sum over n, p, q of dy[n, p, q, k]
//
// A product with rows k, columns (r, s, c) and the output pixels as depth; both operands are contiguous across the depth, so
// the tiles are outer-major and the tensor core path reads them with transposing ldmatrix. Few tiles, long depth: the pixels
// are cut into splits (blockIdx.y), each of which writes [K, R, S, C] and then [K] sums in f32; sum_splits adds them in
// order. The column tiles that begin at column 0 also sum dy. Shared memory: shared_bytes<Shape>().
// Limit: tensor core rate from 64 channels on; the floor in bytes is x + dy once and dw per split.
#pragma once

#include "conv/geometry.cuh"
#include "gemm/mainloop.cuh"

struct WgradArgs {
    const void* dy;   // [N, H', W', K]
    const void* x;    // [N, H, W, C]
    float* dw;        // [K, R, S, C], of split 0
    float* db;        // [K], of split 0, or null
    int64_t split_elements; // from one split's dw (db) to the next's, a multiple of four
    int32_t images;
    int32_t x_h, x_w, x_channels;
    int32_t dy_h, dy_w, dy_channels;
    int32_t kernel_h, kernel_w;
    int32_t stride;
    int32_t pad_top, pad_left;
    int32_t split_steps; // tile depths a split
    int32_t padding;
};

// A: dy [pixels][K] as it lies in memory.
template <class Shape, bool VECTOR> class GradientRows {
    using T = typename Shape::T;
    using Chunks = ThreadChunks<OperandTile<T, Shape::ROWS, Shape::DEPTH, Major::outer>, Shape::THREADS>;

    struct Cursor {
        int pixel, pixels, channel, channels;

        __device__ __forceinline__ bool valid() const { return pixel < pixels && channel < channels; }
        __device__ __forceinline__ int64_t offset() const { return int64_t(pixel) * channels + channel; }
        __device__ __forceinline__ void next() { ++channel; }
    };

    const T* dy;
    int pixel, pixels, channel, channels;

public:
    __device__ __forceinline__ GradientRows(const WgradArgs& args, int first_row, int first_depth)
        : dy(static_cast<const T*>(args.dy)), pixel(first_depth), pixels(args.images * args.dy_h * args.dy_w),
          channel(first_row + Chunks::chunk() * Shape::CHUNK), channels(args.dy_channels) {}

    __device__ __forceinline__ void fill(unsigned char* tile) const {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            const Cursor cursor{pixel + Chunks::line(i), pixels, channel, channels};
            fill_chunk<VECTOR>(tile + Chunks::offset(i), dy, cursor);
        }
    }

    __device__ __forceinline__ void advance() { pixel += Shape::DEPTH; }
};

// B: the x pixel under tap (r, s) of each output pixel, at columns (r, s, c).
template <class Shape, bool VECTOR> class SourceColumns {
    using T = typename Shape::T;
    using Chunks = ThreadChunks<OperandTile<T, Shape::COLUMNS, Shape::DEPTH, Major::outer>, Shape::THREADS>;

    // An output pixel.
    struct Pixel {
        int image, p, q;
    };

    struct Cursor {
        const SourceColumns& loader;
        const Pixel pixel;
        Tap tap;

        __device__ __forceinline__ int y() const { return pixel.p * loader.stride - loader.pad_top + tap.y; }
        __device__ __forceinline__ int x() const { return pixel.q * loader.stride - loader.pad_left + tap.x; }
        __device__ __forceinline__ bool valid() const {
            return unsigned(y()) < unsigned(loader.height) && unsigned(x()) < unsigned(loader.width) &&
                   tap.y < loader.kernel_h && pixel.image < loader.images;
        }
        __device__ __forceinline__ int64_t offset() const {
            return int64_t((pixel.image * loader.height + y()) * loader.width + x()) * loader.channels + tap.channel;
        }
        __device__ __forceinline__ void next() { tap.advance(1, loader.channels, loader.kernel_w); }
    };

    const T* source;
    int images, height, width, channels, kernel_h, kernel_w, stride, pad_top, pad_left;
    int dy_h, dy_w;
    Pixel step; // DEPTH pixels, in the mixed radix of (image, p, q)
    Pixel pixels[Chunks::COUNT];
    Tap tap;

public:
    __device__ __forceinline__ SourceColumns(const WgradArgs& args, int first_column, int first_depth)
        : source(static_cast<const T*>(args.x)), images(args.images), height(args.x_h), width(args.x_w),
          channels(args.x_channels), kernel_h(args.kernel_h), kernel_w(args.kernel_w), stride(args.stride),
          pad_top(args.pad_top), pad_left(args.pad_left), dy_h(args.dy_h), dy_w(args.dy_w), step(decompose(Shape::DEPTH)),
          tap(Tap::at(first_column + Chunks::chunk() * Shape::CHUNK, args.x_channels, args.kernel_w)) {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            pixels[i] = decompose(first_depth + Chunks::line(i));
        }
    }

    __device__ __forceinline__ void fill(unsigned char* tile) const {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            fill_chunk<VECTOR>(tile + Chunks::offset(i), source, Cursor{*this, pixels[i], tap});
        }
    }

    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            Pixel& pixel = pixels[i];
            pixel.q += step.q;
            const int carry_q = pixel.q >= dy_w;
            pixel.q -= carry_q ? dy_w : 0;
            pixel.p += step.p + carry_q;
            const int carry_p = pixel.p >= dy_h;
            pixel.p -= carry_p ? dy_h : 0;
            pixel.image += step.image + carry_p;
        }
    }

private:
    __device__ __forceinline__ Pixel decompose(int pixel) const {
        return {pixel / dy_w / dy_h, pixel / dy_w % dy_h, pixel % dy_w};
    }
};

template <class Shape, bool VECTOR_DY, bool VECTOR_X>
__device__ __forceinline__ void weight_gradient(const WgradArgs& args) {
    using Product = typename ProductFor<Shape, Major::outer, Major::outer, true>::Type;

    const int rows = args.dy_channels, columns = args.kernel_h * args.kernel_w * args.x_channels;
    const int column_tiles = (columns + Shape::COLUMNS - 1) / Shape::COLUMNS;
    const int first_row = int(blockIdx.x) / column_tiles * Shape::ROWS;
    const int first_column = int(blockIdx.x) % column_tiles * Shape::COLUMNS;
    const int pixels = args.images * args.dy_h * args.dy_w;
    const int first_step = int(blockIdx.y) * args.split_steps;
    const int steps = min(args.split_steps, (pixels + Shape::DEPTH - 1) / Shape::DEPTH - first_step);
    const int64_t split = int64_t(blockIdx.y) * args.split_elements;
    const bool bias = args.db != nullptr && first_column == 0;

    GradientRows<Shape, VECTOR_DY> a(args, first_row, first_step * Shape::DEPTH);
    SourceColumns<Shape, VECTOR_X> b(args, first_column, first_step * Shape::DEPTH);
    Product product;
    mainloop<Shape>(product, a, b, steps, args.split_steps, bias);

    if (bias) {
        product.store_row_sums(args.db + split + first_row, rows - first_row);
    }
    StagedTile<Shape>::hand_out(product, [&](int tile_row, int tile_column, float(&values)[Shape::CHUNK]) {
        const int row = first_row + tile_row, column = first_column + tile_column;
        if (row < rows && column < columns) {
            store_row(args.dw + split + int64_t(row) * columns, values, column, columns);
        }
    });
}
