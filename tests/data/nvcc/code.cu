// Kernels of which each does one thing, for tests/nvcc_build.rs. Recorded with nvcc 13.0.88 and nvdisasm 13.2.86:
//   nvcc -std=c++20 -arch=sm_90a -I kernels -cubin -o code.cubin tests/data/nvcc/code.cu
//   nvdisasm -c code.cubin >code.sass.txt
#include "device/device.cuh"

struct CodeArgs {
    float* y;
    TensorMap map;
    uint32_t count;
};

namespace {

__device__ __forceinline__ void multiply(float (&d)[4]) {
    const uint64_t descriptor = wgmma_descriptor(0, 16, 1024, Swizzle::bytes128);
    wgmma_fence();
    wgmma_ss<8, false, false>(d, descriptor, descriptor, true);
    wgmma_commit();
}

__device__ __forceinline__ void store(float* y, const float (&d)[4]) { y[threadIdx.x] = d[0] + d[1] + d[2] + d[3]; }

} // namespace

// The wait's slow path lies behind the product and jumps back over it.
KERNEL(once_after_a_wait, CodeArgs, 128) {
    float d[4] = {};
    mbarrier_wait(reinterpret_cast<uint64_t*>(shared_memory), 0);
    multiply(d);
    wgmma_wait<0>();
    store(args.y, d);
}

// A loop in a loop, each with waits.
KERNEL(nested, CodeArgs, 128) {
    auto* barrier = reinterpret_cast<uint64_t*>(shared_memory);
#pragma unroll 1
    for (uint32_t item = blockIdx.x; item < args.count; item += gridDim.x) {
        float d[4] = {};
        mbarrier_wait(barrier, item & 1);
#pragma unroll 1
        for (uint32_t step = 0; step < item; ++step) {
            mbarrier_wait(barrier + 1, step & 1);
            multiply(d);
            wgmma_wait<0>();
        }
        store(args.y + item * 128, d);
    }
}

// One array that is indexed at run time.
KERNEL(local_array, CodeArgs, 128) {
    float table[64];
#pragma unroll 1
    for (int i = 0; i < 64; ++i) {
        table[i] = args.y[i];
    }
    args.y[threadIdx.x] = table[args.count % 64];
}

KERNEL(boxes, CodeArgs, 32) {
    tma_load_1d(shared_memory, &args.map, reinterpret_cast<uint64_t*>(shared_memory + 1024), 0);
    tma_load_1d(shared_memory, &args.map, reinterpret_cast<uint64_t*>(shared_memory + 1024), 64);
    tma_store_2d(&args.map, shared_memory, 0, 0);
}

KERNEL(warp_product, CodeArgs, 32) {
    float d[4] = {};
    const uint32_t a[4] = {args.count, 1, 2, 3};
#pragma unroll 1
    for (uint32_t i = 0; i < args.count; ++i) {
        mma_m16n8k16(d, a, 4, threadIdx.x);
    }
    store(args.y, d);
}
