// f32 products of a block over operands in global memory, by fused multiply-adds on register tiles.
//
// 256 threads as 16 x 16: thread (y, x) holds the 4 x 4 scores of rows 4 y .. and columns 4 x .., and of the sums the rows
// 4 y .. and columns 64 g + 4 x ... Operands come through shared memory in pieces, so any head size takes the same space.
#pragma once

#include "attention/problem.cuh"

constexpr uint32_t F32_THREADS = 256;
constexpr uint32_t F32_TILE = 64;   // rows and columns of the scores of a block
constexpr uint32_t F32_DEPTH = 32;  // channels at a time in a product of rows
constexpr uint32_t F32_VALUES = 16; // columns (keys or queries) at a time in a weighted sum
constexpr uint32_t F32_PITCH = F32_TILE + 4;

using ScoreTile = float[4][4];

// Shared memory in floats: two operands [depth][64], the weights [64][64], the values [16][D].
constexpr uint32_t F32_OPERAND = F32_DEPTH * F32_PITCH;
constexpr uint32_t F32_WEIGHTS = F32_TILE * F32_PITCH;

struct SharedF32 {
    float* rows;
    float* columns;
    float* weights;
    float* values;

    __device__ __forceinline__ SharedF32()
        : rows(reinterpret_cast<float*>(shared_memory)), columns(rows + F32_OPERAND), weights(columns + F32_OPERAND),
          values(weights + F32_WEIGHTS) {}
};

// Four neighbours of a row; zeros where the token or a column does not exist.
__device__ __forceinline__ Vec<float, 4> load_four(const HeadMatrix<const float>& source, uint32_t token, uint32_t column) {
    Vec<float, 4> four = {};
    if (token >= source.tokens || column >= source.columns) {
        return four;
    }
    const float* const from = source.row(token) + column;
    if (source.vector_access) {
        return load_vec<4>(from);
    }
#pragma unroll
    for (uint32_t e = 0; e < 4; ++e) {
        four.v[e] = column + e < source.columns ? from[e] : 0.0f;
    }
    return four;
}

// target[channel][token] of 64 tokens and 32 channels.
__device__ __forceinline__ void load_transposed(float* target, const HeadMatrix<const float>& source, uint32_t token,
                                                uint32_t channel) {
    for (uint32_t i = threadIdx.x; i < F32_TILE * F32_DEPTH / 4; i += F32_THREADS) {
        const uint32_t row = i / (F32_DEPTH / 4);
        const uint32_t column = i % (F32_DEPTH / 4) * 4;
        const Vec<float, 4> four = load_four(source, token + row, channel + column);
#pragma unroll
        for (uint32_t e = 0; e < 4; ++e) {
            target[(column + e) * F32_PITCH + row] = four.v[e];
        }
    }
}

// result = rows columns^T of 64 tokens each. Each piece of 32 channels is a sum of its own: shorter chains round less.
__device__ __forceinline__ void row_products(ScoreTile& result, const SharedF32& shared,
                                             const HeadMatrix<const float>& rows, uint32_t first_row,
                                             const HeadMatrix<const float>& columns, uint32_t first_column) {
    const uint32_t y = threadIdx.x / 16 * 4;
    const uint32_t x = threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            result[i][j] = 0.0f;
        }
    }
    for (uint32_t channel = 0; channel < rows.columns; channel += F32_DEPTH) {
        __syncthreads();
        load_transposed(shared.rows, rows, first_row, channel);
        load_transposed(shared.columns, columns, first_column, channel);
        __syncthreads();
        ScoreTile part = {};
#pragma unroll 8
        for (uint32_t k = 0; k < F32_DEPTH; ++k) {
            const Vec<float, 4> a = load_vec<4>(shared.rows + k * F32_PITCH + y);
            const Vec<float, 4> b = load_vec<4>(shared.columns + k * F32_PITCH + x);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    part[i][j] = fmaf(a.v[i], b.v[j], part[i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                result[i][j] += part[i][j];
            }
        }
    }
}

// sums[4][D / 16] += weights values, over 64 columns.
template <int D>
__device__ __forceinline__ void add_weighted(float (&sums)[4][D / 16], const ScoreTile& weights, const SharedF32& shared,
                                             const HeadMatrix<const float>& values, uint32_t first) {
    const uint32_t y = threadIdx.x / 16 * 4;
    const uint32_t x = threadIdx.x % 16 * 4;
    // Transposed, so that a thread reads its four rows' weights of one column at once. The barrier that makes them visible
    // is the one behind the values.
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        store_vec(shared.weights + (x + j) * F32_PITCH + y,
                  Vec<float, 4>{weights[0][j], weights[1][j], weights[2][j], weights[3][j]});
    }
    for (uint32_t base = 0; base < F32_TILE && first + base < values.tokens; base += F32_VALUES) {
        for (uint32_t i = threadIdx.x; i < F32_VALUES * D / 4; i += F32_THREADS) {
            const uint32_t token = i / (D / 4);
            const uint32_t column = i % (D / 4) * 4;
            store_vec(shared.values + token * D + column, load_four(values, first + base + token, column));
        }
        __syncthreads();
#pragma unroll 4
        for (uint32_t k = 0; k < F32_VALUES; ++k) {
            const Vec<float, 4> a = load_vec<4>(shared.weights + (base + k) * F32_PITCH + y);
#pragma unroll
            for (int g = 0; g < D / 64; ++g) {
                const Vec<float, 4> b = load_vec<4>(shared.values + k * D + 64 * g + x);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        sums[i][4 * g + j] = fmaf(a.v[i], b.v[j], sums[i][4 * g + j]);
                    }
                }
            }
        }
        __syncthreads();
    }
}

// Sum and maximum over the 16 threads that share their rows.
__device__ __forceinline__ float tile_row_sum(float v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    }
    return v;
}

__device__ __forceinline__ float tile_row_max(float v) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) {
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    }
    return v;
}

// Writes the thread's rows, each times its factor.
template <int D>
__device__ __forceinline__ void store_tile(const HeadMatrix<float>& target, uint32_t first, const float (&sums)[4][D / 16],
                                           const float (&factor)[4]) {
    const uint32_t x = threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t token = first + threadIdx.x / 16 * 4 + i;
#pragma unroll
        for (int g = 0; g < D / 64; ++g) {
            const uint32_t column = 64 * g + x;
            if (token >= target.tokens || column >= target.columns) {
                continue;
            }
            Vec<float, 4> four;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                four.v[j] = sums[i][4 * g + j] * factor[i];
            }
            float* const to = target.row(token) + column;
            if (target.vector_access) {
                store_vec(to, four);
                continue;
            }
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                if (column + j < target.columns) {
                    to[j] = four.v[j];
                }
            }
        }
    }
}
