// bfloat16: the upper half of an f32. Conversions round to nearest even, and every NaN becomes 0x7fff, as in cvt.rn.bf16.
//
// e4m3 (Micikevicius et al. 2022): 4 bits of exponent with bias 7, 3 of mantissa, up to 448, no infinity. Conversions round
// to nearest even and saturate; every NaN becomes 0x7f, as in cvt.rn.satfinite.e4m3x2.f32.
#pragma once

#include "device/platform.cuh"

struct bf16 {
    uint16_t bits;
};

struct e4m3 {
    uint8_t bits;
};

// The value in the lower half of a packed pair.
__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }

// The value in the upper half of a packed pair.
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two values rounded to bf16, `low` in the lower half: the order of two neighbours in memory.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
#ifdef __CUDACC__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return uint32_t(sim::bf16_bits(low)) | uint32_t(sim::bf16_bits(high)) << 16;
#endif
}

// The conversion of one value, for the simulator and for GPUs without the instruction.
__device__ __forceinline__ uint32_t e4m3_bits(float x) {
    const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7f;
    }
    // Below 2^-6 there is one spacing, 2^-9; above, 20 bits of the f32's mantissa go and the exponent changes its bias.
    const uint32_t rounded = magnitude < 0x3c800000u
                                 ? uint32_t(__float2int_rn(__uint_as_float(magnitude) * 512.0f))
                                 : ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - ((127u - 7u) << 3);
    return (bits >> 24 & 0x80u) | (rounded < 0x7eu ? rounded : 0x7eu);
}

// Two values rounded to e4m3, `low` in the lower byte.
__device__ __forceinline__ uint16_t pack_e4m3x2(float low, float high) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return uint16_t(e4m3_bits(low) | e4m3_bits(high) << 8);
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return bf16{uint16_t(pack_bf16x2(x, 0.0f))}; }template <> __device__ __forceinline__ e4m3 from_float<e4m3>(float x) { return e4m3{uint8_t(pack_e4m3x2(x, 0.0f))}; }
