// What differs between the two compilers of every kernel: nvcc for the GPU, the host C++ compiler for the simulator.
//
// KERNEL(name, Args, max_threads [, min_blocks]) { ... } defines an entry point with one plain-data parameter, `args`. Its
// first act is to let the next launch begin and to wait for the launches before it (see await_launches_before): that every
// kernel does so is what makes overlapping launches safe, since a launch is over only once those before it are.
// `shared_memory` is the block's dynamic shared memory; its size is given at launch.
#pragma once

#ifdef __CUDACC__

#include <cstddef>
#include <cstdint>

// Without the launch attribute that allows a launch to overlap the one before it, both instructions do nothing.
__device__ __forceinline__ void await_launches_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define KERNEL(name, Args, max_threads, ...)                                             \
    __device__ __forceinline__ void name##_body(const Args& args);                       \
    extern "C" __global__ void __launch_bounds__(max_threads __VA_OPT__(, ) __VA_ARGS__) \
        name(const __grid_constant__ Args args) {                                        \
        await_launches_before();                                                         \
        name##_body(args);                                                               \
    }                                                                                    \
    __device__ __forceinline__ void name##_body(const Args& args)

extern __shared__ __align__(1024) unsigned char shared_memory[];

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define DEVICE_HAS_HOPPER 1
#endif

// The shared state space's 32-bit address of a generic pointer, as PTX instructions and matrix descriptors take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

#else

#include "sim/cuda.hpp"

#define DEVICE_HAS_HOPPER 1

inline uint32_t shared_address(const void* pointer) { return sim::shared_address(pointer); }

#endif
