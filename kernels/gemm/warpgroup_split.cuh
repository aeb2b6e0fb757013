// Sums of a tile whose depth is split over work items, possibly of different blocks, without anyone waiting.
//
// Every item writes its segment to the workspace and draws a ticket of the tile. Whoever draws the last one adds all
// segments in ascending order, which are the bits of a sum by one warpgroup, and sets the ticket back to zero for the
// next launch.
#pragma once

#include "gemm/warpgroup_product.cuh"

#ifdef DEVICE_HAS_HOPPER

struct SplitTile {
    float* partial;    // [segments][ROWS * COLUMNS] of this tile, in the order of the fragments
    uint32_t* ticket;  // of this tile
    uint32_t segments;
};

// Whether this warpgroup came last; its product then holds the sum of all segments. `flag`: shared, of this consumer.
template <class Product>
__device__ __forceinline__ bool sum_segments(Product& product, const SplitTile& tile, uint32_t segment, int consumer,
                                             uint32_t* flag) {
    constexpr int TILE = Product::ROWS * Product::COLUMNS;
    const int thread = int(threadIdx.x) % WARPGROUP;
    // Vectors of neighbouring threads lie side by side.
    float4* mine = reinterpret_cast<float4*>(tile.partial + int64_t(segment) * TILE) + thread;
#pragma unroll
    for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
        for (int i = 0; i < Product::COUNT; i += 4) {
            const float* s = product.sums[block] + i;
            __stcg(mine + (block * Product::COUNT + i) / 4 * WARPGROUP, make_float4(s[0], s[1], s[2], s[3]));
        }
    }
    consumer_sync(consumer);
    if (thread == 0) {
        const bool last = draw_ticket(tile.ticket) == tile.segments - 1;
        *flag = last;
        if (last) {
            atomicExch(tile.ticket, 0u);
        }
    }
    consumer_sync(consumer);
    if (*flag == 0) {
        return false;
    }
    // Written by other multiprocessors: read from L2, as much of a tile in flight at a time as the registers hold.
    constexpr int PART = Product::COUNT < 32 ? Product::COUNT : 32;
#pragma unroll
    for (int first = 0; first < Product::BLOCKS * Product::COUNT; first += PART) {
        float* sums = product.sums[first / Product::COUNT] + first % Product::COUNT;
        const float4* at = reinterpret_cast<const float4*>(tile.partial) + thread + first / 4 * WARPGROUP;
#pragma unroll 1
        for (uint32_t other = 0; other < tile.segments; ++other, at += TILE / 4) {
#pragma unroll
            for (int i = 0; i < PART; i += 4) {
                const float4 more = __ldcg(at + i / 4 * WARPGROUP);
                sums[i] = other == 0 ? more.x : sums[i] + more.x;
                sums[i + 1] = other == 0 ? more.y : sums[i + 1] + more.y;
                sums[i + 2] = other == 0 ? more.z : sums[i + 2] + more.z;
                sums[i + 3] = other == 0 ? more.w : sums[i + 3] + more.w;
            }
        }
    }
    return true;
}

#endif
