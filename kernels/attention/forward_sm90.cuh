// O = softmax(scale Q K^T) V and its log-sum-exp on Hopper, bf16 in and out, f32 sums.
//
// A work item is a head and 64 rows for each of the block's one or two consumer warpgroups; a block walks items b, b +
// gridDim.x, ... Keys and values come in tiles of BN tokens through one ring. While P V of a tile is multiplied, a
// warpgroup weighs the scores of the next. Weights never leave registers. A row's arithmetic depends on T, d and its
// own image alone: neither on the number of consumers nor on the grid.
//
// Warpgroup 0 loads: warp 0 keys and values, warp 1 queries, as soon as the last scores of an item are complete.
// Shared memory: ring | 64 rows of Q a consumer | two buffers of 64 x 64 a consumer for the result | barriers.
// Registers: D / 2 sums, BN / 2 scores, BN / 2 for the two parts of the weights.
// Limit: the tensor cores, 3 products of 2 N T^2 C FLOP; the floor is 4 N T^2 C FLOP and 8 N T C bytes.
#pragma once

#include "attention/hopper.cuh"

#ifdef DEVICE_HAS_HOPPER

struct HopperAttentionArgs {
    TensorMap qkv; // [N, T, 3 heads, d]
    TensorMap out; // [N, T, heads, d]
    float* lse;
    int32_t tokens, heads, head_size;
    int32_t row_blocks; // items of a head
    int32_t items;
    float scale;
    uint32_t padding[8];
};

