// A warp-specialised product with TMA, mbarriers and wgmma, correct and with planted bugs, for tests/simulator.
#include "device/device.cuh"

#ifdef DEVICE_HAS_HOPPER

// c[128 x 64] = a[128 x k] b[64 x k]^T, all in bf16 but c; warpgroup 0 loads, 1 and 2 multiply 64 rows each.
struct PipelineArgs {
    TensorMap a, b;
    float* c;
    int32_t k;
};

enum class Bug { none, early_release, missing_empty_wait, missing_arrival };

constexpr int STAGES = 3, TILE_K = 64;

struct PipelineMemory {
    unsigned char a[STAGES][128 * TILE_K * 2], b[STAGES][64 * TILE_K * 2];
    uint64_t full[STAGES], empty[STAGES];
};

template <Bug BUG> __device__ void load_tiles(const PipelineArgs& args, PipelineMemory& memory, int tiles) {
    for (int tile = 0; tile < tiles; ++tile) {
        const int stage = tile % STAGES, phase = tile / STAGES % 2;
        if constexpr (BUG != Bug::missing_empty_wait) {
            mbarrier_wait(&memory.empty[stage], phase ^ 1);
        }
        mbarrier_arrive_expect_tx(&memory.full[stage], sizeof(memory.a[0]) + sizeof(memory.b[0]));
        tma_load_2d(memory.a[stage], &args.a, &memory.full[stage], tile * TILE_K, 0);
        tma_load_2d(memory.b[stage], &args.b, &memory.full[stage], tile * TILE_K, 0);
    }
}

template <Bug BUG> __device__ void multiply_tiles(const PipelineArgs& args, PipelineMemory& memory, int tiles) {
    const int half = threadIdx.x / 128 - 1, t = threadIdx.x % 128;
    float d[32];
    for (int tile = 0; tile < tiles; ++tile) {
        const int stage = tile % STAGES, phase = tile / STAGES % 2;
        mbarrier_wait(&memory.full[stage], phase);
        const uint32_t a = shared_address(memory.a[stage]) + half * 64 * TILE_K * 2,
                       b = shared_address(memory.b[stage]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < TILE_K * 2; k += 32) {
            wgmma_ss<64>(d, wgmma_descriptor(a + k, 16, 1024, Swizzle::bytes128),
                         wgmma_descriptor(b + k, 16, 1024, Swizzle::bytes128), tile > 0 || k > 0);
        }
        wgmma_commit();
        if constexpr (BUG == Bug::early_release) {
            if (t == 0) {
                mbarrier_arrive(&memory.empty[stage]);
            }
        }
        wgmma_wait<0>();
        if (BUG != Bug::early_release && t == 0 && !(BUG == Bug::missing_arrival && half == 1)) {
            mbarrier_arrive(&memory.empty[stage]);
        }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int row = half * 64 + t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
        args.c[row * 64 + column] = d[i];
    }
}

template <Bug BUG> __device__ void pipeline(const PipelineArgs& args) {
    auto& memory = *reinterpret_cast<PipelineMemory*>(shared_memory);
    const int tiles = (args.k + TILE_K - 1) / TILE_K;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(&memory.full[stage], 1);
            mbarrier_init(&memory.empty[stage], 2);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        multiply_tiles<BUG>(args, memory, tiles);
    } else if (threadIdx.x == 0) {
        load_tiles<BUG>(args, memory, tiles);
    }
}

KERNEL(test_pipeline, PipelineArgs, 384) { pipeline<Bug::none>(args); }
KERNEL(bug_early_release, PipelineArgs, 384) { pipeline<Bug::early_release>(args); }
KERNEL(bug_missing_empty_wait, PipelineArgs, 384) { pipeline<Bug::missing_empty_wait>(args); }
KERNEL(bug_mbarrier_deadlock, PipelineArgs, 384) { pipeline<Bug::missing_arrival>(args); }

// Threads write both operands themselves; c[64 x 8] of ones is 16 everywhere.
struct HandWrittenArgs {
    float* c;
};

template <bool BARRIER> __device__ void hand_written_operands(const HandWrittenArgs& args) {
    auto* words = reinterpret_cast<uint32_t*>(shared_memory);
    // 72 rows of 32 bytes without swizzle: cores of 8 rows x 16 bytes, a first, then b.
    for (int i = threadIdx.x; i < 72 * 8; i += 128) {
        words[i] = pack_bf16x2(1.0f, 1.0f);
    }
    fence_proxy_async();
    if constexpr (BARRIER) {
        __syncthreads();
    }
    float d[4];
    wgmma_fence();
    wgmma_ss<8>(d, wgmma_descriptor(shared_address(shared_memory), 128, 256, Swizzle::none),
                wgmma_descriptor(shared_address(shared_memory) + 2048, 128, 256, Swizzle::none), false);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 4; ++i) {
        args.c[threadIdx.x * 4 + i] = d[i];
    }
}
KERNEL(test_hand_written_operands, HandWrittenArgs, 128) { hand_written_operands<true>(args); }
KERNEL(bug_operands_without_barrier, HandWrittenArgs, 128) { hand_written_operands<false>(args); }

#endif
