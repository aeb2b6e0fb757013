// Channels side by side: the first `split` channels of each row of y come from a, the others from b. Concatenation takes
// all of both; a slice takes a range of a and nothing of b.
//
// Shapes: a [R, Ca], b [R, Cb], y [R, C]. Layout: dense, channels last; counted in vectors. Shared memory: none.
// Limit: bytes. Floor: one read and one write of what is copied.

#include "device/device.cuh"

struct ChannelsArgs {
    const void* a; // its first channel that is copied
    const void* b;
    void* y;
    uint64_t rows;
    uint32_t a_columns; // vectors of a row of a
    uint32_t b_columns;
    uint32_t split;      // vectors of a row of y that come from a
    uint32_t tile_rows;  // rows of a block
    FastDivide columns; // vectors of a row of y
    uint32_t padding;
};

namespace {

template <class T, int V> __device__ void join_channels(const ChannelsArgs& args) {
    const uint64_t first = uint64_t(blockIdx.x) * args.tile_rows;
    const uint32_t rows = uint32_t(min(uint64_t(args.tile_rows), args.rows - first));
    const T* __restrict__ a = static_cast<const T*>(args.a) + first * args.a_columns * V;
    const T* __restrict__ b = static_cast<const T*>(args.b) + first * args.b_columns * V;
    T* __restrict__ y = static_cast<T*>(args.y) + first * args.columns.divisor * V;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < rows * args.columns.divisor; i += blockDim.x) {
        uint32_t column;
        const uint32_t row = args.columns.quotient(i, column);
        const T* from = column < args.split ? a + (row * args.a_columns + column) * V
                                            : b + (row * args.b_columns + column - args.split) * V;
        store_vec(y + i * V, load_vec<V>(from));
    }
}

} // namespace

KERNEL(join_channels_f32, ChannelsArgs, 256) { join_channels<float, 4>(args); }
KERNEL(join_channels_bf16, ChannelsArgs, 256) { join_channels<bf16, 8>(args); }
KERNEL(join_channels_scalar_f32, ChannelsArgs, 256) { join_channels<float, 1>(args); }
KERNEL(join_channels_scalar_bf16, ChannelsArgs, 256) { join_channels<bf16, 1>(args); }
