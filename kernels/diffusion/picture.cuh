// The picture of values in [-1, 1]: grey levels 255 clamp(x / 2 + 1/2, 0, 1), rounded half to even, or of values in [0, 1]
// without the first step; NaN becomes 0. The numbers of src/levels.rs, bit by bit.
#pragma once

#include "diffusion/quad.cuh"

// x / 2 is exact, so that contracting it and the sum changes nothing. fmaxf drops a NaN.
__device__ inline uint8_t grey_level(float x, bool unit) {
    const float fraction = fminf(fmaxf(unit ? x : 0.5f * x + 0.5f, 0.0f), 1.0f);
    return uint8_t(rintf(255.0f * fraction));
}

// A quad is one 4-byte store where images consist of whole quads.
__device__ inline void store_picture(uint8_t* batch, const Quad& quad, bool whole, bool unit,
                                     const float (&x)[QUAD]) {
    uint8_t* p = batch + quad.offset;
    Vec<uint8_t, QUAD> levels;
#pragma unroll
    for (int i = 0; i < QUAD; i++) levels.v[i] = grey_level(x[i], unit);
    if (whole) {
        store_vec(p, levels);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            if (uint32_t(i) < quad.count) p[i] = levels.v[i];
        }
    }
}
