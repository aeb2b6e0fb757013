// Weight gradient of a convolution on Hopper, and the bias gradient in the same pass: bf16 in, f32 sums.
//
//   dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p * stride - pad + r, q * stride - pad + s, c]
//   db[k]          = sum over n, p, q of dy[n, p, q, k]
//
// A tile: 128 rows k (64 a consumer warpgroup) by TAPS taps of one filter row by COLUMNS channels c. Depth: patches of at
// most 64 output pixels [w, h, n], which TMA copies as boxes of 64 channels: dy of the patch, and x under each tap; its
// zeros outside of a tensor are the padding and the ragged ends. With stride 2 a tap reads one of four views of x. Both
// operands are contiguous across the depth (MN-major). Where the tensor core swizzles by address, one box of x, wider by
// two pixels, serves the three taps: the operand of a tap begins a pixel later, its groups of eight pixels are one box
// row apart. Few tiles, long depth: the patches are cut into splits, each of which writes [K, R, S, C] and then [K] sums.
//
// A block walks items (split, tile): a producer warpgroup fills a ring of slots, one a patch, two consumers multiply.
// Shared memory: the slots (16 KiB dy, 8 KiB a tap and 64 channels of x or 10 KiB for all taps), a tile of ones, barriers.
// Limit: the tensor core from 64 channels on; a slot is 4 * TAPS * COLUMNS / 2 cycles of wgmma a warpgroup. The floor in
// bytes is x + dy once and dw per split.
#pragma once

#include "gemm/ring.cuh"

#ifdef DEVICE_HAS_HOPPER

// A filter tap: the pixel of x under output pixel (0, 0), in its view.
struct WgradTap {
    int32_t view, x, y;
};

struct HopperWgradArgs {
    TensorMap dy;   // [N, H', W', K]; copies of 64 channels of a patch
    TensorMap x[4]; // x[:, i::stride, j::stride, :], number i * stride + j; copies of 64 channels of a patch
    float* dw;      // [K, R, S, C], of split 0
    float* db;      // [K], of split 0, or null
    int64_t split_elements; // from one split's dw (db) to the next's
    int32_t rows, channels; // K, C
    int32_t kernel_taps;    // R * S
    int32_t tap_groups;     // kernel_taps / TAPS
    int32_t column_tiles;   // tiles of channels
    int32_t tiles, items;   // of a split; of all
    int32_t patch_w, patch_h, patch_n;
    int32_t patches_x, patches_y;
    int32_t patches, split_patches;
    uint32_t dy_box_bytes, x_box_bytes;
    uint32_t x_boxes;     // of 64 channels: one a tap, or one for all
    uint32_t tap_bytes;   // in a slot, from the pixels of one tap to those of the next
    uint32_t chunk_bytes; // from 64 channels of x to the next
    uint32_t group_bytes; // from eight pixels of the depth to the next, of x
    uint32_t slots, slot_bytes;
    uint32_t ragged; // whether a patch has fewer than 64 pixels
    WgradTap taps[9];
    uint32_t padding[8];
};

