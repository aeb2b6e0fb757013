// The operands of the forward pass and of the data gradient as tiles: rows are output pixels of a phase, depth is
// (tap y, tap x, source channel), columns are output channels. The patches of the source image are never written to memory:
// a loader finds each 16-byte chunk's pixel, and padding and ragged edges become zeros in shared memory.
#pragma once

#include "conv/geometry.cuh"

// A: the source pixels under the taps, depth-major.
template <class Shape, bool BACKWARD, bool VECTOR> class SourceRows {
    using T = typename Shape::T;
    using Chunks = ThreadChunks<OperandTile<T, Shape::ROWS, Shape::DEPTH, Major::depth>, Shape::THREADS>;

    // Tap 0's pixel of one output pixel.
    struct Row {
        int image, y, x;
    };

    struct Cursor {
        const SourceRows& loader;
        const Row row;
        Tap tap;

        __device__ __forceinline__ int y() const { return BACKWARD ? row.y - tap.y : row.y + tap.y; }
        __device__ __forceinline__ int x() const { return BACKWARD ? row.x - tap.x : row.x + tap.x; }
        __device__ __forceinline__ bool valid() const {
            return unsigned(y()) < unsigned(loader.height) && unsigned(x()) < unsigned(loader.width) &&
                   tap.y < loader.taps_y;
        }
        __device__ __forceinline__ int64_t offset() const {
            return int64_t((row.image * loader.height + y()) * loader.width + x()) * loader.channels + tap.channel;
        }
        __device__ __forceinline__ void next() { tap.advance(1, loader.channels, loader.taps_x); }
    };

    const T* source;
    int height, width, channels, taps_y, taps_x;
    Row rows[Chunks::COUNT];
    Tap tap;

public:
    __device__ __forceinline__ SourceRows(const ConvArgs& args, const PhaseAxis& vertical, const PhaseAxis& horizontal,
                                          int first_row, int first_depth)
        : source(static_cast<const T*>(args.source)), height(args.source_h), width(args.source_w),
          channels(args.source_channels), taps_y(vertical.taps), taps_x(horizontal.taps),
          tap(Tap::at(first_depth + Chunks::chunk() * Shape::CHUNK, args.source_channels, horizontal.taps)) {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            const int row = first_row + Chunks::line(i);
            const int q = row % horizontal.outputs, np = row / horizontal.outputs;
            const int p = np % vertical.outputs, image = np / vertical.outputs;
            // A row past the end lies outside every image.
            const int y = image < args.images ? p * vertical.advance + vertical.origin : -(1 << 30);
            rows[i] = Row{image, y, q * horizontal.advance + horizontal.origin};
        }
    }

    __device__ __forceinline__ void fill(unsigned char* tile) const {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            fill_chunk<VECTOR>(tile + Chunks::offset(i), source, Cursor{*this, rows[i], tap});
        }
    }

    __device__ __forceinline__ void advance() { tap.advance(Shape::DEPTH, channels, taps_x); }
};

// B of the forward pass: the filter [K][(r, s, c)] as it lies in memory, depth-major.
template <class Shape, bool VECTOR> class FilterRows {
    using T = typename Shape::T;
    using Chunks = ThreadChunks<OperandTile<T, Shape::COLUMNS, Shape::DEPTH, Major::depth>, Shape::THREADS>;

    struct Cursor {
        int column, columns, depth, depths;

        __device__ __forceinline__ bool valid() const { return column < columns && depth < depths; }
        __device__ __forceinline__ int64_t offset() const { return int64_t(column) * depths + depth; }
        __device__ __forceinline__ void next() { ++depth; }
    };

    const T* filter;
    int first_column, columns, depth, depths;

public:
    __device__ __forceinline__ FilterRows(const ConvArgs& args, const PhaseAxis&, const PhaseAxis&, int first_column,
                                          int first_depth)
        : filter(static_cast<const T*>(args.filter)), first_column(first_column), columns(args.epilogue.columns),
          depth(first_depth + Chunks::chunk() * Shape::CHUNK),
          depths(args.kernel_h * args.kernel_w * args.source_channels) {}

    __device__ __forceinline__ void fill(unsigned char* tile) const {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            const Cursor cursor{first_column + Chunks::line(i), columns, depth, depths};
            fill_chunk<VECTOR>(tile + Chunks::offset(i), filter, cursor);
        }
    }

    __device__ __forceinline__ void advance() { depth += Shape::DEPTH; }
};

// B of the data gradient: column c of the filter [K][R][S][C] at depth (tap y, tap x, k), outer-major.
template <class Shape, bool VECTOR> class FilterColumns {
    using T = typename Shape::T;
    using Chunks = ThreadChunks<OperandTile<T, Shape::COLUMNS, Shape::DEPTH, Major::outer>, Shape::THREADS>;

    struct Cursor {
        bool tap_exists;
        int64_t line;
        int column, columns;

        __device__ __forceinline__ bool valid() const { return tap_exists && column < columns; }
        __device__ __forceinline__ int64_t offset() const { return line + column; }
        __device__ __forceinline__ void next() { ++column; }
    };

    const T* filter;
    int kernel_h, kernel_w, stride, first_y, first_x, taps_y, taps_x;
    int source_channels, column, columns;
    Tap taps[Chunks::COUNT];

public:
    __device__ __forceinline__ FilterColumns(const ConvArgs& args, const PhaseAxis& vertical, const PhaseAxis& horizontal,
                                             int first_column, int first_depth)
        : filter(static_cast<const T*>(args.filter)), kernel_h(args.kernel_h), kernel_w(args.kernel_w),
          stride(args.stride), first_y(vertical.first_tap), first_x(horizontal.first_tap), taps_y(vertical.taps),
          taps_x(horizontal.taps), source_channels(args.source_channels),
          column(first_column + Chunks::chunk() * Shape::CHUNK), columns(args.epilogue.columns) {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            taps[i] = Tap::at(first_depth + Chunks::line(i), source_channels, taps_x);
        }
    }

    __device__ __forceinline__ void fill(unsigned char* tile) const {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            const Tap& tap = taps[i];
            const int r = first_y + tap.y * stride, s = first_x + tap.x * stride;
            const int64_t line = int64_t((tap.channel * kernel_h + r) * kernel_w + s) * columns;
            fill_chunk<VECTOR>(tile + Chunks::offset(i), filter, Cursor{tap.y < taps_y, line, column, columns});
        }
    }

    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < Chunks::COUNT; ++i) {
            taps[i].advance(Shape::DEPTH, source_channels, taps_x);
        }
    }
};
