// What differs between the two compilers of every kernel: nvcc for the GPU, the host C++ compiler for the simulator.
//
// KERNEL(name, Args, max_threads [, min_blocks]) { ... } defines an entry point with one plain-data parameter, `args`.
// `shared_memory` is the block's dynamic shared memory; its size is given at launch.
#pragma once

#ifdef __CUDACC__

#include <cstddef>
#include <cstdint>

#define KERNEL(name, Args, max_threads, ...)                                             \
    extern "C" __global__ void __launch_bounds__(max_threads __VA_OPT__(, ) __VA_ARGS__) \
        name(const __grid_constant__ Args args)

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
