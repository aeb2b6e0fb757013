// What the attention kernels of Hopper share: operands as TMA brings them, scores of a warpgroup, weights in two parts.
//
// An operand of one head is read through a tensor map of rank 4, [N, T, heads, d], or [N, T, 3 heads, d] for qkv, in
// boxes of 64 tokens by 64 channels. What lies beyond the last token or the head's last channel arrives as zeros, so
// that heads of any multiple of 8 channels and any number of tokens use the same kernels. A tile of ROWS tokens lies as
// [channels / 64][ROWS][128 bytes] in the 128-byte swizzle: K-major for scores, MN-major for weighted sums.
#pragma once

#include "attention/problem.cuh"
#include "gemm/ring.cuh"
#include "gemm/warpgroup_product.cuh"

#ifdef DEVICE_HAS_HOPPER

constexpr int BOX_ROWS = 64;
constexpr uint32_t BOX_BYTES = BOX_ROWS * LINE_BYTES;

template <int ROWS, int D> constexpr uint32_t TILE_BYTES = ROWS * D * sizeof(bf16);

// Tokens `first` .. `first` + ROWS - 1 of a head, in one of the parts of the map.
template <int ROWS, int D>
__device__ __forceinline__ void load_tile(unsigned char* tile, const TensorMap& map, uint64_t* full, int head,
                                          int first, int image) {
#pragma unroll
    for (int slab = 0; slab < D / SLAB; ++slab) {
#pragma unroll
        for (int row = 0; row < ROWS; row += BOX_ROWS) {
            tma_load_4d(tile + (slab * ROWS + row) * LINE_BYTES, &map, full, slab * SLAB, head, first + row, image);
        }
    }
}

// A filled slot of a ring.
struct Slot {
    uint32_t number, address;
};

__device__ __forceinline__ Slot next_slot(const Ring& ring, RingCursor& cursor) {
    const Slot slot{cursor.slot, ring.wait(cursor)};
    cursor.advance(ring.slots);
    return slot;
}

// Producer: tokens `first` .. of a head, into the ring's next slot.
template <int ROWS, int D>
__device__ __forceinline__ void load_next(const Ring& ring, RingCursor& cursor, const TensorMap& map, int head,
                                          int first, int image) {
    unsigned char* const slot = ring.acquire(cursor, TILE_BYTES<ROWS, D>);
    load_tile<ROWS, D>(slot, map, ring.full(cursor.slot), head, first, image);
    cursor.advance(ring.slots);
}

// A work item: rows of one head of one image.
struct HeadRows {
    int head, image, first;

    template <class Args>
    __device__ __forceinline__ HeadRows(const Args& args, int index, int rows)
        : head(index / args.row_blocks % args.heads), image(index / args.row_blocks / args.heads),
          first(index % args.row_blocks * rows) {}

    // One f32 a token of the head: lse, delta.
    template <class T, class Args> __device__ __forceinline__ T* statistics(T* tensor, const Args& args) const {
        return tensor + (int64_t(image) * args.heads + head) * args.tokens;
    }
};

// Starts result[64 x COLUMNS] = a[64 x D] b[COLUMNS x D]^T. Rows of a: the first 64 of a tile of A_ROWS.
template <int D, int COLUMNS>
__device__ __forceinline__ void start_scores(float (&result)[COLUMNS / 2], uint32_t a, uint32_t b) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        const uint64_t left = wgmma_descriptor(a + k / 4 * BOX_BYTES + k % 4 * 32, 16, 1024, Swizzle::bytes128);
        const uint64_t right =
            wgmma_descriptor(b + k / 4 * (COLUMNS * LINE_BYTES) + k % 4 * 32, 16, 1024, Swizzle::bytes128);
        wgmma_ss<COLUMNS>(result, left, right, k > 0);
    }
}

