// dK and dV on Hopper: dV = P^T dO, dK = scale dS^T Q.
//
// A work item is 64 keys of a head. Over tiles of 64 queries, warpgroup 1 computes S^T = K Q^T, P^T and dV, warpgroup 2
// computes dP^T = V dO^T, takes P^T from the other through shared memory, each thread from the thread in its place, and
// computes dS^T and dK: three products each, weights and dS in two parts from registers. The exponentials of one run
// under the products of the other. delta comes from query_gradient_sm90.cuh, which runs before. The order of sums over
// queries is ascending: a row's arithmetic depends on T, d and its own image alone.
//
// Warpgroup 0 loads: warp 0 queries and dO, warp 1 K and V.
// Shared memory: ring | K | V | one buffer of 64 x 64 for each result | P^T in f32 | barriers.
// Limit: as for dQ. A block reads 2 T d bf16 from L2 for 12 T 64 d FLOP.
#pragma once

#include "attention/gradient_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

template <int D> class HopperKeyGradient {
    static constexpr int BN = GRADIENT_STEP;
    static constexpr uint32_t SLOTS = 4, TILE = TILE_BYTES<64, D>;
    static constexpr uint32_t ROWS = SLOTS * TILE, STAGING = ROWS + 2 * TILE, WEIGHTS = STAGING + 2 * BOX_BYTES;
    static constexpr uint32_t BARRIERS = WEIGHTS + 64 * BN * sizeof(float);

    const HopperAttentionGradArgs& args;
    const Ring ring;

    // Consumer 0 has K and makes dV, consumer 1 has V and makes dK.
    static constexpr int MAKES_DV = 0, MAKES_DK = 1;

    static __device__ __forceinline__ uint64_t* barriers() {
        return reinterpret_cast<uint64_t*>(shared_memory + BARRIERS);
    }
    static __device__ __forceinline__ uint64_t* rows_full(int consumer) { return barriers() + consumer; }
    static __device__ __forceinline__ uint64_t* rows_free(int consumer) { return barriers() + 2 + consumer; }
    static __device__ __forceinline__ uint64_t* weights_full() { return barriers() + 4; }
    static __device__ __forceinline__ uint64_t* weights_free() { return barriers() + 5; }
    static __device__ __forceinline__ unsigned char* row_tile(int consumer) {
        return shared_memory + ROWS + consumer * TILE;
    }

    // Four of the thread's weights, conflict-free.
    static __device__ __forceinline__ float* weights_at(int group) {
        const int thread = int(threadIdx.x) % WARPGROUP;
        return reinterpret_cast<float*>(shared_memory + WEIGHTS) + (group * WARPGROUP + thread) * 4;
    }

    static __device__ __forceinline__ void arrive_as_warp(uint64_t* barrier) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive(barrier);
        }
    }

    __device__ __forceinline__ void load_columns() const {
        RingCursor cursor;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, 64);
            for (int first = 0; first < args.tokens; first += BN) {
                load_next<BN, D>(ring, cursor, args.qkv, item.head, first, item.image);
                load_next<BN, D>(ring, cursor, args.dout, item.head, first, item.image);
            }
        }
    }

    __device__ __forceinline__ void load_rows() const {
        uint32_t parity = 1;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, 64);
