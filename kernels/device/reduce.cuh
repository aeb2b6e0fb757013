// Reductions over a warp and over a one-dimensional block. The order of additions is fixed, so results repeat bit for
// bit, and every thread gets the same value: in a butterfly both partners add the same two numbers.
#pragma once

#include "device/platform.cuh"

struct AddValues {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

struct MaxValues {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a > b ? a : b; }
};

template <class Combine, class T> __device__ __forceinline__ T warp_reduce(T v, Combine combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v = combine(v, __shfl_xor_sync(0xffffffffu, v, offset));
    }
    return v;
}

__device__ __forceinline__ float warp_sum(float v) { return warp_reduce(v, AddValues{}); }
__device__ __forceinline__ double warp_sum(double v) { return warp_reduce(v, AddValues{}); }
__device__ __forceinline__ float warp_max(float v) { return warp_reduce(v, MaxValues{}); }
__device__ __forceinline__ double warp_max(double v) { return warp_reduce(v, MaxValues{}); }

template <int THREADS, class Combine, class T>
__device__ __forceinline__ T block_reduce(T v, T* scratch, Combine combine) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024);
    constexpr int WARPS = THREADS / 32;
    v = warp_reduce(v, combine);
    // The first barrier protects what an earlier call's slower threads still read from the same scratch.
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = v;
    }
    __syncthreads();
    T total = scratch[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) {
        total = combine(total, scratch[warp]);
    }
    return total;
}

// `scratch`: THREADS / 32 values in shared memory; may be reused by the next call at once, but not for anything else
// without a barrier.
template <int THREADS> __device__ __forceinline__ float block_sum(float v, float* scratch) {
    return block_reduce<THREADS>(v, scratch, AddValues{});
}
template <int THREADS> __device__ __forceinline__ double block_sum(double v, double* scratch) {
    return block_reduce<THREADS>(v, scratch, AddValues{});
}
template <int THREADS> __device__ __forceinline__ float block_max(float v, float* scratch) {
    return block_reduce<THREADS>(v, scratch, MaxValues{});
}
template <int THREADS> __device__ __forceinline__ double block_max(double v, double* scratch) {
    return block_reduce<THREADS>(v, scratch, MaxValues{});
}
