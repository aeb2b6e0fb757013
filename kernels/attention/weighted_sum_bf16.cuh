// result[rows x d] = weights(rows columns^T) values, without the T x T weights ever being in memory.
//   attention:    rows = Q, columns = K, values = V, weights = softmax by rows, found on the way
//   dV = P^T dO:  rows = K, columns = Q, values = dO, weights = exp(S^T - lse of the column)
//
// A block of up to 4 warps takes 16 rows a warp and walks over the columns BN at a time. Scores, weights and the sums stay
// in registers: 16 x min(D, 256) sums a warp, so head sizes above 256 are two blocks, each with half of the columns and the
// scores of its own. Column and value tiles are single: one arrives while the other is used.
// Shared memory: (rows + BN) D + BN min(D, 256) bf16.
#pragma once

#include "attention/tile_bf16.cuh"

template <int D> constexpr int SUM_COLUMNS = D < 256 ? D : 256;
template <int D> constexpr uint32_t COLUMN_SPLITS = D / SUM_COLUMNS<D>;
// Columns a step: 32 where 64 would leave no registers for the sums.
template <int D> constexpr int STEP = D <= 128 ? 64 : 32;

// Softmax by rows that learns maximum and total block by block (Milakov and Gimelshein 2018). Base 2.
struct OnlineSoftmax {
    float* lse;
    float scale;
    float maximum[2] = {-INFINITY, -INFINITY};
    float total[2] = {0.0f, 0.0f};

    __device__ __forceinline__ OnlineSoftmax(float* lse, float scale) : lse(lse), scale(scale) {}

    // Scores of columns first .. become weights relative to the largest so far; earlier sums are brought to the same scale.
    template <int FRAGMENTS, int SUMS>
    __device__ __forceinline__ void weigh(Fragment (&scores)[FRAGMENTS], Fragment (&sums)[SUMS], uint32_t first,
                                          uint32_t tokens) {
        if (first + 8 * FRAGMENTS > tokens) {
            const uint32_t column = first + threadIdx.x % 4 * 2;
#pragma unroll
            for (int n = 0; n < FRAGMENTS; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    scores[n][e] = column + 8 * n + e % 2 < tokens ? scores[n][e] : -INFINITY;
                }
            }
        }
        const float to_log2 = scale * LOG2_E;
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float largest = maximum[half];
#pragma unroll
            for (int n = 0; n < FRAGMENTS; ++n) {
                largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            largest = row_max(largest);
            shrink[half] = exp2f((maximum[half] - largest) * to_log2);
            maximum[half] = largest;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < FRAGMENTS; ++n) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) {
                    scores[n][e] = exp2f((scores[n][e] - largest) * to_log2);
                    sum += scores[n][e];
                }
            }
            total[half] = fmaf(total[half], shrink[half], sum);
        }
        // Maxima seldom change after the first steps.
        if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int n = 0; n < SUMS; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    sums[n][e] *= shrink[e / 2];
                }
            }
        }
    }

    // What the sums of the lane's rows, `row` and `row` + 8, have to be multiplied with. Writes lse.
    __device__ __forceinline__ void finish(float (&factor)[2], uint32_t row, uint32_t tokens, bool write) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = row_sum(total[half]);
            factor[half] = 1.0f / sum;
            if (write && threadIdx.x % 4 == 0 && row + 8 * half < tokens) {
                lse[row + 8 * half] = fmaf(maximum[half], scale, logf(sum));
            }
        }
    }
};

// Weights of a softmax over the rows' dimension whose log-sum-exp is known for each column.
struct ColumnSoftmax {
    const float* lse;
    float scale;

    template <int FRAGMENTS, int SUMS>
    __device__ __forceinline__ void weigh(Fragment (&scores)[FRAGMENTS], Fragment (&)[SUMS], uint32_t first,
                                          uint32_t tokens) {
        const uint32_t column = first + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < FRAGMENTS; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const uint32_t token = column + 8 * n + e;
                const float log_sum = token < tokens ? __ldg(lse + token) : INFINITY;
                scores[n][e] = exp2f(fmaf(scores[n][e], scale, -log_sum) * LOG2_E);
                scores[n][e + 2] = exp2f(fmaf(scores[n][e + 2], scale, -log_sum) * LOG2_E);
            }
        }
    }

    __device__ __forceinline__ void finish(float (&factor)[2], uint32_t, uint32_t, bool) {
        factor[0] = 1.0f;
        factor[1] = 1.0f;
    }
};

template <int D, class Softmax>
__device__ __forceinline__ void weighted_sum(const HeadMatrix<const bf16>& rows, const HeadMatrix<const bf16>& columns,
                                             const HeadMatrix<const bf16>& values, Softmax softmax,
                                             const HeadMatrix<bf16>& result) {
    constexpr int BN = STEP<D>;
    constexpr int WIDTH = SUM_COLUMNS<D>;
    const uint32_t block_rows = blockDim.x / 2;
    const uint32_t first_row = blockIdx.x * block_rows;
    const uint32_t warp_row = threadIdx.x / 32 * 16;
    const uint32_t first_column = blockIdx.y % COLUMN_SPLITS<D> * WIDTH;
    const uint32_t tokens = rows.tokens;
    const HeadMatrix<const bf16> part = values.columns_from(first_column, WIDTH);
    unsigned char* const row_tile = shared_memory;
    unsigned char* const column_tile = row_tile + block_rows * D * sizeof(bf16);
    unsigned char* const value_tile = column_tile + BN * D * sizeof(bf16);

    Fragment sums[WIDTH / 8] = {};
    load_tile<D>(row_tile, block_rows, rows, first_row);
    load_tile<D>(column_tile, BN, columns, 0);
    cp_async_commit();
    for (uint32_t first = 0; first < tokens; first += BN) {
        load_tile<WIDTH>(value_tile, BN, part, first);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        Fragment scores[BN / 8];
        row_products<D, BN>(scores, row_tile, warp_row, column_tile);
        __syncthreads();
        // After the last step the group is empty: the count of groups stays the same.
        if (first + BN < tokens) {
            load_tile<D>(column_tile, BN, columns, first + BN);
        }
        cp_async_commit();
        softmax.weigh(scores, sums, first, tokens);
        cp_async_wait<1>();
        __syncthreads();
        add_weighted<WIDTH, BN, WIDTH>(sums, scores, value_tile);
        __syncthreads();
    }
    const uint32_t warp_first = first_row + warp_row;
    float factor[2];
    softmax.finish(factor, warp_first + threadIdx.x % 32 / 4, tokens, first_column == 0);
    store_rows<D, WIDTH>(result.columns_from(first_column, WIDTH), warp_first, row_tile, warp_row, sums, factor);
}
