// 2^x as the hardware computes it, in one instruction.
#pragma once

#include "device/platform.cuh"

// 2^x to 2 units in the last place; 0 where the result would be below the smallest normal number.
__device__ __forceinline__ float exp2_flushed(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return x < -126.0f ? 0.0f : exp2f(x);
#endif
}
