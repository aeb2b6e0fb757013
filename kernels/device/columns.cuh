// How a block walks over a tile of rows (pixels) and channels.
//
// A thread keeps one column of V neighbouring channels, so that everything it knows of its channels stays in registers,
// and takes every `lanes`-th row of it: a warp reads whole rows, or whole 32-byte sectors of a slice of them.
#pragma once

#include "device/reduce.cuh"

// Columns of V channels in a tile, dealt to the threads of a block.
struct Columns {
    uint32_t count; // columns of the tile
    uint32_t lanes; // threads that share a column, at different rows
    uint32_t lane;  // this thread's place among them
    uint32_t first; // this thread's first column; others follow only where a tile has more columns than threads

    __device__ explicit Columns(uint32_t columns) : count(columns), lanes(1), lane(0), first(threadIdx.x) {
        if (columns < blockDim.x) {
            lanes = blockDim.x / columns;
            lane = threadIdx.x / columns;
            // Threads left over by an uneven division have no column.
            first = lane < lanes ? threadIdx.x - lane * columns : columns;
        }
    }

    // Rows that a lane takes of `rows`.
    __device__ uint32_t rows_of(uint32_t which, uint32_t rows) const {
        const uint32_t even = rows / lanes;
        return even + (which < rows - even * lanes ? 1u : 0u);
    }
};

// Sums per channel over the lanes of a block, in shared memory as [channel][lane]; the odd stride spreads the channels of
// a warp over the banks.
struct LaneSums {
    float* memory;
    uint32_t stride;

    __device__ LaneSums(void* at, uint32_t lanes) : memory(static_cast<float*>(at)), stride(lanes | 1) {}

    template <int V>
    __device__ __forceinline__ void store(uint32_t channel, uint32_t lane, const float (&sums)[V]) const {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            memory[(channel + i) * stride + lane] = sums[i];
        }
    }

    // The total of a channel, for every thread of a whole warp.
    __device__ __forceinline__ float total(uint32_t channel, uint32_t lanes) const {
        float sum = 0.0f;
        for (uint32_t lane = threadIdx.x % 32; lane < lanes; lane += 32) {
            sum += memory[channel * stride + lane];
        }
        return warp_sum(sum);
    }
};
