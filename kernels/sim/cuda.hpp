// The CUDA C++ that kernels use, for the host compiler: keywords, built-in variables and functions, KERNEL.
#pragma once

#include "sim/builtin_types.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
// One OS thread runs one block at a time, so thread-local storage is exactly a block's shared memory, in templates too.
#define __shared__ thread_local

#include "sim/runtime.hpp"

#include "sim/atomics.hpp"
#include "sim/math.hpp"
#include "sim/warp.hpp"

#define KERNEL(name, Args, max_threads, ...)                                                                  \
    static void name(const Args& args);                                                                       \
    static const ::sim::Registration name##_registration{                                                     \
        {#name, sizeof(Args), max_threads, [](const void* args) { name(*static_cast<const Args*>(args)); }}}; \
    static void name(const Args& args)

using sim::blockDim;
using sim::blockIdx;
using sim::gridDim;
using sim::shared_memory;
using sim::threadIdx;
constexpr int warpSize = 32;

inline void __syncthreads() { sim::barrier_sync(0, int(sim::block_threads)); }
inline int __syncthreads_or(int p) { return sim::barrier_reduce(p != 0) != 0; }
inline int __syncthreads_and(int p) { return sim::barrier_reduce(p == 0) == 0; }
inline int __syncthreads_count(int p) { return int(sim::barrier_reduce(p != 0)); }
// Blocks of one OS thread run one after another and atomics order the rest, so fences have nothing left to do.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { sim::fail("__trap()"); }