template <int D, int BN, uint32_t SLOTS> class HopperAttention {
    static constexpr uint32_t SLOT_BYTES = TILE_BYTES<BN, D>;

    // Where things are does not depend on the number of consumers, so that no register holds an address.
    static constexpr uint32_t STAGING_BYTES = 2 * BOX_BYTES;
    static constexpr uint32_t QUERIES = SLOTS * SLOT_BYTES, STAGING = QUERIES + 2 * TILE_BYTES<64, D>;
    static constexpr uint32_t BARRIERS = STAGING + 2 * STAGING_BYTES;

    const HopperAttentionArgs& args;
    const int consumers;
    const Ring ring;

    static __device__ __forceinline__ uint64_t* barriers() {
        return reinterpret_cast<uint64_t*>(shared_memory + BARRIERS);
    }
    static __device__ __forceinline__ uint64_t* queries_full(int consumer) { return barriers() + consumer; }
    static __device__ __forceinline__ uint64_t* queries_free(int consumer) { return barriers() + 2 + consumer; }

    // Softmax by rows that learns maximum and total tile by tile (Milakov and Gimelshein 2018), in units of log 2.
    struct Softmax {
        float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

        // Scores of columns first .. become weights relative to the largest so far. Gives what earlier sums have to be
        // multiplied with.
        __device__ __forceinline__ void weigh(float (&scores)[BN / 2], float (&shrink)[2], float to_log2, int first,
                                              int tokens) {
            if (first + BN > tokens) {
                const int left = tokens - first - lane_column();
#pragma unroll
                for (int i = 0; i < BN / 2; ++i) {
                    scores[i] = i / 4 * 8 + i % 2 < left ? scores[i] : -INFINITY;
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = scores[2 * half];
#pragma unroll
                for (int i = 0; i < BN / 8; ++i) {
                    largest = fmaxf(largest, fmaxf(scores[4 * i + 2 * half], scores[4 * i + 2 * half + 1]));
                }
                const float now = fmaxf(maximum[half], row_max(largest) * to_log2);
                shrink[half] = exp2_flushed(maximum[half] - now);
                maximum[half] = now;
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < BN / 4; ++i) {
                    float& score = scores[i / 2 * 4 + 2 * half + i % 2];
                    score = exp2_flushed(fmaf(score, to_log2, -now));
                    sum += score;
                }
                total[half] = fmaf(total[half], shrink[half], sum);
            }
        }
    };

    static __device__ __forceinline__ unsigned char* query_tile(int consumer) {
        return shared_memory + QUERIES + consumer * TILE_BYTES<64, D>;
    }

    __device__ __forceinline__ int tiles() const { return (args.tokens + BN - 1) / BN; }

    __device__ __forceinline__ void load_keys_and_values() const {
        RingCursor cursor;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, consumers * 64);
            for (int tile = 0; tile < tiles(); ++tile) {
                load_next<BN, D>(ring, cursor, args.qkv, KEY * args.heads + item.head, tile * BN, item.image);
                load_next<BN, D>(ring, cursor, args.qkv, VALUE * args.heads + item.head, tile * BN, item.image);
            }
        }
    }

    __device__ __forceinline__ void load_queries() const {
        uint32_t parity = 1;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, consumers * 64);
            for (int consumer = 0; consumer < consumers; ++consumer) {
                mbarrier_wait(queries_free(consumer), parity);
                mbarrier_arrive_expect_tx(queries_full(consumer), TILE_BYTES<64, D>);
                load_tile<64, D>(query_tile(consumer), args.qkv, queries_full(consumer), item.head,
                                 item.first + consumer * 64, item.image);
            }
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void release_queries(int consumer) const {
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive(queries_free(consumer));
        }
    }

    __device__ __forceinline__ void attend(const HeadRows& item, int consumer, RingCursor& cursor) const {
        const uint32_t query = shared_address(query_tile(consumer));
        const float to_log2 = args.scale * LOG2_E;
        const int last = tiles() - 1;
        float sums[D / 2], scores[BN / 2], shrink[2];
        WeightParts<BN> weights;
        Softmax softmax;
        Slot keys = next_slot(ring, cursor);
        wgmma_fence();
        start_scores<D, BN>(scores, query, keys.address);
        wgmma_commit();
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            sums[i] = 0.0f;
        }
        wgmma_wait<0>();
        ring.release(keys.number);
        softmax.weigh(scores, shrink, to_log2, 0, args.tokens);
        Slot values = next_slot(ring, cursor);
        weights.set(scores);
        for (int tile = 1; tile <= last; ++tile) {
            keys = next_slot(ring, cursor);
            wgmma_fence();
            start_scores<D, BN>(scores, query, keys.address);
            wgmma_commit();
            wgmma_fence();
            start_weighted_sum<BN, D>(sums, weights, values.address);
            wgmma_commit();
            wgmma_wait<1>();
            ring.release(keys.number);
            softmax.weigh(scores, shrink, to_log2, tile * BN, args.tokens);
            // The loop of this wait keeps the compiler from moving the exponentials behind the product that hides them.
            const Slot next_values = next_slot(ring, cursor);
            wgmma_wait<0>();
            ring.release(values.number);
            values = next_values;
            // Maxima seldom change after the first tiles.
            if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
                for (int i = 0; i < D / 2; ++i) {
                    sums[i] *= shrink[i / 2 % 2];
                }
            }
            weights.set(scores);
        }
        release_queries(consumer);
        wgmma_fence();
        start_weighted_sum<BN, D>(sums, weights, values.address);
        wgmma_commit();
        wgmma_wait<0>();
        ring.release(values.number);
        finish(item, consumer, softmax, sums);
    }

    __device__ __forceinline__ void finish(const HeadRows& item, int consumer, const Softmax& softmax,
                                           const float (&sums)[D / 2]) const {
        const int first = item.first + consumer * 64;
        float* const lse = item.statistics(args.lse, args);
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float total = row_sum(softmax.total[half]);
            factor[half] = 1.0f / total;
            const int row = first + lane_row() + 8 * half;
            if (threadIdx.x % 4 == 0 && row < args.tokens) {
                lse[row] = fmaf(softmax.maximum[half], 1.0f / LOG2_E, logf(total));
            }
        }
        if (first < args.tokens) {
            unsigned char* const buffers = shared_memory + STAGING + consumer * STAGING_BYTES;
            store_rows<D, 2>(sums, factor, args.out, buffers, consumer, args.head_size, item.head, first, item.image);
        }
    }

    __device__ __forceinline__ explicit HopperAttention(const HopperAttentionArgs& args)
        : args(args), consumers(int(blockDim.x) / WARPGROUP - 1),
          ring{shared_memory, barriers() + 4, SLOTS, SLOT_BYTES} {}

    __device__ __forceinline__ void init() const {
        ring.init(uint32_t(consumers) * (WARPGROUP / 32));
        for (int consumer = 0; consumer < consumers; ++consumer) {
            mbarrier_init(queries_full(consumer), 1);
            mbarrier_init(queries_free(consumer), WARPGROUP / 32);
        }
        fence_mbarrier_init();
    }

    __device__ __forceinline__ void consume(int consumer) const {
        RingCursor cursor;
        uint32_t parity = 0;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            mbarrier_wait(queries_full(consumer), parity);
            parity ^= 1;
            attend(HeadRows(args, index, consumers * 64), consumer, cursor);
        }
        if (threadIdx.x % WARPGROUP == 0) {
            // Shared memory must outlive the stores that read it.
            tma_store_wait<0>();
        }
    }

public:
    static __device__ __forceinline__ void run(const HopperAttentionArgs& args) {
        const HopperAttention attention(args);
        if (threadIdx.x == 0) {
            attention.init();
        }
        __syncthreads();
        if (threadIdx.x < WARPGROUP) {
            set_max_registers_down<LOADING_REGISTERS>();
            if (threadIdx.x == 0) {
                attention.load_keys_and_values();
            } else if (threadIdx.x == 32) {
                attention.load_queries();
            }
        } else {
            set_max_registers_up<CONSUMER_REGISTERS>();
            attention.consume(uniform_consumer());
        }
    }
};

#endif
