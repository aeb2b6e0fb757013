// Division of 31-bit numbers by a divisor that is fixed at launch: a multiplication and a shift (Granlund & Montgomery 1994).
// src/backend/gpu/lower/fast_divide.rs computes the numbers.
#pragma once

#include "device/platform.cuh"

struct FastDivide {
    uint32_t divisor;
    uint32_t multiplier;
    uint32_t shift;

    // n / divisor for n < 2^31; the sum cannot overflow because the high product is at most n.
    __device__ __forceinline__ uint32_t quotient(uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }

    __device__ __forceinline__ uint32_t quotient(uint32_t n, uint32_t& remainder) const {
        const uint32_t q = quotient(n);
        remainder = n - q * divisor;
        return q;
    }
};
