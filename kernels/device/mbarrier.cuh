// Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies (sm_90).
//
// A phase completes when all arrivals and all expected bytes are in; `mbarrier_wait(b, parity)` returns once the phase
// of that parity (0 first, then 1, 0, ...) is complete. A fresh barrier passes a wait for parity 1.
#pragma once

#include "device/platform.cuh"

#ifdef DEVICE_HAS_HOPPER

// One thread initialises; fence_mbarrier_init and a block barrier follow.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    sim::mbarrier_init(barrier, arrivals);
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    sim::mbarrier_arrive(barrier);
#endif
}

// Announces `bytes` of asynchronous copies to this phase, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    sim::mbarrier_arrive_expect_tx(barrier, bytes);
#endif
}

__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
#ifdef __CUDACC__
    asm volatile("{\n"
                 ".reg .pred complete;\n"
                 "again_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
                 "@!complete bra again_%=;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
#else
    sim::mbarrier_wait(barrier, parity);
#endif
}

#endif
