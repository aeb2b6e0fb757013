// Activation functions and their slopes.
#pragma once

#include "device/platform.cuh"

// Fast forms: two units in the last place each, a quarter of the instructions. exp(-x) overflows to infinity for very
// negative x, which the quotient turns into the right 0.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// silu(x) = x * sigmoid(x).
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// d silu / dx = s * (1 + x * (1 - s)) with s = sigmoid(x).
__device__ __forceinline__ float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}

// mish(x) = x * tanh(ln(1 + e^x)). The tanh is n / (n + 2) with n = e^x (e^x + 2), which loses nothing where x is very
// negative; beyond 20 the square of e^x would overflow long before the quotient moves again.
__device__ __forceinline__ float mish_gate(float x) {
    const float e = __expf(fminf(x, 20.0f)), n = e * (e + 2.0f);
    return n / (n + 2.0f);
}

__device__ __forceinline__ float mish(float x) { return x * mish_gate(x); }

__device__ __forceinline__ float mish_slope(float x) {
    const float t = mish_gate(x);
    return fmaf(x * fmaf(-t, t, 1.0f), sigmoid(x), t);
}

// gelu(x) = x * Phi(x); the complement keeps its digits where Phi is close to 0.
__device__ __forceinline__ float normal_distribution(float x) { return 0.5f * erfcf(x * -0.707106781f); }

__device__ __forceinline__ float gelu(float x) { return x * normal_distribution(x); }

__device__ __forceinline__ float gelu_slope(float x) {
    return fmaf(x * 0.398942280f, __expf(-0.5f * x * x), normal_distribution(x));
}

// relu(x) = max(x, 0); NaN stays NaN, the slope at 0 is 0.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float relu_slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
