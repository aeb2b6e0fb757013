// The picture of values in [-1, 1]: grey levels 255 clamp(x / 2 + 1/2, 0, 1), rounded half to even, or of values in [0, 1]
// without the first step, or (x + 1) 127.5 cut down to 0..255; NaN becomes 0. The numbers of src/levels.rs, bit by bit.
#pragma once

#include "diffusion/quad.cuh"

enum class Levels : uint32_t { rounded, truncated, unit };

// x / 2 is exact, so that contracting it and the sum changes nothing. fmaxf drops a NaN.
__device__ inline uint8_t grey_level(float x, Levels levels) {
    // Not contracted: the sum is rounded before it is multiplied.
    if (levels == Levels::truncated) return uint8_t(fminf(fmaxf(__fmul_rn(__fadd_rn(x, 1.0f), 127.5f), 0.0f), 255.0f));
    const float fraction = fminf(fmaxf(levels == Levels::unit ? x : 0.5f * x + 0.5f, 0.0f), 1.0f);
    return uint8_t(rintf(255.0f * fraction));
}

// A quad is one 4-byte store where images consist of whole quads.
__device__ inline void store_picture(uint8_t* batch, Levels rule, const Quad& quad, bool whole,
                                     const float (&x)[QUAD]) {
    uint8_t* p = batch + quad.offset;
    Vec<uint8_t, QUAD> levels;
#pragma unroll
    for (int i = 0; i < QUAD; i++) levels.v[i] = grey_level(x[i], rule);
    if (whole) {
        store_vec(p, levels);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            if (uint32_t(i) < quad.count) p[i] = levels.v[i];
        }
    }
}
