// Kernels around mbarrier, TMA and wgmma, for tests/simulator.
#include "device/device.cuh"

// Everything below wants sm_90a.
#ifdef DEVICE_HAS_HOPPER

// One box through shared memory, then as it lies there to y.
struct LoadArgs {
    TensorMap map;
    bf16* y;
    int32_t coordinates[5];
    int32_t tap[2];
    uint32_t bytes;
};

enum class Load { tiled1, tiled2, tiled3, tiled4, tiled5, im2col3, im2col4 };

template <Load KIND> __device__ void load_box(const LoadArgs& args) {
    auto* arrived = reinterpret_cast<uint64_t*>(shared_memory + args.bytes);
    if (threadIdx.x == 0) {
        mbarrier_init(arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int32_t* c = args.coordinates;
        mbarrier_arrive_expect_tx(arrived, args.bytes);
        if constexpr (KIND == Load::tiled1) {
            tma_load_1d(shared_memory, &args.map, arrived, c[0]);
        } else if constexpr (KIND == Load::tiled2) {
            tma_load_2d(shared_memory, &args.map, arrived, c[0], c[1]);
        } else if constexpr (KIND == Load::tiled3) {
            tma_load_3d(shared_memory, &args.map, arrived, c[0], c[1], c[2]);
        } else if constexpr (KIND == Load::tiled4) {
            tma_load_4d(shared_memory, &args.map, arrived, c[0], c[1], c[2], c[3]);
        } else if constexpr (KIND == Load::tiled5) {
            tma_load_5d(shared_memory, &args.map, arrived, c[0], c[1], c[2], c[3], c[4]);
        } else if constexpr (KIND == Load::im2col3) {
            tma_load_im2col_3d(shared_memory, &args.map, arrived, c[0], c[1], c[2], uint16_t(args.tap[0]));
        } else {
            tma_load_im2col_4d(shared_memory, &args.map, arrived, c[0], c[1], c[2], c[3], uint16_t(args.tap[0]),
                               uint16_t(args.tap[1]));
        }
    }
    mbarrier_wait(arrived, 0);
    for (uint32_t i = threadIdx.x; i < args.bytes / 2; i += 32) {
        args.y[i] = reinterpret_cast<const bf16*>(shared_memory)[i];
    }
}
KERNEL(test_tma_load_1d, LoadArgs, 32) { load_box<Load::tiled1>(args); }
KERNEL(test_tma_load_2d, LoadArgs, 32) { load_box<Load::tiled2>(args); }
KERNEL(test_tma_load_3d, LoadArgs, 32) { load_box<Load::tiled3>(args); }
KERNEL(test_tma_load_4d, LoadArgs, 32) { load_box<Load::tiled4>(args); }
KERNEL(test_tma_load_5d, LoadArgs, 32) { load_box<Load::tiled5>(args); }
KERNEL(test_tma_load_im2col_3d, LoadArgs, 32) { load_box<Load::im2col3>(args); }
KERNEL(test_tma_load_im2col_4d, LoadArgs, 32) { load_box<Load::im2col4>(args); }

// c[64 x N] = a b from operands that TMA loads with 128-byte swizzle, depth 64.
// a: [64][64] in rows of m, or [k][m] where MN_MAJOR_A; b: [N][64] in rows of n, or [64][N] in rows of k.
struct WgmmaArgs {
    TensorMap a, b;
    float* c;
};

enum class OperandA { shared, shared_mn_major, registers };

template <int N, OperandA A, bool MN_MAJOR_B, bool FENCED = true>
__device__ void multiply_tiles(const WgmmaArgs& args) {
    constexpr uint32_t A_BYTES = 64 * 64 * 2, B_BYTES = N * 64 * 2;
    unsigned char *const a = shared_memory, *const b = shared_memory + A_BYTES;
    auto* arrived = reinterpret_cast<uint64_t*>(shared_memory + A_BYTES + B_BYTES);
    if (threadIdx.x == 0) {
        mbarrier_init(arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(arrived, A_BYTES + B_BYTES);
        tma_load_2d(a, &args.a, arrived, 0, 0);
        if constexpr (MN_MAJOR_B) {
            for (int n = 0; n < N; n += 64) {
                tma_load_2d(b + n * 128, &args.b, arrived, n, 0);
            }
        } else {
            tma_load_2d(b, &args.b, arrived, 0, 0);
        }
    }
    mbarrier_wait(arrived, 0);
    const int lane = threadIdx.x % 32;
    uint32_t fragments[4][4];
    if constexpr (A == OperandA::registers) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int row = threadIdx.x / 32 * 16 + lane % 16, chunk = k * 2 + lane / 16;
            ldmatrix_x4(fragments[k], a + row * 128 + (chunk ^ row % 8) * 16);
        }
    }
    float d[N / 2];
    if constexpr (FENCED) {
        wgmma_fence();
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        // k advances inside the swizzled 128 bytes of a K-major row, or by 16 rows of 128 bytes.
        const uint32_t at_b = shared_address(b) + (MN_MAJOR_B ? k * 2048 : k * 32);
        const uint64_t descriptor_b = wgmma_descriptor(at_b, MN_MAJOR_B ? 8192 : 16, 1024, Swizzle::bytes128);
        if constexpr (A == OperandA::registers) {
            wgmma_rs<N, MN_MAJOR_B>(d, fragments[k], descriptor_b, k > 0);
        } else {
            constexpr bool MN_MAJOR_A = A == OperandA::shared_mn_major;
            const uint32_t at_a = shared_address(a) + (MN_MAJOR_A ? k * 2048 : k * 32);
            const uint64_t descriptor_a = wgmma_descriptor(at_a, MN_MAJOR_A ? 8192 : 16, 1024, Swizzle::bytes128);
            wgmma_ss<N, MN_MAJOR_B, MN_MAJOR_A>(d, descriptor_a, descriptor_b, k > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const int row = threadIdx.x / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        args.c[row * N + column] = d[i];
    }
}
KERNEL(test_wgmma_ss_n8, WgmmaArgs, 128) { multiply_tiles<8, OperandA::shared, false>(args); }
KERNEL(test_wgmma_ss_n96, WgmmaArgs, 128) { multiply_tiles<96, OperandA::shared, false>(args); }
KERNEL(test_wgmma_rs_n136, WgmmaArgs, 128) { multiply_tiles<136, OperandA::registers, false>(args); }
KERNEL(test_wgmma_ss_n256, WgmmaArgs, 128) { multiply_tiles<256, OperandA::shared, false>(args); }
KERNEL(test_wgmma_ss_n64_mn_major, WgmmaArgs, 128) { multiply_tiles<64, OperandA::shared_mn_major, true>(args); }
KERNEL(test_wgmma_rs_n128_mn_major, WgmmaArgs, 128) { multiply_tiles<128, OperandA::registers, true>(args); }

// As above with operands of e4m3, depth 128: the maps see two of them in 16 bits.
template <int N> __device__ void multiply_e4m3_tiles(const WgmmaArgs& args) {
    constexpr uint32_t A_BYTES = 64 * 128, B_BYTES = N * 128;
    unsigned char *const a = shared_memory, *const b = shared_memory + A_BYTES;
    auto* arrived = reinterpret_cast<uint64_t*>(shared_memory + A_BYTES + B_BYTES);
    if (threadIdx.x == 0) {
        mbarrier_init(arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(arrived, A_BYTES + B_BYTES);
        tma_load_2d(a, &args.a, arrived, 0, 0);
        tma_load_2d(b, &args.b, arrived, 0, 0);
    }
    mbarrier_wait(arrived, 0);
    float d[N / 2];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        wgmma_ss_e4m3<N>(d, wgmma_descriptor(shared_address(a) + k * 32, 16, 1024, Swizzle::bytes128),
                         wgmma_descriptor(shared_address(b) + k * 32, 16, 1024, Swizzle::bytes128), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
        const int row = threadIdx.x / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        args.c[row * N + column] = d[i];
    }
}
KERNEL(test_wgmma_e4m3_n8, WgmmaArgs, 128) { multiply_e4m3_tiles<8>(args); }
KERNEL(test_wgmma_e4m3_n64, WgmmaArgs, 128) { multiply_e4m3_tiles<64>(args); }
KERNEL(test_wgmma_e4m3_n128, WgmmaArgs, 128) { multiply_e4m3_tiles<128>(args); }
KERNEL(bug_wgmma_without_fence, WgmmaArgs, 128) { multiply_tiles<8, OperandA::shared, false, false>(args); }

// Fragments to shared memory by stmatrix, and out by a TMA store of [64][64] bf16 whose rows the map may cut.
struct StoreArgs {
    TensorMap map;
    int32_t column, row;
};

template <bool FENCED> __device__ void store_tile(const StoreArgs& args) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Element (r, c) is r + c, exact in bf16.
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
        uint32_t fragment[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const int r = warp * 16 + m % 2 * 8 + lane / 4, c = tile * 16 + m / 2 * 8 + lane % 4 * 2;
            fragment[m] = pack_bf16x2(float(r + c), float(r + c + 1));
        }
        const int row = warp * 16 + lane % 16, chunk = tile * 2 + lane / 16;
        stmatrix_x4(shared_memory + row * 128 + (chunk ^ row % 8) * 16, fragment);
    }
    if constexpr (FENCED) {
        fence_proxy_async();
    }
    named_barrier_sync<1>(128);
    if (threadIdx.x == 0) {
        tma_store_2d(&args.map, shared_memory, args.column, args.row);
        tma_store_commit();
        tma_store_wait<0>();
    }
}
KERNEL(test_tma_store, StoreArgs, 128) { store_tile<true>(args); }
KERNEL(bug_missing_proxy_fence, StoreArgs, 128) { store_tile<false>(args); }

#endif
