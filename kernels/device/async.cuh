// Asynchronous 16-byte copies from global to shared memory (sm_80 and later). A thread's copies form groups; waiting
// makes its own copies visible to itself only: a barrier must follow before other threads read them.
#pragma once

#include "device/platform.cuh"

// Copies 16 bytes, or writes 16 zero bytes where !valid (the global address is then not read).
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid = true) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    sim::cp_async_16(shared, global, valid);
#endif
}

// Closes the group of the copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    sim::cp_async_commit();
#endif
}

// Waits until at most PENDING of the latest groups are still under way.
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    sim::cp_async_wait(PENDING);
#endif
}
