// The second half of group normalisation: y = silu?((x - mean) * gain / std + offset), V channels a thread.
#pragma once

#include "device/device.cuh"

// The map of V channels from x to y before SiLU. The mean stays apart: x - mean is exact where x is near the mean, while
// a folded offset - mean * gain would cancel. What the mean lost when it was rounded to float joins the offset.
template <int V> struct ChannelMap {
    float mean[V], gain[V], offset[V];

    // Turns gain and offset of the affine map into those of the whole; `mean[i]`, `low[i]` and `inv_std[i]` are the group's.
    __device__ __forceinline__ void normalise(int i, float group_mean, float low, float inv_std) {
        mean[i] = group_mean;
        gain[i] *= inv_std;
        offset[i] = fmaf(-low, gain[i], offset[i]);
    }

    __device__ __forceinline__ void apply(float (&x)[V], bool with_silu) const {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[i] = fmaf(x[i] - mean[i], gain[i], offset[i]);
        }
        if (with_silu) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                x[i] = silu(x[i]);
            }
        }
    }
};
