// Sine and cosine of an angle given in turns. The caller reduces the angle in double, where that is one subtraction; the
// library's sincosf would do it in float, with a slow path through local memory.
#pragma once

#include "device/device.cuh"

// The fraction of a turn, in [-1/2, 1/2].
__device__ __forceinline__ float fraction(double turns) { return float(turns - rint(turns)); }

// sin and cos of 2 pi f, |f| <= 1/2; absolute error below 2e-7.
__device__ __forceinline__ void sin_cos_turns(float f, float& sine, float& cosine) {
    const float quarter = rintf(4.0f * f);
    const float x = (f - 0.25f * quarter) * 6.28318530717958647692f; // |x| <= pi / 4
    const float x2 = x * x;
    // Taylor series; the first terms left out are below 2e-9.
    const float s = x * fmaf(x2, fmaf(x2, fmaf(x2, fmaf(x2, 1.0f / 362880, -1.0f / 5040), 1.0f / 120), -1.0f / 6), 1.0f);
    const float c =
        fmaf(x2, fmaf(x2, fmaf(x2, fmaf(x2, fmaf(x2, -1.0f / 3628800, 1.0f / 40320), -1.0f / 720), 1.0f / 24), -0.5f),
             1.0f);
    const int quadrant = int(quarter) & 3;
    sine = quadrant & 1 ? c : s;
    cosine = quadrant & 1 ? s : c;
    sine = quadrant >= 2 ? -sine : sine;
    cosine = quadrant == 1 || quadrant == 2 ? -cosine : cosine;
}
