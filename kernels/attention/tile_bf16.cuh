// bf16 tiles in shared memory and the products of one warp over them, on mma.sync m16n8k16 with f32 accumulation.
//
// A tile is `rows` x D bf16, row-major, 16-byte chunks permuted within a row so that the 8 rows of an ldmatrix fall into
// 8 different 16-byte columns of the banks. A warp owns 16 rows of every product; a lane (group = lane / 4,
// pair = 2 * (lane % 4)) holds of each 16x8 fragment the elements (group, pair), (group, pair + 1), (group + 8, pair),
// (group + 8, pair + 1). That is the layout of an A operand too, so a product's result feeds the next from registers.
#pragma once

#include "attention/problem.cuh"

using Fragment = float[4];

// Byte offset of a 16-byte chunk in a tile of D columns.
template <int D> __device__ __forceinline__ uint32_t tile_offset(uint32_t row, uint32_t chunk) {
    static_assert(D >= 32 && D % 32 == 0);
    // Rows of 64 bytes share a line of the banks by twos.
    const uint32_t key = D >= 64 ? row % 8 : row / 2 % 4;
    return row * (D * sizeof(bf16)) + (chunk ^ key) * 16;
}

// The offset `chunks` (even) chunks to the right of one that was made for an offset of 0 or 1. Few registers serve all
// steps of an unrolled loop: one for each value of chunks % 8, the rest is an immediate of the instruction.
__device__ __forceinline__ uint32_t tile_step(uint32_t offset, uint32_t chunks) {
    return (offset ^ chunks % 8 * 16) + chunks / 8 * 128;
}

// Eight neighbours of a row that may begin anywhere; zeros past the last column.
__device__ __forceinline__ Vec<bf16, 8> gather_chunk(const HeadMatrix<const bf16>& source, uint32_t token,
                                                     uint32_t column) {
    const bf16* const from = source.row(token) + column;
    Vec<bf16, 8> chunk;
#pragma unroll
    for (uint32_t e = 0; e < 8; ++e) {
        chunk.v[e] = column + e < source.columns ? from[e] : bf16{0};
    }
    return chunk;
}

// Starts to copy tokens first .. first + rows - 1 into a tile; tokens and columns that do not exist become zeros. Complete
// after cp_async_wait and a barrier. A warp copies whole rows, so that a lane's columns stay the same.
template <int D>
__device__ __forceinline__ void load_tile(unsigned char* tile, uint32_t rows, const HeadMatrix<const bf16>& source,
                                          uint32_t first) {
    constexpr uint32_t CHUNKS = D / 8;
    constexpr uint32_t LANES = CHUNKS < 32 ? CHUNKS : 32;
    const uint32_t step = blockDim.x / LANES;
#pragma unroll
    for (uint32_t chunk = threadIdx.x % LANES; chunk < CHUNKS; chunk += LANES) {
        const uint32_t column = chunk * 8;
        const bool exists = column < source.columns;
        if (source.vector_access) {
            const bf16* from = source.row(first + threadIdx.x / LANES) + column;
#pragma unroll 4
            for (uint32_t row = threadIdx.x / LANES; row < rows; row += step) {
                cp_async_16(tile + tile_offset<D>(row, chunk), from, exists && first + row < source.tokens);
                from += size_t(step) * source.pitch;
            }
        } else {
            for (uint32_t row = threadIdx.x / LANES; row < rows; row += step) {
                const bool valid = exists && first + row < source.tokens;
                store_vec(reinterpret_cast<bf16*>(tile + tile_offset<D>(row, chunk)),
                          valid ? gather_chunk(source, first + row, column) : Vec<bf16, 8>{});
            }
        }
    }
}

// result[16 x BN] = rows[16 x D] columns[BN x D]^T for the warp's rows `row` .. `row` + 15 of its tile.
template <int D, int BN>
__device__ __forceinline__ void row_products(Fragment (&result)[BN / 8], const unsigned char* rows, uint32_t row,
                                             const unsigned char* columns) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t a_offset = tile_offset<D>(row + lane % 16, lane / 16);
    const uint32_t b_offset = tile_offset<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int n = 0; n < BN / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            result[n][e] = 0.0f;
        }
    }
