// Barriers over part of a block, and the fences between ordinary accesses and the asynchronous units.
//
// A barrier's number is a template argument: with a run-time number ptxas reserves all sixteen.
#pragma once

#include "device/platform.cuh"

// Waits until `threads` threads (a multiple of 32) have arrived at barrier ID; 0 is that of __syncthreads.
template <int ID> __device__ __forceinline__ void named_barrier_sync(int threads) {
    static_assert(ID > 0 && ID < 16);
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#else
    sim::barrier_sync(ID, threads);
#endif
}

// Arrives without waiting.
template <int ID> __device__ __forceinline__ void named_barrier_arrive(int threads) {
    static_assert(ID > 0 && ID < 16);
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#else
    sim::barrier_arrive(ID, threads);
#endif
}

#ifdef DEVICE_HAS_HOPPER
// Orders this thread's earlier accesses to shared memory before later ones by wgmma and TMA.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    sim::fence_proxy_async();
#endif
}

// Makes initialised mbarriers visible to the asynchronous units.
__device__ __forceinline__ void fence_mbarrier_init() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    sim::fence_mbarrier_init();
#endif
}
#endif
