// O = softmax(scale Q K^T) V and its log-sum-exp in f32: the path for verification, on ordinary multiply-adds.
//
// A block takes 64 queries and walks over the keys 64 at a time, with the softmax found on the way (Milakov and Gimelshein
// 2018). Operands are read from L2 in pieces and again for every block of keys. Shared memory: 34 KB + 64 D bytes.
// Limit: shared memory, 2 16-byte loads for 16 multiply-adds of a product of rows. Floor for N images: 4 N T^2 C FLOP.
#include "attention/tile_f32.cuh"

template <int D> __device__ __forceinline__ void attention_forward(const AttentionArgs& args) {
    const uint32_t head = blockIdx.y;
    const uint32_t first_row = blockIdx.x * F32_TILE;
    const uint32_t column = threadIdx.x % 16 * 4;
    const float* const qkv = static_cast<const float*>(args.qkv);
    const auto query = qkv_matrix(qkv, args, QUERY, head);
    const auto key = qkv_matrix(qkv, args, KEY, head);
    const auto value = qkv_matrix(qkv, args, VALUE, head);
    const SharedF32 shared;

    float sums[4][D / 16] = {};
    float maximum[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    float total[4] = {};
    for (uint32_t first = 0; first < args.tokens; first += F32_TILE) {
        ScoreTile scores;
        row_products(scores, shared, query, first_row, key, first);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float largest = maximum[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                scores[i][j] = first + column + j < args.tokens ? scores[i][j] * args.scale : -INFINITY;
                largest = fmaxf(largest, scores[i][j]);
            }
            largest = tile_row_max(largest);
            const float shrink = expf(maximum[i] - largest);
            maximum[i] = largest;
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                scores[i][j] = expf(scores[i][j] - largest);
                sum += scores[i][j];
            }
            total[i] = fmaf(total[i], shrink, sum);
#pragma unroll
            for (int c = 0; c < D / 16; ++c) {
                sums[i][c] *= shrink;
            }
        }
        add_weighted<D>(sums, scores, shared, value, first);
    }
    float* const lse = head_statistics(args.lse, args, head);
    float factor[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float sum = tile_row_sum(total[i]);
        const uint32_t token = first_row + threadIdx.x / 16 * 4 + i;
        factor[i] = 1.0f / sum;
        if (threadIdx.x % 16 == 0 && token < args.tokens) {
            lse[token] = maximum[i] + logf(sum);
        }
    }
    store_tile<D>(head_matrix(static_cast<float*>(args.out), args, head), first_row, sums, factor);
}

KERNEL(attention_forward_d64_f32, AttentionArgs, 256, 1) { attention_forward<64>(args); }
KERNEL(attention_forward_d256_f32, AttentionArgs, 256, 1) { attention_forward<256>(args); }
KERNEL(attention_forward_d512_f32, AttentionArgs, 256, 1) { attention_forward<512>(args); }
