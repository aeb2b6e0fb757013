// Bulk tensor copies between global and shared memory by the TMA unit (sm_90). The shape of a copy lies in a TensorMap,
// which the host encodes and passes inside the kernel's arguments; `&args.map` is its address.
//
// Coordinates are in elements, innermost dimension first, and may lie outside: loads then write zeros, stores skip.
// Loads complete their bytes on an mbarrier; stores form groups, committed and waited for by the thread that issued
// them.
#pragma once

#include "device/platform.cuh"

#ifdef __CUDACC__
struct TensorMap {
    alignas(64) uint64_t opaque[16];
};
#else
using sim::TensorMap;
#endif

#ifdef DEVICE_HAS_HOPPER

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
    (void)map;
#endif
}

// Tiled loads: the box whose first element has these coordinates.
#ifdef __CUDACC__
#define TMA_LOAD(dimensions, coordinates)                                                                       \
    "cp.async.bulk.tensor." dimensions "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, " \
    "{" coordinates "}], [%2];"

__device__ __forceinline__ void tma_load_1d(void* shared, const TensorMap* map, uint64_t* barrier, int c0) {
    asm volatile(TMA_LOAD("1", "%3")::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(c0)
                 : "memory");
}

__device__ __forceinline__ void tma_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1) {
    asm volatile(TMA_LOAD("2", "%3, %4")::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(c0),
                 "r"(c1)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2) {
    asm volatile(TMA_LOAD("3", "%3, %4, %5")::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

__device__ __forceinline__ void tma_load_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2, int c3) {
    asm volatile(TMA_LOAD("4", "%3, %4, %5, %6")::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)),
                 "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

__device__ __forceinline__ void tma_load_5d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1,
                                            int c2, int c3, int c4) {
    asm volatile(TMA_LOAD("5", "%3, %4, %5, %6, %7")::"r"(shared_address(shared)), "l"(map),
                 "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}
#undef TMA_LOAD

// im2col loads of an NWC, NHWC or NDHWC tensor: consecutive output pixels from the given base pixel on, each read at the
// filter tap's offset from it (tap number times dilation). Coordinates are those of the base pixel in the image.
#define TMA_LOAD_IM2COL(dimensions, coordinates, offsets)                                                         \
    "cp.async.bulk.tensor." dimensions "d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, " \
    "{" coordinates "}], [%2], {" offsets "};"

__device__ __forceinline__ void tma_load_im2col_3d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w,
                                                   int n, uint16_t tap_w) {
    asm volatile(TMA_LOAD_IM2COL("3", "%3, %4, %5", "%6")::"r"(shared_address(shared)), "l"(map),
                 "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(n), "h"(tap_w)
                 : "memory");
}

__device__ __forceinline__ void tma_load_im2col_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w,
                                                   int h, int n, uint16_t tap_w, uint16_t tap_h) {
    asm volatile(TMA_LOAD_IM2COL("4", "%3, %4, %5, %6", "%7, %8")::"r"(shared_address(shared)), "l"(map),
                 "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(tap_w), "h"(tap_h)
                 : "memory");
}

__device__ __forceinline__ void tma_load_im2col_5d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w,
                                                   int h, int d, int n, uint16_t tap_w, uint16_t tap_h,
                                                   uint16_t tap_d) {
    asm volatile(TMA_LOAD_IM2COL("5", "%3, %4, %5, %6, %7", "%8, %9, %10")::"r"(shared_address(shared)), "l"(map),
                 "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(d), "r"(n), "h"(tap_w), "h"(tap_h),
                 "h"(tap_d)
                 : "memory");
}
#undef TMA_LOAD_IM2COL

// Tiled stores.
#define TMA_STORE(dimensions, coordinates) \
    "cp.async.bulk.tensor." dimensions "d.global.shared::cta.tile.bulk_group [%0, {" coordinates "}], [%1];"

__device__ __forceinline__ void tma_store_1d(const TensorMap* map, const void* shared, int c0) {
    asm volatile(TMA_STORE("1", "%2")::"l"(map), "r"(shared_address(shared)), "r"(c0) : "memory");
}

__device__ __forceinline__ void tma_store_2d(const TensorMap* map, const void* shared, int c0, int c1) {
    asm volatile(TMA_STORE("2", "%2, %3")::"l"(map), "r"(shared_address(shared)), "r"(c0), "r"(c1) : "memory");
}

__device__ __forceinline__ void tma_store_3d(const TensorMap* map, const void* shared, int c0, int c1, int c2) {
    asm volatile(TMA_STORE("3", "%2, %3, %4")::"l"(map), "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

__device__ __forceinline__ void tma_store_4d(const TensorMap* map, const void* shared, int c0, int c1, int c2, int c3) {
    asm volatile(TMA_STORE("4", "%2, %3, %4, %5")::"l"(map), "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2),
                 "r"(c3)
                 : "memory");
}

__device__ __forceinline__ void tma_store_5d(const TensorMap* map, const void* shared, int c0, int c1, int c2, int c3,
                                             int c4) {
    asm volatile(TMA_STORE("5", "%2, %3, %4, %5, %6")::"l"(map), "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2),
                 "r"(c3), "r"(c4)
                 : "memory");
}
#undef TMA_STORE
#else
#include "sim/tma_calls.hpp"
#endif

__device__ __forceinline__ void tma_store_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    sim::tma_store_commit();
#endif
}

// Waits until at most PENDING groups are still under way: their writes are then done.
template <int PENDING> __device__ __forceinline__ void tma_store_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    sim::tma_store_wait(PENDING);
#endif
}

// Waits until at most PENDING groups still read shared memory, which may then be written again.
template <int PENDING> __device__ __forceinline__ void tma_store_wait_read() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#else
    sim::tma_store_wait(PENDING);
#endif
}

#endif
