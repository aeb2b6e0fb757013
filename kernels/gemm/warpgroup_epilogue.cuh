// From the sums of a warpgroup to a tile of bf16 in shared memory, as TMA stores it: y = (sum + bias + per_image +
// residual) * scale. The order of additions is that of gemm/epilogue.cuh. Sums of quantised operands are scaled back
// first, column by column.
//
// The staging tile: [64 columns][row][128 bytes], in the 128-byte swizzle. Where a residual is added, it lies there
// already.
#pragma once

#include "gemm/warpgroup_product.cuh"

#ifdef DEVICE_HAS_HOPPER

// The column of element 0 of a thread's fragments, and the row within a block of 64.
__device__ __forceinline__ int fragment_column() { return int(threadIdx.x) % 4 * 2; }
__device__ __forceinline__ int fragment_row() {
    return int(threadIdx.x) % WARPGROUP / 32 * 16 + int(threadIdx.x) % 32 / 4;
}

// scales: [columns]; the tile begins at `column`, and columns is a multiple of 8.
template <class Product>
__device__ __forceinline__ void scale_columns(Product& product, const float* scales, int column, int columns) {
#pragma unroll
    for (int group = 0; group < Product::COLUMNS / 8; ++group) {
        const int at = column + group * 8 + fragment_column();
        if (at < columns) {
            const Vec<float, 2> s = load_vec<2>(scales + at);
#pragma unroll
            for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    product.sums[block][group * 4 + i] *= s.v[i % 2];
                }
            }
        }
    }
}

// bias: [columns]; the tile begins at `column`, and columns is a multiple of 8.
template <class Product>
__device__ __forceinline__ void add_bias(Product& product, const float* bias, int column, int columns) {
#pragma unroll
    for (int group = 0; group < Product::COLUMNS / 8; ++group) {
        const int at = column + group * 8 + fragment_column();
        if (at < columns) {
            const Vec<float, 2> b = load_vec<2>(bias + at);
#pragma unroll
            for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    product.sums[block][group * 4 + i] += b.v[i % 2];
                }
            }
        }
    }
}

// One vector of [columns] an image; image_of(row) is that of a row of the tile.
template <class Product, class ImageOf>
__device__ __forceinline__ void add_per_image(Product& product, const bf16* vectors, int column, int columns,
                                              ImageOf image_of) {
#pragma unroll
    for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bf16* vector = vectors + int64_t(image_of(block * 64 + half * 8 + fragment_row())) * columns;
#pragma unroll
            for (int group = 0; group < Product::COLUMNS / 8; ++group) {
                const int at = column + group * 8 + fragment_column();
                if (at < columns) {
                    const Vec<bf16, 2> v = load_vec<2>(vector + at);
                    product.sums[block][group * 4 + half * 2] += to_float(v.v[0]);
                    product.sums[block][group * 4 + half * 2 + 1] += to_float(v.v[1]);
                }
            }
        }
    }
}

// Rounds the sums into the staging tile, on top of the residual that lies there.
template <class Product>
__device__ __forceinline__ void stage(const Product& product, unsigned char* staging, bool residual, float scale) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) % WARPGROUP / 32;
#pragma unroll
    for (int block = 0; block < Product::BLOCKS; ++block) {
        const int row = block * 64 + warp * 16 + lane % 16;
#pragma unroll
        for (int group = 0; group < Product::COLUMNS / 16; ++group) {
            const int piece = (group % 4 * 2 + lane / 16) ^ row % 8;
            unsigned char* at = staging + (group / 4 * Product::ROWS + row) * LINE_BYTES + piece * 16;
            float values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] = product.sums[block][group * 8 + i];
            }
            if (residual) {
                uint32_t more[4];
                ldmatrix_x4(more, at);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    values[2 * i] += bf16_low(more[i]);
                    values[2 * i + 1] += bf16_high(more[i]);
                }
            }
            uint32_t rounded[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                rounded[i] = pack_bf16x2(values[2 * i] * scale, values[2 * i + 1] * scale);
            }
            stmatrix_x4(at, rounded);
        }
    }
}

// The staged value at (row, column) of the tile.
template <class Product> __device__ __forceinline__ float staged(const unsigned char* staging, int row, int column) {
    const int piece = column % 64 / 8 ^ row % 8;
    const unsigned char* at = staging + (column / 64 * Product::ROWS + row) * LINE_BYTES + piece * 16;
    return to_float(reinterpret_cast<const bf16*>(at)[column % 8]);
}

#endif
