// The product of two slots of shared memory by one warpgroup (sm_90a): sums[ROWS x COLUMNS] (+)= a[ROWS x 64] b[64 x
// COLUMNS] of bf16; of e4m3 twice as deep.
//
// Both operands lie in the 128-byte swizzle. a: lines of 64 k (e4m3: 128), in groups of eight rows `group_bytes` apart;
// blocks of 64 rows `block_bytes` apart. b: lines as those of a, one a column; or, MN-major and of bf16 only, lines of
// 64 columns, one a k, and 8 KiB for every 64 columns. The address of a need not be a multiple of 1024 bytes where the
// device reads shifted operands.
#pragma once

#include "device/device.cuh"

#ifdef DEVICE_HAS_HOPPER

constexpr int WARPGROUP = 128; // threads
constexpr int LINE_BYTES = 128; // of the swizzle: 64 values of bf16
constexpr int SLAB = 64;        // the depth of a step on bf16, and the columns of a line of the result

// How operand a lies in its slot.
struct RowLayout {
    uint32_t group_bytes, block_bytes;
};

template <int ROWS_, int COLUMNS_, bool MN_MAJOR_B, class T = bf16> struct WarpgroupProduct {
    static constexpr bool E4M3 = sizeof(T) == 1;
    static_assert(!(E4M3 && MN_MAJOR_B), "wgmma reads bytes K-major only");
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int BLOCKS = ROWS / 64, COUNT = COLUMNS / 2;

    // sums[block][i]: element i of the fragment (device/wgmma.cuh) of rows 64 block .. 64 block + 63.
    float sums[BLOCKS][COUNT];

    // Starts the product of a step; a wgmma_wait must follow before anything else looks at the sums.
    __device__ __forceinline__ void start(uint32_t a, RowLayout rows, uint32_t b, bool accumulate) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < LINE_BYTES / 32; ++k) {
            // k advances inside the lines, or by 16 lines.
            const uint64_t right = wgmma_descriptor(b + k * (MN_MAJOR_B ? 16 * LINE_BYTES : 32),
                                                    MN_MAJOR_B ? 64 * LINE_BYTES : 16, 1024, Swizzle::bytes128);
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                const uint64_t left =
                    wgmma_descriptor(a + block * rows.block_bytes + k * 32, 16, rows.group_bytes, Swizzle::bytes128);
                if constexpr (E4M3) {
                    wgmma_ss_e4m3<COLUMNS>(sums[block], left, right, accumulate || k > 0);
                } else {
                    wgmma_ss<COLUMNS, MN_MAJOR_B>(sums[block], left, right, accumulate || k > 0);
                }
            }
        }
        wgmma_commit();
    }
};

// A second set of sums: segments of the depth are summed from zero each and added in ascending order.
template <class Product> struct SegmentTotals {
    float values[Product::BLOCKS][Product::COUNT];

    // Takes a segment's sums in; `first` overwrites, so that a sum of one segment keeps its bits.
    __device__ __forceinline__ void add(const Product& product, bool first) {
#pragma unroll
        for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
            for (int i = 0; i < Product::COUNT; ++i) {
                const float sum = product.sums[block][i];
                values[block][i] = first ? sum : values[block][i] + sum;
            }
        }
    }

    __device__ __forceinline__ void move_to(Product& product) const {
#pragma unroll
        for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
            for (int i = 0; i < Product::COUNT; ++i) {
                product.sums[block][i] = values[block][i];
            }
        }
    }
};

// A barrier of the 128 threads of consumer warpgroup 0 or 1.
__device__ __forceinline__ void consumer_sync(int consumer) {
    if (consumer == 0) {
        named_barrier_sync<1>(WARPGROUP);
    } else {
        named_barrier_sync<2>(WARPGROUP);
    }
}

#endif
