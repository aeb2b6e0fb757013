// dqkv of attention in f32, without float atomics: delta first, then dQ by blocks of query rows, dK and dV by blocks of key
// rows. P is recomputed from lse.
//
// One product of rows or two, and one weighted sum, for each result; a block takes 64 rows and walks over the columns 64 at
// a time. Shared memory and limit as in forward_f32.cu. Products of 2 N T^2 C FLOP: 2 for delta, 3 each for dQ and dK, 2 for
// dV; the least possible is 5. delta_i = sum_j P_ij dP_ij / sum_j P_ij: the error of lse, common to a row, cancels in
// dP - delta where the softmax is nearly one-hot.
#include "attention/tile_f32.cuh"

enum class GradientOf { DELTA, QUERY, KEY, VALUE };

template <int D, GradientOf OF> __device__ __forceinline__ void attention_gradient(const AttentionGradArgs& args) {
    constexpr bool ROWS_ARE_QUERIES = OF == GradientOf::DELTA || OF == GradientOf::QUERY;
    const uint32_t head = blockIdx.y;
    const uint32_t first_row = blockIdx.x * F32_TILE;
    const uint32_t row = first_row + threadIdx.x / 16 * 4;
    const uint32_t x = threadIdx.x % 16 * 4;
    const float* const qkv = static_cast<const float*>(args.qkv);
    const auto query = qkv_matrix(qkv, args, QUERY, head);
    const auto key = qkv_matrix(qkv, args, KEY, head);
    const auto value = qkv_matrix(qkv, args, VALUE, head);
    const auto dout = head_matrix(static_cast<const float*>(args.dout), args, head);
    const float* const lse = head_statistics(args.lse, args, head);
    float* const delta = head_statistics(args.delta, args, head);
    const SharedF32 shared;

    float sums[4][OF == GradientOf::DELTA ? 1 : D / 16] = {};
    float products[4] = {};
    float total[4] = {};
    for (uint32_t first = 0; first < args.tokens; first += F32_TILE) {
        ScoreTile weights;
        ScoreTile gradients = {};
        row_products(weights, shared, ROWS_ARE_QUERIES ? query : key, first_row, ROWS_ARE_QUERIES ? key : query, first);
        if constexpr (OF != GradientOf::VALUE) {
            row_products(gradients, shared, ROWS_ARE_QUERIES ? dout : value, first_row, ROWS_ARE_QUERIES ? value : dout,
                         first);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t column = first + x + j;
                const uint32_t token = ROWS_ARE_QUERIES ? row + i : column;
                const bool exists = column < args.tokens && token < args.tokens;
                const float weight = exists ? expf(fmaf(weights[i][j], args.scale, -__ldg(lse + token))) : 0.0f;
                weights[i][j] = weight;
                if constexpr (OF == GradientOf::DELTA) {
                    products[i] = fmaf(weight, gradients[i][j], products[i]);
                    total[i] += weight;
                } else if constexpr (OF != GradientOf::VALUE) {
                    // Another kernel wrote delta: no read-only load.
                    weights[i][j] = exists ? weight * (gradients[i][j] - delta[token]) : 0.0f;
                }
            }
        }
        if constexpr (OF == GradientOf::QUERY) {
            add_weighted<D>(sums, weights, shared, key, first);
        } else if constexpr (OF == GradientOf::KEY) {
            add_weighted<D>(sums, weights, shared, query, first);
        } else if constexpr (OF == GradientOf::VALUE) {
            add_weighted<D>(sums, weights, shared, dout, first);
        }
    }

    if constexpr (OF == GradientOf::DELTA) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float mean = tile_row_sum(products[i]) / tile_row_sum(total[i]);
            if (x == 0 && row + i < args.tokens) {
                delta[row + i] = mean;
            }
        }
    } else {
        constexpr QkvPart PART = OF == GradientOf::QUERY ? QUERY : OF == GradientOf::KEY ? KEY : VALUE;
        const float scale = OF == GradientOf::VALUE ? 1.0f : args.scale;
        const float factor[4] = {scale, scale, scale, scale};
        store_tile<D>(qkv_matrix(static_cast<float*>(args.dqkv), args, PART, head), first_row, sums, factor);
    }
}

KERNEL(attention_delta_f32, AttentionGradArgs, 256, 1) { attention_gradient<64, GradientOf::DELTA>(args); }

KERNEL(attention_dq_d64_f32, AttentionGradArgs, 256, 1) { attention_gradient<64, GradientOf::QUERY>(args); }
KERNEL(attention_dq_d256_f32, AttentionGradArgs, 256, 1) { attention_gradient<256, GradientOf::QUERY>(args); }
KERNEL(attention_dq_d512_f32, AttentionGradArgs, 256, 1) { attention_gradient<512, GradientOf::QUERY>(args); }

KERNEL(attention_dk_d64_f32, AttentionGradArgs, 256, 1) { attention_gradient<64, GradientOf::KEY>(args); }
KERNEL(attention_dk_d256_f32, AttentionGradArgs, 256, 1) { attention_gradient<256, GradientOf::KEY>(args); }
KERNEL(attention_dk_d512_f32, AttentionGradArgs, 256, 1) { attention_gradient<512, GradientOf::KEY>(args); }

KERNEL(attention_dv_d64_f32, AttentionGradArgs, 256, 1) { attention_gradient<64, GradientOf::VALUE>(args); }
KERNEL(attention_dv_d256_f32, AttentionGradArgs, 256, 1) { attention_gradient<256, GradientOf::VALUE>(args); }
KERNEL(attention_dv_d512_f32, AttentionGradArgs, 256, 1) { attention_gradient<512, GradientOf::VALUE>(args); }
