// The affine map that follows normalisation, per channel of one image.
#pragma once

#include "device/device.cuh"

// gamma and beta, modulated by the (scale, shift) of each image where these exist.
struct Affine {
    const float* gamma;
    const float* beta;
    const void* scale_shift; // [N, 2C], or null
};

// gain = gamma * (1 + scale), offset = beta * (1 + scale) + shift for V channels from `channel` on.
template <int V, class T>
__device__ __forceinline__ void load_affine(const Affine& affine, uint32_t image, uint32_t channel, uint32_t channels,
                                            float (&gain)[V], float (&offset)[V]) {
    load_floats<V>(affine.gamma + channel, gain);
    load_floats<V>(affine.beta + channel, offset);
    if (affine.scale_shift != nullptr) {
        const T* row = static_cast<const T*>(affine.scale_shift) + uint64_t(image) * 2 * channels + channel;
        float scale[V], shift[V];
        load_floats<V>(row, scale);
        load_floats<V>(row + channels, shift);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            gain[i] = fmaf(gain[i], scale[i], gain[i]);
            offset[i] = fmaf(offset[i], scale[i], offset[i]) + shift[i];
        }
    }
}
