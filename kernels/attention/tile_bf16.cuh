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

// Starts to copy tokens first .. first + rows - 1 into a tile; tokens and columns that do not exist become zeros. Complete
// after cp_async_wait and a barrier. Rows whose length is no multiple of 16 bytes are gathered by plain loads.
template <int D>
__device__ __forceinline__ void load_tile(unsigned char* tile, uint32_t rows, const HeadMatrix<const bf16>& source,
                                          uint32_t first) {
    constexpr uint32_t CHUNKS = D / 8;
    const bool vector = source.vector_access;
    for (uint32_t i = threadIdx.x; i < rows * CHUNKS; i += blockDim.x) {
        const uint32_t row = i / CHUNKS;
        const uint32_t column = i % CHUNKS * 8;
        const uint32_t token = first + row;
        unsigned char* const target = tile + tile_offset<D>(row, i % CHUNKS);
        const bool valid = token < source.tokens && column < source.columns;
        const bf16* const from = valid ? source.row(token) + column : source.data;
        if (vector) {
            cp_async_16(target, from, valid);
            continue;
        }
        Vec<bf16, 8> chunk;
#pragma unroll
        for (uint32_t e = 0; e < 8; ++e) {
            chunk.v[e] = valid && column + e < source.columns ? from[e] : bf16{0};
        }
        store_vec(reinterpret_cast<bf16*>(target), chunk);
    }
}

// result[16 x BN] = rows[16 x D] columns[BN x D]^T for the warp's rows `row` .. `row` + 15 of its tile.
template <int D, int BN>
__device__ __forceinline__ void row_products(Fragment (&result)[BN / 8], const unsigned char* rows, uint32_t row,
                                             const unsigned char* columns) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < BN / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            result[n][e] = 0.0f;
        }
    }
#pragma unroll(D <= 128 ? D / 16 : 8)
    for (int k = 0; k < D / 16; ++k) {
        uint32_t a[4];
        ldmatrix_x4(a, rows + tile_offset<D>(row + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < BN / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4(b, columns + tile_offset<D>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
            mma_m16n8k16(result[2 * n], a, b[0], b[1]);
            mma_m16n8k16(result[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sum[16 x COLUMNS] += weights[16 x BN] values[BN x COLUMNS], where the values begin at a chunk of a tile of D columns.
// The weights are rounded to bf16.
template <int D, int BN, int COLUMNS>
__device__ __forceinline__ void add_weighted(Fragment (&sum)[COLUMNS / 8], const Fragment (&weights)[BN / 8],
                                             const unsigned char* values, uint32_t first_chunk) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < BN / 16; ++k) {
        const Fragment& left = weights[2 * k];
        const Fragment& right = weights[2 * k + 1];
        const uint32_t a[4] = {pack_bf16x2(left[0], left[1]), pack_bf16x2(left[2], left[3]),
                               pack_bf16x2(right[0], right[1]), pack_bf16x2(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; ++n) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + tile_offset<D>(16 * k + lane % 16, first_chunk + 2 * n + lane / 16));
            mma_m16n8k16(sum[2 * n], a, b[0], b[1]);
            mma_m16n8k16(sum[2 * n + 1], a, b[2], b[3]);
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
