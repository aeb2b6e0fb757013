// Sums of a tile whose depth is split over work items, possibly of different blocks, without anyone waiting.
//
// Every item writes its segment to the workspace and draws a ticket of the tile. Whoever draws the last one adds all segments
// in ascending order, which are the bits of a sum by one warpgroup, and sets the ticket back to zero for the next launch.
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
    __threadfence();
    consumer_sync(consumer);
    if (thread == 0) {
        const uint32_t drawn = atomicAdd(tile.ticket, 1u);
        *flag = drawn == tile.segments - 1;
        if (*flag) {
            atomicExch(tile.ticket, 0u);
        }
        __threadfence();
    }
    consumer_sync(consumer);
    if (*flag == 0) {
        return false;
    }
    // Written by other multiprocessors: read from L2.
    const float4* first = reinterpret_cast<const float4*>(tile.partial) + thread;
#pragma unroll
    for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
        for (int i = 0; i < Product::COUNT; i += 4) {
            const float4* at = first + (block * Product::COUNT + i) / 4 * WARPGROUP;
            float4 sum = __ldcg(at);
            for (uint32_t other = 1; other < tile.segments; ++other) {
                const float4 more = __ldcg(at + int64_t(other) * (TILE / 4));
                sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
            }
            product.sums[block][i] = sum.x;
            product.sums[block][i + 1] = sum.y;
            product.sums[block][i + 2] = sum.z;
            product.sums[block][i + 3] = sum.w;
        }
    }
    return true;
}

#endif
