// What the gradients of attention on Hopper share. P is recomputed from lse; dS = P (dP - delta).
#pragma once

#include "attention/hopper.cuh"

#ifdef DEVICE_HAS_HOPPER

struct HopperAttentionGradArgs {
    TensorMap qkv;  // [N, T, 3 heads, d]
    TensorMap dout; // [N, T, heads, d]
    TensorMap dqkv; // [N, T, 3 heads, d]
    const float* lse;
    float* delta;
    int32_t tokens, heads, head_size;
    int32_t row_blocks; // items of a head
    int32_t items;
    float scale;
    uint32_t padding[6];
};

// Tokens of a step.
constexpr int GRADIENT_STEP = 64;

// exp(scale score - lse), both factors in units of log 2. An absent token's lse is infinite: it weighs nothing.
__device__ __forceinline__ float known_weight(float score, float to_log2, float lse_log2) {
    return exp2_flushed(fmaf(score, to_log2, -lse_log2));
}

#endif
