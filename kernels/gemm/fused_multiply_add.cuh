// The f32 product of two shared-memory tiles with fused multiply-adds: no tf32, no rounding between product and sum.
//
// Threads form a grid of ROW_THREADS x COLUMN_THREADS; each owns an M x N patch of the tile. In a depth-major operand its
// lines are interleaved with those of its neighbours (a quarter warp reads neighbouring lines: no bank conflicts); in an
// outer-major one it owns runs of four neighbours (one 16-byte load). Depth ascends, one accumulator per element.
#pragma once

#include "gemm/tile.cuh"

template <class Shape, Major A_MAJOR, Major B_MAJOR, bool ROW_SUMS> struct FusedMultiplyAddProduct {
    using T = float;
    using A = OperandTile<T, Shape::ROWS, Shape::DEPTH, A_MAJOR>;
    using B = OperandTile<T, Shape::COLUMNS, Shape::DEPTH, B_MAJOR>;
    static constexpr int COLUMN_THREADS = 16;
    static constexpr int ROW_THREADS = Shape::THREADS / COLUMN_THREADS;
    static constexpr int M = Shape::ROWS / ROW_THREADS;
    static constexpr int N = Shape::COLUMNS / COLUMN_THREADS;
    static_assert(M % 4 == 0 && N % 4 == 0 && Shape::DEPTH % 4 == 0);

    float sum[M][N] = {};
    float total[Shape::TOTALS ? M : 1][Shape::TOTALS ? N : 1] = {};
    float row_sum[ROW_SUMS ? M : 1] = {};

    __device__ __forceinline__ static int row_thread() { return int(threadIdx.x) / COLUMN_THREADS; }
    __device__ __forceinline__ static int column_thread() { return int(threadIdx.x) % COLUMN_THREADS; }

    // The i-th of the COUNT rows or columns of a thread.
    template <Major MAJOR, int THREADS> __device__ __forceinline__ static int owned(int thread, int i) {
        return MAJOR == Major::depth ? thread + i * THREADS : (i / 4 * THREADS + thread) * 4 + i % 4;
    }

    // A thread's COUNT rows or columns at depths 4 k .. 4 k + 3.
    template <class Operand, Major MAJOR, int THREADS, int COUNT>
    __device__ __forceinline__ static void load(float (&out)[COUNT][4], const unsigned char* tile, int thread, int k) {
        if constexpr (MAJOR == Major::depth) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                const int line = owned<MAJOR, THREADS>(thread, i);
                const auto chunk = load_vec<4>(reinterpret_cast<const float*>(tile + Operand::offset(line, k)));
#pragma unroll
                for (int d = 0; d < 4; ++d) {
                    out[i][d] = chunk.v[d];
                }
            }
        } else {
#pragma unroll
            for (int d = 0; d < 4; ++d) {
#pragma unroll
                for (int i = 0; i < COUNT; i += 4) {
                    const int offset = Operand::offset(k * 4 + d, owned<MAJOR, THREADS>(thread, i) / 4);
                    const auto chunk = load_vec<4>(reinterpret_cast<const float*>(tile + offset));
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        out[i + j][d] = chunk.v[j];
                    }
                }
            }
        }
    }

    // Adds the product of one tile pair; `row_sums`: also the sums of A's rows.
    __device__ __forceinline__ void add(const unsigned char* a_tile, const unsigned char* b_tile, bool row_sums) {
#pragma unroll 1
        for (int k = 0; k < Shape::DEPTH / 4; ++k) {
            float a[M][4], b[N][4];
            load<A, A_MAJOR, ROW_THREADS>(a, a_tile, row_thread(), k);
            load<B, B_MAJOR, COLUMN_THREADS>(b, b_tile, column_thread(), k);
#pragma unroll
            for (int d = 0; d < 4; ++d) {
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int n = 0; n < N; ++n) {
                        sum[m][n] = fmaf(a[m][d], b[n][d], sum[m][n]);
                    }
                    if constexpr (ROW_SUMS) {
                        row_sum[m] += row_sums ? a[m][d] : 0.0f;
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
                    total[m][n] += sum[m][n];
                    sum[m][n] = 0.0f;
                }
            }
        }
    }

    // Writes the result to a row-major f32 tile in shared memory.
    template <int PITCH> __device__ __forceinline__ void stage(float* target) const {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const int row = owned<A_MAJOR, ROW_THREADS>(row_thread(), m);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const int column = owned<B_MAJOR, COLUMN_THREADS>(column_thread(), n);
                if constexpr (Shape::TOTALS) {
                    target[row * PITCH + column] = total[m][n];
                } else {
                    target[row * PITCH + column] = sum[m][n];
                }
            }
        }
    }

    // Writes the sums of A's rows, `limit` of which exist.
    __device__ __forceinline__ void store_row_sums(float* target, int limit) const {
#pragma unroll
        for (int m = 0; m < (ROW_SUMS ? M : 0); ++m) {
            const int row = owned<A_MAJOR, ROW_THREADS>(row_thread(), m);
            if (column_thread() == 0 && row < limit) {
                target[row] = row_sum[m];
            }
        }
    }
};