// Weights [64 x COLUMNS] as the left operand of a product, each the sum of two bf16. Rounded to one, it would add an
// error as large as that of rounding the result.
template <int COLUMNS> struct WeightParts {
    uint32_t high[COLUMNS / 16][4], low[COLUMNS / 16][4];

    __device__ __forceinline__ void set(const float (&weights)[COLUMNS / 2]) {
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float even = weights[8 * k + 2 * i], odd = weights[8 * k + 2 * i + 1];
                high[k][i] = pack_bf16x2(even, odd);
                low[k][i] = pack_bf16x2(even - bf16_low(high[k][i]), odd - bf16_high(high[k][i]));
            }
        }
    }
};

// Starts sums[64 x WIDTH] += weights[64 x ROWS] values[ROWS x WIDTH], values being WIDTH channels of a tile of ROWS
// tokens.
template <int ROWS, int WIDTH>
__device__ __forceinline__ void start_weighted_sum(float (&sums)[WIDTH / 2], const WeightParts<ROWS>& weights,
                                                   uint32_t values) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; ++k) {
        const uint64_t right =
            wgmma_descriptor(values + k * 16 * LINE_BYTES, ROWS * LINE_BYTES, 1024, Swizzle::bytes128);
        wgmma_rs<WIDTH, true>(sums, weights.low[k], right, true);
        wgmma_rs<WIDTH, true>(sums, weights.high[k], right, true);
    }
}

// Sum and maximum over the four lanes that hold one row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// The first of a thread's two rows in a tile of 64, the other is 8 further on, and the first column of its fragments.
__device__ __forceinline__ int lane_row() {
    return int(threadIdx.x) % WARPGROUP / 32 * 16 + int(threadIdx.x) % 32 / 4;
}
__device__ __forceinline__ int lane_column() { return int(threadIdx.x) % 4 * 2; }

// The number of a thread's consumer warpgroup, which the compiler keeps in a uniform register: addresses that follow
// from it take none of the thread's.
__device__ __forceinline__ int uniform_consumer() {
    return __shfl_sync(0xffffffffu, int(threadIdx.x) / WARPGROUP - 1, 0);
}

// Stores 64 rows of a head through the map, each row times its factor, 64 columns at a time through BUFFERS buffers of
// BOX_BYTES that belong to the warpgroup. Ragged ends are cut by the map.
template <int D, int BUFFERS>
__device__ __forceinline__ void store_rows(const float (&sums)[D / 2], const float (&factor)[2], const TensorMap& map,
                                           unsigned char* buffers, int consumer, int head_size, int head, int first,
                                           int image) {
    const int lane = int(threadIdx.x) % 32;
    const int row = int(threadIdx.x) % WARPGROUP / 32 * 16 + lane % 16;
    const bool leader = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (int slab = 0; slab < D / SLAB; ++slab) {
        if (slab * SLAB >= head_size) {
            break;
        }
        unsigned char* const buffer = buffers + slab % BUFFERS * BOX_BYTES;
        if (leader) {
            // Stores of earlier calls may read any buffer, the latest of this one read the other buffers.
            if (slab == 0) {
                tma_store_wait_read<0>();
            } else {
                tma_store_wait_read<BUFFERS - 1>();
            }
        }
        consumer_sync(consumer);
#pragma unroll
        for (int group = 0; group < SLAB / 16; ++group) {
            uint32_t rounded[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = slab * (SLAB / 2) + group * 8 + 2 * i;
                rounded[i] = pack_bf16x2(sums[at] * factor[i % 2], sums[at + 1] * factor[i % 2]);
            }
            stmatrix_x4(buffer + row * LINE_BYTES + ((group * 2 + lane / 16) ^ row % 8) * 16, rounded);
        }
        fence_proxy_async();
        consumer_sync(consumer);
        if (leader) {
            tma_store_4d(&map, buffer, slab * SLAB, head, first, image);
            tma_store_commit();
        }
    }
}

// Registers of 384 threads, dealt out anew: 64512 of 65536.
constexpr int LOADING_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr int MOST_THREADS = 3 * WARPGROUP;

#endif
