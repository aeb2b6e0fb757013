// delta and dQ on Hopper: delta_i = sum_j P_ij dP_ij / sum_j P_ij, dQ = scale dS K.
//
// A work item is a head and 64 rows for each of the block's one or two consumer warpgroups, which keep their Q and dO
// in shared memory and walk twice over all keys and values: for delta (2 products), then for dQ (dP and S again, and dS
// K with dS in two parts: 4). One warpgroup's exponentials run under the other's products. delta is summed from P and
// dP rather than from dO and the stored O: where the softmax is nearly one-hot, dP - delta cancels, and the rounding of
// a bf16 O makes errors many times those of rounding the result. The division takes out the error of lse, common to a
// row. A row's arithmetic depends on T, d and its own image alone.
//
// Warpgroup 0 loads: warp 0 values and keys, warp 1 Q and dO. Shared memory: ring | Q and dO of each consumer; the
// result leaves through the place of dO | barriers. Limit: the tensor cores and, for 64 columns a product, the 128 B a
// clock of shared memory. Floor: see gradient_sm90.cu.
#pragma once

#include "attention/gradient_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

template <int D> class HopperQueryGradient {
    static constexpr int BN = GRADIENT_STEP;
    static constexpr uint32_t SLOTS = 3, TILE = TILE_BYTES<64, D>;
    static constexpr uint32_t ROWS = SLOTS * TILE, BARRIERS = ROWS + 4 * TILE;
    static constexpr int STAGING_BUFFERS = D > 64 ? 2 : 1;

    const HopperAttentionGradArgs& args;
    const int consumers;
    const Ring ring;

    static __device__ __forceinline__ uint64_t* barriers() {
        return reinterpret_cast<uint64_t*>(shared_memory + BARRIERS);
    }
    static __device__ __forceinline__ uint64_t* rows_full(int consumer) { return barriers() + consumer; }
    static __device__ __forceinline__ uint64_t* rows_free(int consumer) { return barriers() + 2 + consumer; }
    static __device__ __forceinline__ unsigned char* query_tile(int consumer) {
        return shared_memory + ROWS + consumer * 2 * TILE;
    }
    static __device__ __forceinline__ unsigned char* dout_tile(int consumer) { return query_tile(consumer) + TILE; }

    // Values before keys: the slot of keys, which dS K holds longest, is then not the next one to be filled.
    __device__ __forceinline__ void load_columns() const {
        RingCursor cursor;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, consumers * 64);
            for (int pass = 0; pass < 2; ++pass) {
                for (int first = 0; first < args.tokens; first += BN) {
                    load_next<BN, D>(ring, cursor, args.qkv, VALUE * args.heads + item.head, first, item.image);
                    load_next<BN, D>(ring, cursor, args.qkv, KEY * args.heads + item.head, first, item.image);
                }
            }
        }
    }

    __device__ __forceinline__ void load_rows() const {
        uint32_t parity = 1;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, consumers * 64);
            for (int consumer = 0; consumer < consumers; ++consumer) {
                uint64_t* const full = rows_full(consumer);
                const int first = item.first + consumer * 64;
                mbarrier_wait(rows_free(consumer), parity);
                mbarrier_arrive_expect_tx(full, 2 * TILE);
                load_tile<64, D>(dout_tile(consumer), args.dout, full, item.head, first, item.image);
                load_tile<64, D>(query_tile(consumer), args.qkv, full, item.head, first, item.image);
            }
            parity ^= 1;
        }
    }

    // Scores become weights; columns beyond the last token weigh nothing.
    __device__ __forceinline__ void weigh(float (&scores)[BN / 2], const float (&lse_log2)[2], int first) const {
        const float to_log2 = args.scale * LOG2_E;
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) {
            scores[i] = known_weight(scores[i], to_log2, lse_log2[i / 2 % 2]);
        }
        if (first + BN > args.tokens) {
            const int left = args.tokens - first - lane_column();
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) {
                scores[i] = i / 4 * 8 + i % 2 < left ? scores[i] : 0.0f;
            }
        }
    }

    // dP and S of the next values and keys; the slot of the values is free afterwards.
    __device__ __forceinline__ Slot multiply_rows(int consumer, RingCursor& cursor, float (&gradients)[BN / 2],
                                                  float (&scores)[BN / 2]) const {
        const Slot values = next_slot(ring, cursor);
        wgmma_fence();
        start_scores<D, BN>(gradients, shared_address(dout_tile(consumer)), values.address);
        wgmma_commit();
        const Slot keys = next_slot(ring, cursor);
        wgmma_fence();
        start_scores<D, BN>(scores, shared_address(query_tile(consumer)), keys.address);
        wgmma_commit();
        wgmma_wait<0>();
        ring.release(values.number);
        return keys;
    }

    __device__ __forceinline__ void find_delta(int consumer, RingCursor& cursor, const float (&lse_log2)[2],
                                               float (&delta)[2]) const {
        float products[2] = {0.0f, 0.0f}, total[2] = {0.0f, 0.0f};
        for (int first = 0; first < args.tokens; first += BN) {
            float gradients[BN / 2], weights[BN / 2];
            ring.release(multiply_rows(consumer, cursor, gradients, weights).number);
            weigh(weights, lse_log2, first);
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) {
                const int half = i / 2 % 2;
                products[half] = fmaf(weights[i], gradients[i], products[half]);
                total[half] += weights[i];
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = row_sum(total[half]), product = row_sum(products[half]);
            // Absent rows have no weights.
            delta[half] = sum > 0.0f ? product / sum : 0.0f;
        }
    }

    __device__ __forceinline__ void differentiate(const HeadRows& item, int consumer, RingCursor& cursor) const {
        const int first_row = item.first + consumer * 64, row = first_row + lane_row();
        const float* const lse = item.statistics(args.lse, args);
        float lse_log2[2], delta[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            lse_log2[half] = row + 8 * half < args.tokens ? lse[row + 8 * half] * LOG2_E : INFINITY;
        }
        find_delta(consumer, cursor, lse_log2, delta);
        float sums[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; ++i) {
            sums[i] = 0.0f;
        }
        for (int first = 0; first < args.tokens; first += BN) {
            float gradients[BN / 2], weights[BN / 2];
            const Slot keys = multiply_rows(consumer, cursor, gradients, weights);
            weigh(weights, lse_log2, first);
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) {
                gradients[i] = weights[i] * (gradients[i] - delta[i / 2 % 2]);
            }
            WeightParts<BN> parts;
            parts.set(gradients);
            wgmma_fence();
            start_weighted_sum<BN, D>(sums, parts, keys.address);
            wgmma_commit();
            wgmma_wait<0>();
            ring.release(keys.number);
        }
        if (first_row >= args.tokens) {
            return;
        }
        float* const all_delta = item.statistics(args.delta, args);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (threadIdx.x % 4 == 0 && row + 8 * half < args.tokens) {
                all_delta[row + 8 * half] = delta[half];
            }
        }
        const float factor[2] = {args.scale, args.scale};
        store_rows<D, STAGING_BUFFERS>(sums, factor, args.dqkv, dout_tile(consumer), consumer, args.head_size,
                                       item.head, first_row, item.image);
    }

    __device__ __forceinline__ void consume(int consumer) const {
        RingCursor cursor;
        uint32_t parity = 0;
        const bool leader = threadIdx.x % WARPGROUP == 0;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            mbarrier_wait(rows_full(consumer), parity);
            parity ^= 1;
            differentiate(HeadRows(args, index, consumers * 64), consumer, cursor);
            if (leader) {
                // Stores read the place of dO.
                tma_store_wait_read<0>();
            }
            consumer_sync(consumer);
            if (leader) {
                mbarrier_arrive(rows_free(consumer));
            }
        }
        if (leader) {
            tma_store_wait<0>();
        }
    }

    __device__ __forceinline__ void init() const {
        ring.init(uint32_t(consumers) * (WARPGROUP / 32));
        for (int consumer = 0; consumer < consumers; ++consumer) {
            mbarrier_init(rows_full(consumer), 1);
            mbarrier_init(rows_free(consumer), 1);
        }
        fence_mbarrier_init();
    }

    __device__ __forceinline__ explicit HopperQueryGradient(const HopperAttentionGradArgs& args)
        : args(args), consumers(int(blockDim.x) / WARPGROUP - 1), ring{shared_memory, barriers() + 4, SLOTS, TILE} {}

public:
    static __device__ __forceinline__ void run(const HopperAttentionGradArgs& args) {
        const HopperQueryGradient gradient(args);
        if (threadIdx.x == 0) {
            gradient.init();
        }
        __syncthreads();
        if (threadIdx.x < WARPGROUP) {
            set_max_registers_down<LOADING_REGISTERS>();
            if (threadIdx.x == 0) {
                gradient.load_columns();
            } else if (threadIdx.x == 32) {
                gradient.load_rows();
            }
        } else {
            set_max_registers_up<CONSUMER_REGISTERS>();
            gradient.consume(uniform_consumer());
        }
    }
};

#endif