#pragma unroll
            for (int consumer = 0; consumer < 2; ++consumer) {
                const int part = consumer == MAKES_DV ? KEY : VALUE;
                mbarrier_wait(rows_free(consumer), parity);
                mbarrier_arrive_expect_tx(rows_full(consumer), TILE);
                load_tile<64, D>(row_tile(consumer), args.qkv, rows_full(consumer), part * args.heads + item.head,
                                 item.first, item.image);
            }
            parity ^= 1;
        }
    }

    // lse or delta of the thread's columns; `absent` for those beyond the last token.
    __device__ __forceinline__ void load_statistics(float (&of)[BN / 4], const float* all, int first,
                                                    float absent) const {
#pragma unroll
        for (int i = 0; i < BN / 4; ++i) {
            const int column = first + lane_column() + i / 2 * 8 + i % 2;
            of[i] = column < args.tokens ? all[column] : absent;
        }
    }

    // The sums of an item: dV for consumer 0, dK for consumer 1.
    template <int ROLE>
    __device__ __forceinline__ void sum_queries(const HeadRows& item, RingCursor& cursor, uint32_t& parity,
                                                float (&sums)[D / 2]) const {
        const float* const all = item.statistics(ROLE == MAKES_DV ? args.lse : args.delta, args);
        const uint32_t rows = shared_address(row_tile(ROLE));
        const float to_log2 = args.scale * LOG2_E;
        for (int first = 0; first < args.tokens; first += BN) {
            float statistics[BN / 4], values[BN / 2];
            load_statistics(statistics, all, first, ROLE == MAKES_DV ? INFINITY : 0.0f);
            const Slot queries = next_slot(ring, cursor);
            const Slot dout = ROLE == MAKES_DK ? next_slot(ring, cursor) : Slot{};
            wgmma_fence();
            start_scores<D, BN>(values, rows, ROLE == MAKES_DV ? queries.address : dout.address);
            wgmma_commit();
            wgmma_wait<0>();
            ring.release(ROLE == MAKES_DV ? queries.number : dout.number);
            if constexpr (ROLE == MAKES_DV) {
#pragma unroll
                for (int i = 0; i < BN / 2; ++i) {
                    values[i] = known_weight(values[i], to_log2, statistics[i / 4 * 2 + i % 2] * LOG2_E);
                }
                mbarrier_wait(weights_free(), parity ^ 1);
#pragma unroll
                for (int group = 0; group < BN / 8; ++group) {
                    store_vec(weights_at(group), Vec<float, 4>{{values[4 * group], values[4 * group + 1],
                                                                values[4 * group + 2], values[4 * group + 3]}});
                }
                arrive_as_warp(weights_full());
            } else {
                mbarrier_wait(weights_full(), parity);
#pragma unroll
                for (int group = 0; group < BN / 8; ++group) {
                    const Vec<float, 4> weights = load_vec<4>(weights_at(group));
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float& value = values[4 * group + i];
                        value = weights.v[i] * (value - statistics[group * 2 + i % 2]);
                    }
                }
                arrive_as_warp(weights_free());
            }
            parity ^= 1;
            WeightParts<BN> parts;
            parts.set(values);
            const Slot operand = ROLE == MAKES_DV ? next_slot(ring, cursor) : queries;
            wgmma_fence();
            start_weighted_sum<BN, D>(sums, parts, operand.address);
            wgmma_commit();
            wgmma_wait<0>();
            ring.release(operand.number);
        }
    }

    template <int ROLE> __device__ __forceinline__ void consume() const {
        RingCursor cursor;
        uint32_t rows_parity = 0, weights_parity = 0;
        const float factor = ROLE == MAKES_DV ? 1.0f : args.scale;
        const int part = ROLE == MAKES_DV ? VALUE : KEY;
        for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
            const HeadRows item(args, index, 64);
            float sums[D / 2];
#pragma unroll
            for (int i = 0; i < D / 2; ++i) {
                sums[i] = 0.0f;
            }
            mbarrier_wait(rows_full(ROLE), rows_parity);
            rows_parity ^= 1;
            sum_queries<ROLE>(item, cursor, weights_parity, sums);
            arrive_as_warp(rows_free(ROLE));
            const float factors[2] = {factor, factor};
            store_rows<D, 1>(sums, factors, args.dqkv, shared_memory + STAGING + ROLE * BOX_BYTES, ROLE, args.head_size,
                             part * args.heads + item.head, item.first, item.image);
        }
        if (threadIdx.x % WARPGROUP == 0) {
            // Shared memory must outlive the stores that read it.
            tma_store_wait<0>();
        }
    }

    __device__ __forceinline__ void init() const {
        ring.init(2 * WARPGROUP / 32);
        for (int consumer = 0; consumer < 2; ++consumer) {
            mbarrier_init(rows_full(consumer), 1);
            mbarrier_init(rows_free(consumer), WARPGROUP / 32);
        }
        mbarrier_init(weights_full(), WARPGROUP / 32);
        mbarrier_init(weights_free(), WARPGROUP / 32);
        fence_mbarrier_init();
    }

    __device__ __forceinline__ explicit HopperKeyGradient(const HopperAttentionGradArgs& args)
        : args(args), ring{shared_memory, barriers() + 6, SLOTS, TILE} {}

public:
    static __device__ __forceinline__ void run(const HopperAttentionGradArgs& args) {
        const HopperKeyGradient gradient(args);
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
            if (uniform_consumer() == MAKES_DV) {
                gradient.template consume<MAKES_DV>();
            } else {
                gradient.template consume<MAKES_DK>();
            }
        }
    }
};

#endif
