// The sigmoid linear unit, silu(x) = x * sigmoid(x), and its slope.
#pragma once

#include "device/platform.cuh"

// Fast forms: two units in the last place each, a quarter of the instructions. exp(-x) overflows to infinity for very
// negative x, which the quotient turns into the right 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// d silu / dx = s * (1 + x * (1 - s)) with s = sigmoid(x).
__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}
