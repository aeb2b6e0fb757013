// What happens to a product before it reaches global memory: y = (product + bias + per_image + residual) * scale.
#pragma once

#include "gemm/tile.cuh"

// Pointers that are null are left out. `out`, `per_image` and `residual` hold activations, `bias` f32.
struct Epilogue {
    void* out;               // [pixels, columns]
    const float* bias;       // [columns]
    const void* per_image;   // [images, columns]
    const void* residual;    // [pixels, columns]
    int32_t columns;
    int32_t pixels_per_image;
    float scale;
    int32_t padding;
};

// Adds N neighbours (or those of them that exist) of a row of `source` to `values`.
template <int N, class T>
__device__ __forceinline__ void add_row(float (&values)[N], const T* source, int column, int columns) {
    if (columns % N == 0) {
        float more[N];
        load_floats<N>(source + column, more);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            values[i] += more[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            values[i] += column + i < columns ? to_float(source[column + i]) : 0.0f;
        }
    }
}

// Stores N neighbours (or those of them that exist) of a row: 16-byte accesses where every row is aligned to them.
template <int N, class T>
__device__ __forceinline__ void store_row(T* target, const float (&values)[N], int column, int columns) {
    if (columns % N == 0) {
        store_floats<N>(target + column, values);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (column + i < columns) {
                target[column + i] = from_float<T>(values[i]);
            }
        }
    }
}

// Finishes and stores columns column .. column + N - 1 of one output pixel.
template <class T, int N>
__device__ __forceinline__ void apply_epilogue(const Epilogue& e, int64_t pixel, int column, float (&values)[N]) {
    const int64_t row = pixel * e.columns;
    if (e.bias) {
        add_row(values, e.bias, column, e.columns);
    }
    if (e.per_image) {
        const int64_t image = pixel / e.pixels_per_image;
        add_row(values, static_cast<const T*>(e.per_image) + image * e.columns, column, e.columns);
    }
    if (e.residual) {
        add_row(values, static_cast<const T*>(e.residual) + row, column, e.columns);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        values[i] *= e.scale;
    }
    store_row(static_cast<T*>(e.out) + row, values, column, e.columns);
}

// Hands the result of a block's product, in pieces of a row of 16 bytes of activations, to store(row, column, values); it
// passes through shared memory, so that the threads of a warp store neighbouring pieces.
template <class Shape> struct StagedTile {
    // Eight floats of padding put the four rows that a half warp writes at once into different banks.
    static constexpr int PITCH = Shape::COLUMNS + 8;

    template <class Product, class Store> __device__ __forceinline__ static void hand_out(const Product& product, Store store) {
        constexpr int N = Shape::CHUNK;
        constexpr int PIECES = Shape::COLUMNS / N;
        static_assert(Shape::THREADS % PIECES == 0);
        float* staged = reinterpret_cast<float*>(shared_memory);
        product.template stage<PITCH>(staged);
        __syncthreads();
        const int column = int(threadIdx.x) % PIECES * N;
#pragma unroll 1
        for (int row = int(threadIdx.x) / PIECES; row < Shape::ROWS; row += Shape::THREADS / PIECES) {
            float values[N];
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                const auto part = load_vec<4>(staged + row * PITCH + column + i);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    values[i + j] = part.v[j];
                }
            }
            store(row, column, values);
        }
    }
};

// Shared memory of a kernel: the pipeline, then the staged result in the same place.
template <class Shape> constexpr int shared_bytes() {
    constexpr int pipeline = Shape::STAGES * Shape::STAGE_BYTES;
    constexpr int staged = Shape::ROWS * StagedTile<Shape>::PITCH * 4;
    return pipeline > staged ? pipeline : staged;
}