#pragma unroll(D <= 128 ? D / 16 : 4)
    for (int k = 0; k < D / 16; ++k) {
        uint32_t a[4];
        ldmatrix_x4(a, rows + tile_step(a_offset, 2 * k));
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4(b, columns + 16 * n * D * sizeof(bf16) + tile_step(b_offset, 2 * k));
            mma_m16n8k16(result[2 * n], a, b[0], b[1]);
            mma_m16n8k16(result[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sum[16 x COLUMNS] += weights[16 x BN] values[BN x COLUMNS], where `values` is a tile of D columns, or its right half.
// A weight enters as the sum of two bf16. Rounded to one, it adds an error as large as rounding the result does, and twice
// that where the weights of a row crowd at the lower end of a power of two.
template <int D, int BN, int COLUMNS>
__device__ __forceinline__ void add_weighted(Fragment (&sum)[COLUMNS / 8], const Fragment (&weights)[BN / 8],
                                             const unsigned char* values) {
    const uint32_t b_offset = tile_offset<D>(threadIdx.x % 16, threadIdx.x / 16 % 2);
#pragma unroll
    for (int k = 0; k < BN / 16; ++k) {
        uint32_t high[4];
        uint32_t low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float even = weights[2 * k + i / 2][i % 2 * 2];
            const float odd = weights[2 * k + i / 2][i % 2 * 2 + 1];
            high[i] = pack_bf16x2(even, odd);
            low[i] = pack_bf16x2(even - bf16_low(high[i]), odd - bf16_high(high[i]));
        }
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + 16 * k * D * sizeof(bf16) + tile_step(b_offset, 2 * n));
            mma_m16n8k16(sum[2 * n], low, b[0], b[1]);
            mma_m16n8k16(sum[2 * n + 1], low, b[2], b[3]);
            mma_m16n8k16(sum[2 * n], high, b[0], b[1]);
            mma_m16n8k16(sum[2 * n + 1], high, b[2], b[3]);
        }
    }
}

// Sum and maximum over the four lanes that hold one row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// Writes the warp's 16 rows, `first` the token of its first, through its own rows of a tile that nothing else reads any
// more: fragments hold 4 bytes of a row, memory wants 16. `factor`: of the lane's two rows.
template <int D, int COLUMNS>
__device__ __forceinline__ void store_rows(const HeadMatrix<bf16>& target, uint32_t first, unsigned char* tile,
                                           uint32_t row, const Fragment (&values)[COLUMNS / 8],
                                           const float (&factor)[2]) {
    const uint32_t lane = threadIdx.x % 32;
    const bool vector = target.vector_access;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t pair = pack_bf16x2(values[n][2 * half] * factor[half], values[n][2 * half + 1] * factor[half]);
            unsigned char* const to = tile + tile_offset<D>(row + lane / 4 + 8 * half, n) + lane % 4 * 4;
            *reinterpret_cast<uint32_t*>(to) = pair;
        }
    }
    __syncwarp();
    for (uint32_t i = lane; i < 16 * (COLUMNS / 8); i += 32) {
        const uint32_t token = first + i / (COLUMNS / 8);
        const uint32_t column = i % (COLUMNS / 8) * 8;
        if (token >= target.tokens || column >= target.columns) {
            continue;
        }
        const unsigned char* const from = tile + tile_offset<D>(row + i / (COLUMNS / 8), column / 8);
        const Vec<bf16, 8> chunk = load_vec<8>(reinterpret_cast<const bf16*>(from));
        bf16* const to = target.row(token) + column;
        if (vector) {
            store_vec(to, chunk);
            continue;
        }
#pragma unroll
        for (uint32_t e = 0; e < 8; ++e) {
            if (column + e < target.columns) {
                to[e] = chunk.v[e];
            }
        }
    }
}
