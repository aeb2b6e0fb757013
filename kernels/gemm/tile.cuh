// Tiles of a matrix product D[rows x columns] = sum over depth of A[rows x depth] * B[columns x depth], and how an operand's
// tile lies in shared memory.
//
// An operand is cut into 16-byte chunks along the dimension that is contiguous in global memory. A line is a run of chunks:
// one row (column) of a depth-major operand, one depth of an outer-major one. Chunks of a line are permuted by an exclusive
// or with the line's number, so that eight neighbouring lines at one logical chunk touch all 32 banks once: that is the
// access of one ldmatrix phase and of a quarter warp's 16-byte loads.
#pragma once

#include "device/device.cuh"

// The dimension along which an operand is contiguous: depth, or its rows (A) or columns (B).
enum class Major { depth, outer };

// The block tile, its warps and its pipeline. TOTALS: a second set of accumulators lets one block add several segments of
// the depth in the order in which a split launch adds them (see mainloop.cuh).
template <class Element, int TILE_ROWS, int TILE_COLUMNS, int TILE_DEPTH, int ROW_WARPS, int COLUMN_WARPS, int PIPELINE,
          bool SEGMENT_TOTALS>
struct TileShape {
    using T = Element;
    static constexpr int ROWS = TILE_ROWS;
    static constexpr int COLUMNS = TILE_COLUMNS;
    static constexpr int DEPTH = TILE_DEPTH;
    static constexpr int WARPS_ALONG_ROWS = ROW_WARPS;
    static constexpr int WARPS_ALONG_COLUMNS = COLUMN_WARPS;
    static constexpr int STAGES = PIPELINE;
    static constexpr bool TOTALS = SEGMENT_TOTALS;
    static constexpr int THREADS = ROW_WARPS * COLUMN_WARPS * 32;
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int STAGE_BYTES = (ROWS + COLUMNS) * DEPTH * int(sizeof(T));
};

template <class T, int OUTER, int DEPTH, Major MAJOR> struct OperandTile {
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int LINES = MAJOR == Major::depth ? OUTER : DEPTH;
    static constexpr int CHUNKS = (MAJOR == Major::depth ? DEPTH : OUTER) / CHUNK;
    static constexpr int BYTES = LINES * CHUNKS * 16;
    static_assert(CHUNKS == 4 || CHUNKS == 8 || CHUNKS % 16 == 0, "the permutation is made for these lengths");

    // Byte offset of a chunk. Lines shorter than 128 bytes share a pass over the banks, so their number is divided first.
    __device__ __forceinline__ static int offset(int line, int chunk) {
        constexpr int LINES_A_PASS = CHUNKS < 8 ? 8 / CHUNKS : 1;
        constexpr int MASK = CHUNKS < 8 ? CHUNKS - 1 : 7;
        return (line * CHUNKS + (chunk ^ ((line / LINES_A_PASS) & MASK))) * 16;
    }
};

// The chunks of an operand tile that one thread brings in: the same chunk of COUNT lines.
template <class Operand, int THREADS> struct ThreadChunks {
    static constexpr int STEP = THREADS / Operand::CHUNKS;
    static constexpr int COUNT = Operand::LINES / STEP;
    static_assert(STEP * Operand::CHUNKS == THREADS && COUNT * STEP == Operand::LINES, "threads cover the tile evenly");

    __device__ __forceinline__ static int line(int i) { return int(threadIdx.x) / Operand::CHUNKS + i * STEP; }
    __device__ __forceinline__ static int chunk() { return int(threadIdx.x) % Operand::CHUNKS; }
    __device__ __forceinline__ static int offset(int i) { return Operand::offset(line(i), chunk()); }
};

// Fills one chunk of shared memory from a cursor over elements. VECTOR: the chunk's elements are neighbours in memory, all
// present or all absent, and one asynchronous copy brings them. Otherwise each element is looked up and absent ones are
// zeros: this is where channel counts are padded, in shared memory only.
template <bool VECTOR, class T, class Cursor>
__device__ __forceinline__ void fill_chunk(unsigned char* target, const T* base, Cursor cursor) {
    if constexpr (VECTOR) {
        const bool valid = cursor.valid();
        cp_async_16(target, valid ? base + cursor.offset() : base, valid);
    } else {
        constexpr int CHUNK = 16 / sizeof(T);
        Vec<T, CHUNK> elements;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            elements.v[i] = cursor.valid() ? base[cursor.offset()] : from_float<T>(0.0f);
            cursor.next();
        }
        store_vec(reinterpret_cast<T*>(target), elements);
    }
}
