// Kernels around cp.async and mma.sync, for tests/simulator.rs.
#include "device/device.cuh"

struct MatrixArgs {
    const bf16* a;
    const bf16* b;
    float* c;
};

constexpr int SIZE = 64;
// 16 bytes of padding a row: ldmatrix then hits all banks.
constexpr int PITCH = SIZE + 8;

enum class Loads { x4, x2, transposed };

// c[64x64] = a[64x64] b^T with b [64x64] in rows of k, or in rows of n where transposed; four warps of 16 rows.
template <Loads LOADS, bool WAIT> __device__ void multiply(const MatrixArgs& args) {
    __shared__ __align__(128) bf16 a[SIZE][PITCH];
    __shared__ __align__(128) bf16 b[SIZE][PITCH];
    for (int i = threadIdx.x; i < SIZE * SIZE / 8; i += 128) {
        const int row = i / 8, column = i % 8 * 8;
        cp_async_16(&a[row][column], args.a + row * SIZE + column);
        cp_async_16(&b[row][column], args.b + row * SIZE + column);
    }
    cp_async_commit();
    if constexpr (WAIT) {
        cp_async_wait<0>();
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float c[8][4] = {};
#pragma unroll
    for (int k = 0; k < SIZE; k += 16) {
        uint32_t fragment[4];
        ldmatrix_x4(fragment, &a[warp * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            uint32_t other[2];
            if constexpr (LOADS == Loads::transposed) {
                ldmatrix_x2_trans(other, &b[k + lane % 16][n * 8]);
            } else if constexpr (LOADS == Loads::x2) {
                ldmatrix_x2(other, &b[n * 8 + lane % 8][k + lane / 8 % 2 * 8]);
            } else {
                uint32_t pair[4];
                ldmatrix_x4(pair, &b[n / 2 * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
                other[0] = pair[n % 2 * 2];
                other[1] = pair[n % 2 * 2 + 1];
            }
            mma_m16n8k16(c[n], fragment, other[0], other[1]);
        }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            args.c[(warp * 16 + lane / 4 + i / 2 * 8) * SIZE + n * 8 + lane % 4 * 2 + i % 2] = c[n][i];
        }
    }
}

KERNEL(test_mma_x4, MatrixArgs, 128) { multiply<Loads::x4, true>(args); }
KERNEL(test_mma_x2, MatrixArgs, 128) { multiply<Loads::x2, true>(args); }
KERNEL(test_mma_transposed, MatrixArgs, 128) { multiply<Loads::transposed, true>(args); }
KERNEL(bug_missing_copy_wait, MatrixArgs, 128) { multiply<Loads::x4, false>(args); }
