// How a block walks over a tile of rows (pixels) and channels, and what it knows of each channel.
//
// A thread keeps one column of V neighbouring channels, so that everything it knows of its channels stays in registers,
// and takes every `lanes`-th row of it: a warp reads whole rows, or whole 32-byte sectors of a slice of them.
#pragma once

#include "device/device.cuh"

// Columns of V channels in a tile of `channels` channels, dealt to the threads of a block.
struct Columns {
    uint32_t count; // columns of the tile
    uint32_t lanes; // threads that share a column, at different rows
    uint32_t lane;  // this thread's place among them
    uint32_t first; // this thread's first column; others follow only where a tile has more columns than threads

    __device__ Columns(uint32_t columns) : count(columns) {
        lanes = columns < blockDim.x ? blockDim.x / columns : 1;
        lane = threadIdx.x / columns;
        // Threads left over by an uneven division have no column.
        first = columns < blockDim.x ? (lane < lanes ? threadIdx.x - lane * columns : columns) : threadIdx.x;
        lane = columns < blockDim.x ? lane : 0;
    }

    // Rows that a lane takes of `rows`.
    __device__ uint32_t rows_of(uint32_t which, uint32_t rows) const {
        const uint32_t even = rows / lanes;
        return even + (which < rows - even * lanes ? 1u : 0u);
    }
};

// The affine map that follows normalisation: gamma and beta, modulated by (scale, shift) of one image where these exist.
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
