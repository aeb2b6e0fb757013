// Warp-level tensor core instructions on bf16 with f32 accumulation, and the matrix loads and stores that feed them.
//
// Fragments of a lane (group = lane / 4, pair = 2 * (lane % 4)), m16n8k16:
//   a[0..3]: rows group, group + 8, group, group + 8; columns from pair, pair, pair + 8, pair + 8, two a register
//   b0, b1:  k from pair and pair + 8, n = group
//   c[0..3]: (group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1)
#pragma once

#include "device/platform.cuh"

// Four 8x8 matrices of 16-bit values; lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    sim::ldmatrix(r, row, 4, false);
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    sim::ldmatrix(r, row, 4, true);
#endif
}

// Two matrices; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
#else
    sim::ldmatrix(r, row, 2, false);
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
#else
    sim::ldmatrix(r, row, 2, true);
#endif
}

// c[16x8] += a[16x16] b[16x8].
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    sim::mma_m16n8k16(c, a, b0, b1);
#endif
}

#ifdef DEVICE_HAS_HOPPER
// The inverse of ldmatrix_x4.
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#ifdef __CUDACC__
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
#else
    sim::stmatrix_x4(row, r);
#endif
}
#endif
