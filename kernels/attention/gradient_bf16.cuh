// The parts of attention's gradient that need dS = P (dP - delta), and delta itself. P is recomputed from lse.
//   delta: rows = Q, dO, columns = K, V:  delta_i = sum_j P_ij dP_ij / sum_j P_ij
//   dQ:    rows = Q, dO, columns = K, V:  dQ = scale dS K
//   dK:    rows = K, V,  columns = Q, dO: dK = scale dS^T Q
// dV = P^T dO needs P alone: see weighted_sum_bf16.cuh.
//
// delta is summed from P and dP rather than from dO and the stored O: where the softmax is nearly one-hot, dP - delta
// cancels, and the rounding of a bf16 O makes errors many times those of rounding the result. The division by
// sum P takes out the error of lse, which is common to a row.
//
// Both tiles of the rows stay in shared memory, the columns' come BN at a time, one of the two arriving while the other is
// used: (2 rows + 2 BN) D bf16. A warp owns 16 rows; sums stay in registers, so head sizes above 256 are two blocks,
// each with half of the columns of the result.
#pragma once

#include "attention/weighted_sum_bf16.cuh"

// Columns a step. Up to 64 the sums leave registers for 64; above 256, 16 let 32 rows fit into 99 KB.
template <int D> constexpr int GRADIENT_STEP = D <= 64 ? 64 : D <= 256 ? 32 : 16;

struct DeltaRole {
    static constexpr bool ROWS_ARE_QUERIES = true, SUMS = false;
};
struct QueryRole {
    static constexpr bool ROWS_ARE_QUERIES = true, SUMS = true;
};
struct KeyRole {
    static constexpr bool ROWS_ARE_QUERIES = false, SUMS = true;
};

// lse and delta of one token; an absent one gets a lse that makes every weight 0.
struct TokenStatistics {
    float lse;
    float delta;
};

template <class Role>
__device__ __forceinline__ TokenStatistics token_statistics(const float* lse, const float* delta, uint32_t token,
                                                            uint32_t tokens) {
    return {token < tokens ? __ldg(lse + token) : INFINITY,
            Role::SUMS && token < tokens ? delta[token] : 0.0f};
}

