// The bf16 product of two shared-memory tiles on the tensor cores: ldmatrix, then mma.sync m16n8k16 with f32 accumulators.
//
// A warp owns (ROWS / warps) x (COLUMNS / warps) of the block's tile. Depth advances by 16 in ascending order into one
// accumulator per element, so an element's bits do not depend on the tile's shape or on where in the tile it lies.
#pragma once

#include "gemm/tile.cuh"

template <class Shape, Major A_MAJOR, Major B_MAJOR, bool ROW_SUMS> struct TensorCoreProduct {
    using T = typename Shape::T;
    using A = OperandTile<T, Shape::ROWS, Shape::DEPTH, A_MAJOR>;
    using B = OperandTile<T, Shape::COLUMNS, Shape::DEPTH, B_MAJOR>;
    static constexpr int WARP_ROWS = Shape::ROWS / Shape::WARPS_ALONG_ROWS;
    static constexpr int WARP_COLUMNS = Shape::COLUMNS / Shape::WARPS_ALONG_COLUMNS;
    static constexpr int M = WARP_ROWS / 16;
    static constexpr int N = WARP_COLUMNS / 8;
    static_assert(M * 16 == WARP_ROWS && N % 2 == 0 && N * 8 == WARP_COLUMNS && Shape::DEPTH % 16 == 0);
    // Blocks of 16 rows whose sums a warp keeps: the warps that share rows share this work.
    static constexpr int SUMMED = ROW_SUMS ? (M + Shape::WARPS_ALONG_COLUMNS - 1) / Shape::WARPS_ALONG_COLUMNS : 0;
    static constexpr uint32_t ONES = 0x3f803f80u;

    float sum[M][N][4] = {};
    float total[Shape::TOTALS ? M : 1][Shape::TOTALS ? N : 1][4] = {};
    float row_sum[ROW_SUMS ? SUMMED : 1][4] = {};

    __device__ __forceinline__ static int warp() { return int(threadIdx.x) / 32; }
    __device__ __forceinline__ static int lane() { return int(threadIdx.x) % 32; }
    __device__ __forceinline__ static int warp_column() { return warp() % Shape::WARPS_ALONG_COLUMNS; }
    __device__ __forceinline__ static int first_row() { return warp() / Shape::WARPS_ALONG_COLUMNS * WARP_ROWS; }
    __device__ __forceinline__ static int first_column() { return warp_column() * WARP_COLUMNS; }

    // Rows 16 m .. 16 m + 15 of the warp at depths 16 k .. 16 k + 15. Lane l addresses line l % 8 of matrix l / 8; the
    // matrices are (low rows, low depths), (high rows, low depths), (low, high), (high, high).
    __device__ __forceinline__ static void load_a(uint32_t (&a)[4], const unsigned char* tile, int m, int k) {
        const int row = first_row() + m * 16, low = lane() & 7, second = (lane() >> 3) & 1, fourth = lane() >> 4;
        if constexpr (A_MAJOR == Major::depth) {
            ldmatrix_x4(a, tile + A::offset(row + second * 8 + low, k * 2 + fourth));
        } else {
            ldmatrix_x4_trans(a, tile + A::offset(k * 16 + fourth * 8 + low, row / 8 + second));
        }
    }

    // Columns 16 n .. 16 n + 15 of the warp: b[0], b[1] belong to the first eight, b[2], b[3] to the others.
    __device__ __forceinline__ static void load_b(uint32_t (&b)[4], const unsigned char* tile, int n, int k) {
        const int column = first_column() + n * 16, low = lane() & 7, second = (lane() >> 3) & 1, fourth = lane() >> 4;
        if constexpr (B_MAJOR == Major::depth) {
            ldmatrix_x4(b, tile + B::offset(column + fourth * 8 + low, k * 2 + second));
        } else {
            ldmatrix_x4_trans(b, tile + B::offset(k * 16 + second * 8 + low, column / 8 + fourth));
        }
    }

    // Adds the product of one tile pair; `row_sums`: also the sums of A's rows, as a product with ones.
    __device__ __forceinline__ void add(const unsigned char* a_tile, const unsigned char* b_tile, bool row_sums) {
#pragma unroll
        for (int k = 0; k < Shape::DEPTH / 16; ++k) {
            uint32_t b[N / 2][4];
#pragma unroll
            for (int n = 0; n < N / 2; ++n) {
                load_b(b[n], b_tile, n, k);
            }
#pragma unroll
            for (int m = 0; m < M; ++m) {
                uint32_t a[4];
                load_a(a, a_tile, m, k);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    mma_m16n8k16(sum[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
                if constexpr (ROW_SUMS) {
                    if (row_sums && m % Shape::WARPS_ALONG_COLUMNS == warp_column()) {
                        mma_m16n8k16(row_sum[m / Shape::WARPS_ALONG_COLUMNS], a, ONES, ONES);
                    }
                }
            }
        }
    }

    // Closes a segment of the depth.
    __device__ __forceinline__ void close_segment() {
        if constexpr (Shape::TOTALS) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        total[m][n][i] += sum[m][n][i];
                        sum[m][n][i] = 0.0f;
                    }
                }
            }
        }
    }

    // Writes the result to a row-major f32 tile in shared memory.
    template <int PITCH> __device__ __forceinline__ void stage(float* target) const {
        float* first = target + (first_row() + lane() / 4) * PITCH + first_column() + lane() % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float(&v)[4] = result(m, n);
                store_vec(first + m * 16 * PITCH + n * 8, Vec<float, 2>{{v[0], v[1]}});
                store_vec(first + (m * 16 + 8) * PITCH + n * 8, Vec<float, 2>{{v[2], v[3]}});
            }
        }
    }

    // Writes the sums of A's rows, `limit` of which exist.
    __device__ __forceinline__ void store_row_sums(float* target, int limit) const {
        if (lane() % 4 != 0) {
            return;
        }
#pragma unroll
        for (int i = 0; i < SUMMED; ++i) {
            const int m = i * Shape::WARPS_ALONG_COLUMNS + warp_column();
            const int row = first_row() + m * 16 + lane() / 4;
            if (m < M && row < limit) {
                target[row] = row_sum[i][0];
            }
            if (m < M && row + 8 < limit) {
                target[row + 8] = row_sum[i][2];
            }
        }
    }

private:
    __device__ __forceinline__ const float (&result(int m, int n) const)[4] {
        if constexpr (Shape::TOTALS) {
            return total[m][n];
        } else {
            return sum[m][n];
        }
    }
};
