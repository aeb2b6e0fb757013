// Warpgroup matrix multiply-accumulate: d[64 x N] (+)= a[64 x 16] b[16 x N] in bf16, or a[64 x 32] b[32 x N] in e4m3, with
// f32 accumulation (sm_90a). N is any multiple of 8 up to 256. The four warps of a warpgroup call each function together.
//
// d of thread t (row = 16 (t / 32) + t % 32 / 4, column = 2 (t % 4)): d[i] is at
//   row + 8 (i / 2 % 2), column + 8 (i / 4) + i % 2.
#pragma once

#include "device/platform.cuh"

#ifdef DEVICE_HAS_HOPPER

enum class Swizzle : uint32_t { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };

// Describes an operand in shared memory. K-major swizzled layouts: `stride_bytes` is the distance of groups of 8 rows
// and the leading distance is ignored; MN-major: `leading_bytes` is the distance of swizzle-wide column groups.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared_address, uint32_t leading_bytes,
                                                     uint32_t stride_bytes, Swizzle swizzle) {
    return uint64_t((shared_address & 0x3ffff) >> 4) | uint64_t(leading_bytes >> 4) << 16 |
           uint64_t(stride_bytes >> 4) << 32 | uint64_t(swizzle) << 62;
}

// Orders register and shared memory accesses before the first wgmma, and between wgmmas and other uses of d.
__device__ __forceinline__ void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    sim::wgmma_fence();
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    sim::wgmma_commit();
#endif
}

// Waits until at most PENDING groups are still under way.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#else
    sim::wgmma_wait(PENDING);
#endif
}

// Register budgets of warp-specialised kernels: a multiple of 8, all warps of a warpgroup together.
template <int REGISTERS> __device__ __forceinline__ void set_max_registers_up() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256);
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

template <int REGISTERS> __device__ __forceinline__ void set_max_registers_down() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256);
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// wgmma_ss: both operands in shared memory; wgmma_rs: a in registers (fragments as of mma_m16n8k16, 16 rows a warp).
// MN_MAJOR_*: the operand's rows, not its k, are contiguous. accumulate = false overwrites d.
// wgmma_ss_e4m3: both operands in shared memory, K-major, the only order there is for bytes. 32 k are 32 bytes, so that
// descriptors advance as with 16 k of bf16.
#ifdef __CUDACC__
template <int N> struct WgmmaShape;

// O0 .. O6 are the numbers of the operands after the N / 2 accumulators.
#define WGMMA_SHAPE(N, O0, O1, O2, O3, O4, O5, O6)                                                              \
    template <> struct WgmmaShape<N> {                                                                          \
        template <bool MN_MAJOR_A, bool MN_MAJOR_B>                                                             \
        static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O2 ", 0;\n"                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_TEXT_##N            \
                         "}, %" #O0 ", %" #O1 ", p, 1, 1, %" #O3 ", %" #O4 ";\n}"                               \
                         : WGMMA_OPERANDS_##N                                                                   \
                         : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(MN_MAJOR_A)), "n"(int(MN_MAJOR_B)));   \
        }                                                                                                       \
        template <bool MN_MAJOR_B> static __device__ __forceinline__ void                                       \
        rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {                            \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O5 ", 0;\n"                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_TEXT_##N            \
                         "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", p, 1, 1, %" #O6 ";\n}"         \
                         : WGMMA_OPERANDS_##N                                                                   \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)),            \
                           "n"(int(MN_MAJOR_B)));                                                               \
        }                                                                                                       \
        static __device__ __forceinline__ void                                                                  \
        ss_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {                                   \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O2 ", 0;\n"                                      \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" WGMMA_TEXT_##N            \
                         "}, %" #O0 ", %" #O1 ", p, 1, 1;\n}"                                                   \
                         : WGMMA_OPERANDS_##N                                                                   \
                         : "l"(a), "l"(b), "r"(int(accumulate)));                                               \
        }                                                                                                       \
    };

#include "device/wgmma_shapes.cuh"

template <int N, bool MN_MAJOR_B = false, bool MN_MAJOR_A = false>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    WgmmaShape<N>::template ss<MN_MAJOR_A, MN_MAJOR_B>(d, a, b, accumulate);
}
template <int N, bool MN_MAJOR_B = false>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    WgmmaShape<N>::template rs<MN_MAJOR_B>(d, a, b, accumulate);
}
template <int N>
__device__ __forceinline__ void wgmma_ss_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    WgmmaShape<N>::ss_e4m3(d, a, b, accumulate);
}
#else
template <int N, bool MN_MAJOR_B = false, bool MN_MAJOR_A = false>
inline void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    sim::wgmma({d, nullptr, a, b, N, accumulate, MN_MAJOR_A, MN_MAJOR_B, false});
}
template <int N, bool MN_MAJOR_B = false>
inline void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    sim::wgmma({d, a, 0, b, N, accumulate, false, MN_MAJOR_B, false});
}
template <int N> inline void wgmma_ss_e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    sim::wgmma({d, nullptr, a, b, N, accumulate, false, false, true});
}
#endif

#endif
