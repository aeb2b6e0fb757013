// Kernels with planted bugs that the simulator must report.
#include "device/device.cuh"

struct ArrayArgs {
    const void* x;
    void* y;
    uint64_t count;
};

// Two sums with one scratch and no barrier between the second write and slower readers of the first sum.
KERNEL(bug_missing_barrier, ArrayArgs, 256) {
    __shared__ float scratch[8];
    float total = 0.0f;
    for (int repeat = 0; repeat < 2; ++repeat) {
        const float v = warp_sum(static_cast<const float*>(args.x)[threadIdx.x] + float(repeat));
        if (threadIdx.x % 32 == 0) {
            scratch[threadIdx.x / 32] = v;
        }
        __syncthreads();
        for (int warp = 0; warp < 8; ++warp) {
            total += scratch[warp];
        }
    }
    static_cast<float*>(args.y)[threadIdx.x] = total;
}

KERNEL(bug_dynamic_shared_overrun, ArrayArgs, 64) { shared_memory[threadIdx.x + args.count] = 1; }

KERNEL(bug_static_shared_overrun, ArrayArgs, 64) {
    __shared__ float scratch[32];
    scratch[threadIdx.x] = 1.0f;
    __syncthreads();
    static_cast<float*>(args.y)[threadIdx.x] = scratch[threadIdx.x ^ 1];
}

KERNEL(bug_global_overrun, ArrayArgs, 64) { static_cast<float*>(args.y)[threadIdx.x + args.count] = 1.0f; }

KERNEL(bug_global_race, ArrayArgs, 64) { static_cast<uint32_t*>(args.y)[threadIdx.x / 2] = threadIdx.x; }

KERNEL(bug_divergent_barrier, ArrayArgs, 64) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        named_barrier_sync<3>(64);
    }
}

KERNEL(bug_divergent_collective, ArrayArgs, 64) {
    float v = 1.0f;
    if (threadIdx.x % 32 < 5) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    } else {
        __syncwarp();
    }
    static_cast<float*>(args.y)[threadIdx.x] = v;
}