template <int D, class Role> __device__ __forceinline__ void attention_gradient(const AttentionGradArgs& args) {
    constexpr int BN = GRADIENT_STEP<D>;
    constexpr int WIDTH = Role::SUMS ? SUM_COLUMNS<D> : 16;
    constexpr uint32_t SPLITS = Role::SUMS ? COLUMN_SPLITS<D> : 1;
    const uint32_t head = blockIdx.y / SPLITS;
    const uint32_t block_rows = blockDim.x / 2;
    const uint32_t first_row = blockIdx.x * block_rows;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp_row = threadIdx.x / 32 * 16;
    const uint32_t first_column = blockIdx.y % SPLITS * WIDTH;

    const bf16* const qkv = static_cast<const bf16*>(args.qkv);
    const auto query = qkv_matrix(qkv, args, QUERY, head);
    const auto key = qkv_matrix(qkv, args, KEY, head);
    const auto value = qkv_matrix(qkv, args, VALUE, head);
    const auto dout = head_matrix(static_cast<const bf16*>(args.dout), args, head);
    const float* const lse = head_statistics(args.lse, args, head);
    float* const delta = head_statistics(args.delta, args, head);
    const auto& columns = Role::ROWS_ARE_QUERIES ? key : query;
    const auto& gradient_columns = Role::ROWS_ARE_QUERIES ? value : dout;

    unsigned char* const row_tile = shared_memory;
    unsigned char* const gradient_row_tile = row_tile + block_rows * D * sizeof(bf16);
    unsigned char* const column_tile = gradient_row_tile + block_rows * D * sizeof(bf16);
    unsigned char* const gradient_column_tile = column_tile + BN * D * sizeof(bf16);

    TokenStatistics row_statistics[2] = {};
    if constexpr (Role::ROWS_ARE_QUERIES) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t token = first_row + warp_row + lane / 4 + 8 * half;
            row_statistics[half] = token_statistics<Role>(lse, delta, token, args.tokens);
        }
    }
    Fragment sums[WIDTH / 8] = {};
    float products[2] = {0.0f, 0.0f};
    float total[2] = {0.0f, 0.0f};

    load_tile<D>(row_tile, block_rows, Role::ROWS_ARE_QUERIES ? query : key, first_row);
    load_tile<D>(gradient_row_tile, block_rows, Role::ROWS_ARE_QUERIES ? dout : value, first_row);
    load_tile<D>(gradient_column_tile, BN, gradient_columns, 0);
    cp_async_commit();
    load_tile<D>(column_tile, BN, columns, 0);
    cp_async_commit();
    for (uint32_t first = 0; first < args.tokens; first += BN) {
        const uint32_t column = first + lane % 4 * 2;
        // Asked for here, used after the first product.
        TokenStatistics column_statistics[BN / 4];
        if constexpr (!Role::ROWS_ARE_QUERIES) {
#pragma unroll
            for (int i = 0; i < BN / 4; ++i) {
                column_statistics[i] = token_statistics<Role>(lse, delta, column + i / 2 * 8 + i % 2, args.tokens);
            }
        }
        cp_async_wait<1>();
        __syncthreads();
        Fragment gradients[BN / 8];
        row_products<D, BN>(gradients, gradient_row_tile, warp_row, gradient_column_tile);
        cp_async_wait<0>();
        __syncthreads();
        const bool last = first + BN >= args.tokens;
        if (!last) {
            load_tile<D>(gradient_column_tile, BN, gradient_columns, first + BN);
        }
        cp_async_commit();
        Fragment weights[BN / 8];
        row_products<D, BN>(weights, row_tile, warp_row, column_tile);
#pragma unroll
        for (int n = 0; n < BN / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const TokenStatistics& of = Role::ROWS_ARE_QUERIES ? row_statistics[e / 2] : column_statistics[2 * n + e % 2];
                const bool exists = !Role::ROWS_ARE_QUERIES || column + 8 * n + e % 2 < args.tokens;
                const float weight = exists ? exp2f(fmaf(weights[n][e], args.scale, -of.lse) * LOG2_E) : 0.0f;
                weights[n][e] = weight;
                if constexpr (Role::SUMS) {
                    gradients[n][e] = weight * (gradients[n][e] - of.delta);
                } else {
                    products[e / 2] = fmaf(weight, gradients[n][e], products[e / 2]);
                    total[e / 2] += weight;
                }
            }
        }
        if constexpr (Role::SUMS) {
            const unsigned char* const part = column_tile + first_column * sizeof(bf16);
            add_weighted<D, BN, WIDTH>(sums, gradients, part);
        }
        __syncthreads();
        if (!last) {
            load_tile<D>(column_tile, BN, columns, first + BN);
        }
        cp_async_commit();
    }

    const uint32_t warp_first = first_row + warp_row;
    if constexpr (!Role::SUMS) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float mean = row_sum(products[half]) / row_sum(total[half]);
            const uint32_t token = warp_first + lane / 4 + 8 * half;
            if (lane % 4 == 0 && token < args.tokens) {
                delta[token] = mean;
            }
        }
    } else {
        bf16* const dqkv = static_cast<bf16*>(args.dqkv);
        const float factor[2] = {args.scale, args.scale};
        const auto result = qkv_matrix(dqkv, args, Role::ROWS_ARE_QUERIES ? QUERY : KEY, head);
        store_rows<D, WIDTH>(result.columns_from(first_column, WIDTH), warp_first, row_tile, warp_row, sums, factor);
    }
}

// dV = P^T dO.
template <int D> __device__ __forceinline__ void attention_value_gradient(const AttentionGradArgs& args) {
    const uint32_t head = blockIdx.y / COLUMN_SPLITS<D>;
    const bf16* const qkv = static_cast<const bf16*>(args.qkv);
    weighted_sum<D>(qkv_matrix(qkv, args, KEY, head), qkv_matrix(qkv, args, QUERY, head),
                    head_matrix(static_cast<const bf16*>(args.dout), args, head),
                    ColumnSoftmax{head_statistics(args.lse, args, head), args.scale},
                    qkv_matrix(static_cast<bf16*>(args.dqkv), args, VALUE, head));
}
