// Exact order statistics of an image by radix selection: the bits of a non-negative f32 are in the order of its values,
// and three passes over the keys fix 11, 11 and 10 bits of two neighbouring ranks at once. Counts are integers, so
// atomic additions leave the result independent of the order of threads.
#pragma once

#include "device/device.cuh"

constexpr int PASSES = 3;
constexpr int BINS = 2048;
constexpr int SELECT_THREADS = 256;

// The two ranks that are looked for, and what is known of their keys. A rank counts the keys that share its prefix.
struct Selection {
    uint32_t prefix[2];
    uint32_t rank[2];
};

struct Digit {
    uint32_t known;  // mask of the bits that earlier passes fixed
    int shift;
    uint32_t bins;
};

__device__ inline Digit digit_of(int pass) {
    if (pass == 0) return {0u, 21, 2048};
    if (pass == 1) return {0xffe00000u, 10, 2048};
    return {0xfffffc00u, 0, 1024};
}

// Counts a key in the histograms of a pass, [2][BINS]; ranks with one prefix share the first.
__device__ inline void count_key(uint32_t* histograms, const Selection& selection, Digit digit, uint32_t key) {
    const uint32_t bin = (key >> digit.shift) & (digit.bins - 1);
    const uint32_t prefix = key & digit.known;
    if (prefix == selection.prefix[0]) {
        atomicAdd(histograms + bin, 1u);
    } else if (prefix == selection.prefix[1]) {
        atomicAdd(histograms + BINS + bin, 1u);
    }
}

// Sum of `v` over the threads before this one; SELECT_THREADS / 32 words of scratch.
__device__ inline uint32_t sum_before(uint32_t v, uint32_t* scratch) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = v;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t below = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= uint32_t(offset)) sum += below;
    }
    __syncthreads();
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    uint32_t before = sum - v;
    for (uint32_t w = 0; w < warp; w++) before += scratch[w];
    return before;
}

// Extends both prefixes by the digit that a pass has counted. Called by a whole block; `selection` is shared by its
// threads.
__device__ inline void select_digit(const uint32_t* histograms, Selection& selection, Digit digit, uint32_t* scratch) {
    constexpr uint32_t OWN = BINS / SELECT_THREADS;
    const Selection before = selection;
    const bool together = before.prefix[0] == before.prefix[1];
#pragma unroll 1
    for (int r = 0; r < 2; r++) {
        const uint32_t* counts = histograms + (together ? 0 : r * BINS) + threadIdx.x * OWN;
        uint32_t own = 0;
        for (uint32_t i = 0; i < OWN; i++) own += counts[i];
        uint32_t below = sum_before(own, scratch);
        const uint32_t rank = r == 0 ? before.rank[0] : before.rank[1];
        // Exactly one thread owns the rank. sum_before's barriers lie between the reads of `selection` and this write.
        if (rank >= below && rank < below + own) {
            uint32_t bin = 0;
            while (rank >= below + counts[bin]) below += counts[bin++];
            selection.rank[r] = rank - below;
            selection.prefix[r] |= (threadIdx.x * OWN + bin) << digit.shift;
        }
    }
    __syncthreads();
}