template <int TAPS, int COLUMNS> class HopperWgrad {
    static constexpr uint32_t LINE_BYTES = 128, DY_BYTES = 64 * LINE_BYTES, ONES_BYTES = 256, CHUNKS = COLUMNS / 64;
    static constexpr uint32_t CONSUMER_WARPS = 8, DEPTH_STEPS = 4;
    // 64512 of the 65536 registers of a multiprocessor.
    static constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

    const HopperWgradArgs& args;
    const Ring ring;
    RingCursor cursor;

    struct Item {
        int first_row, first_tap, first_column, first_patch, patches;
        int64_t split;

        // db belongs to the items of the first column group.
        __device__ __forceinline__ bool sums_rows() const { return first_tap == 0 && first_column == 0; }
    };

    __device__ __forceinline__ Item item_at(int index) const {
        const int split = index / args.tiles, tile = index % args.tiles;
        const int first_patch = split * args.split_patches;
        return {tile / args.column_tiles / args.tap_groups * 128,
                tile / args.column_tiles % args.tap_groups * TAPS,
                tile % args.column_tiles * COLUMNS,
                first_patch,
                min(args.split_patches, args.patches - first_patch),
                split};
    }

    static __device__ __forceinline__ unsigned char* ones(const HopperWgradArgs& args) {
        return shared_memory + args.slots * args.slot_bytes;
    }

    // Rows that no copy ever writes count as zeros, and the ones are written.
    static __device__ __forceinline__ void prepare(const HopperWgradArgs& args) {
        const Vec<uint32_t, 4> zeros{};
        const uint32_t end = args.ragged ? args.slots * args.slot_bytes : 0;
        for (uint32_t at = threadIdx.x * 16; at < end; at += 384 * 16) {
            store_vec(reinterpret_cast<uint32_t*>(shared_memory + at), zeros);
        }
        if (threadIdx.x < ONES_BYTES / 4) {
            reinterpret_cast<uint32_t*>(ones(args))[threadIdx.x] = pack_bf16x2(1.0f, 1.0f);
        }
        fence_proxy_async();
    }

    __device__ __forceinline__ void load_patch(const Item& item, int x, int y, int n) {
        unsigned char* slot = ring.acquire(cursor, 2 * args.dy_box_bytes + args.x_boxes * CHUNKS * args.x_box_bytes);
        uint64_t* full = ring.full(cursor.slot);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            tma_load_4d(slot + half * DY_BYTES, &args.dy, full, item.first_row + int(half) * 64, x, y, n);
        }
        slot += 2 * DY_BYTES;
        for (uint32_t box = 0; box < args.x_boxes; ++box) {
            const WgradTap tap = args.taps[item.first_tap + int(box)];
#pragma unroll
            for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
                tma_load_4d(slot + box * args.tap_bytes + chunk * args.chunk_bytes, &args.x[tap.view], full,
                            item.first_column + int(chunk) * 64, x + tap.x, y + tap.y, n);
            }
        }
        cursor.advance(args.slots);
    }

    __device__ __forceinline__ void load_item(const Item& item) {
        int x = item.first_patch % args.patches_x, y = item.first_patch / args.patches_x % args.patches_y;
        int n = item.first_patch / args.patches_x / args.patches_y;
        for (int patch = 0; patch < item.patches; ++patch) {
            load_patch(item, x * args.patch_w, y * args.patch_h, n * args.patch_n);
            if (++x == args.patches_x) {
                x = 0;
                if (++y == args.patches_y) {
                    y = 0;
                    ++n;
                }
            }
        }
    }

    static __device__ __forceinline__ uint32_t half() { return threadIdx.x / 128 - 1; }

    // d[tap] += transpose(dy) x of one slot; sums += transpose(dy) ones.
    template <bool SUM_ROWS>
    __device__ __forceinline__ void multiply_slot(uint32_t slot, bool first, float (&d)[TAPS][COLUMNS / 2],
                                                  float (&sums)[4]) const {
        const uint32_t dy = slot + half() * DY_BYTES, x = slot + 2 * DY_BYTES;
#pragma unroll
        for (uint32_t step = 0; step < DEPTH_STEPS; ++step) {
            const bool accumulate = step > 0 || !first;
            const uint64_t a = wgmma_descriptor(dy + step * 16 * LINE_BYTES, 16, 8 * LINE_BYTES, Swizzle::bytes128);
#pragma unroll
            for (uint32_t tap = 0; tap < TAPS; ++tap) {
                const uint32_t at = x + tap * args.tap_bytes + step * 2 * args.group_bytes;
                const uint64_t b = wgmma_descriptor(at, args.chunk_bytes, args.group_bytes, Swizzle::bytes128);
                wgmma_ss<COLUMNS, true, true>(d[tap], a, b, accumulate);
            }
            if constexpr (SUM_ROWS) {
                const uint64_t b = wgmma_descriptor(shared_address(ones(args)), 128, 128, Swizzle::none);
                wgmma_ss<8, false, true>(sums, a, b, accumulate);
            }
        }
        wgmma_commit();
    }

    // Sums over the patches of an item, at least one; a slot is multiplied while the next is waited for.
    template <bool SUM_ROWS>
    __device__ __forceinline__ void multiply_item(const Item& item, float (&d)[TAPS][COLUMNS / 2], float (&sums)[4]) {
        uint32_t previous = cursor.slot;
        uint32_t slot = ring.wait(cursor);
        wgmma_fence();
        multiply_slot<SUM_ROWS>(slot, true, d, sums);
        cursor.advance(args.slots);
        // The first slot stands apart: with undefined accumulators on entry to the loop ptxas serialises all wgmmas.
        for (int patch = 1; patch < item.patches; ++patch) {
            slot = ring.wait(cursor);
            wgmma_fence();
            multiply_slot<SUM_ROWS>(slot, false, d, sums);
            wgmma_wait<1>();
            ring.release(previous);
            previous = cursor.slot;
            cursor.advance(args.slots);
        }
        wgmma_wait<0>();
        ring.release(previous);
    }

    // The first of this thread's two rows; the other is eight further on.
    static __device__ __forceinline__ int row_in_tile() {
        return int(half() * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4);
    }

    __device__ __forceinline__ void store_sums(const Item& item, const float (&sums)[4]) const {
        float* out = args.db + item.split * args.split_elements;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = item.first_row + row_in_tile() + i * 8;
            // All columns of the product with ones are the same.
            if (threadIdx.x % 4 == 0 && row < args.rows) {
                out[row] = sums[i * 2];
            }
        }
    }

    __device__ __forceinline__ void store(const Item& item, const float (&d)[TAPS][COLUMNS / 2]) const {
        const int first_column = item.first_column + int(threadIdx.x % 4) * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = item.first_row + row_in_tile() + i * 8;
            if (row >= args.rows) {
                continue;
            }
#pragma unroll
            for (int tap = 0; tap < TAPS; ++tap) {
                const int64_t line = int64_t(row) * args.kernel_taps + item.first_tap + tap;
                float* out = args.dw + item.split * args.split_elements + line * args.channels + first_column;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) {
                    if (first_column + j * 8 < args.channels) {
                        store_vec(out + j * 8, Vec<float, 2>{{d[tap][j * 4 + i * 2], d[tap][j * 4 + i * 2 + 1]}});
                    }
                }
            }
        }
    }

    __device__ __forceinline__ HopperWgrad(const HopperWgradArgs& args, const Ring& ring) : args(args), ring(ring) {}

    __device__ __forceinline__ void produce() {
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            load_item(item_at(index));
        }
    }

    __device__ __forceinline__ void consume() {
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const Item item = item_at(index);
            float d[TAPS][COLUMNS / 2], sums[4];
            if (args.db != nullptr && item.sums_rows()) {
                multiply_item<true>(item, d, sums);
                store_sums(item, sums);
            } else {
                multiply_item<false>(item, d, sums);
            }
            store(item, d);
        }
    }

public:
    static __device__ __forceinline__ void run(const HopperWgradArgs& args) {
        auto* barriers = reinterpret_cast<uint64_t*>(ones(args) + ONES_BYTES);
        const Ring ring{shared_memory, barriers, args.slots, args.slot_bytes};
        if (threadIdx.x == 0) {
            ring.init(CONSUMER_WARPS);
            fence_mbarrier_init();
        }
        prepare(args);
        __syncthreads();
        HopperWgrad wgrad(args, ring);
        if (threadIdx.x < 128) {
            set_max_registers_down<PRODUCER_REGISTERS>();
            if (threadIdx.x == 0) {
                wgrad.produce();
            }
        } else {
            set_max_registers_up<CONSUMER_REGISTERS>();
            wgrad.consume();
        }
    }
};

#endif
