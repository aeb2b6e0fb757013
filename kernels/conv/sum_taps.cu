// The filter of a 3x3 convolution behind a nearest-neighbour upsampling by two, on the small image: each of the four
// output parities (a, b) reads 2x2 small pixels, some of them under several taps of the 3x3 filter. For one axis
//
//   a = 0:  pixel h - 1 under tap 0, pixel h     under taps 1 and 2
//   a = 1:  pixel h     under taps 0 and 1, pixel h + 1 under tap 2
//
//   out[k, (2 a + b) * 4 + 2 i + j, c] = sum over the rows r of (a, i) and the columns s of (b, j) of w[k, r, s, c]
//
// Sums are f32 in ascending (r, s), rounded once. Shapes: w [K, 3, 3, C] f32, out [K, 16, C] bf16; C a multiple of 8.
// Layout: dense. Shared memory: none. Grid: strides over vectors of 8 channels of out. Runs once after the weights were
// written. Limit: bytes; floor: 36 read and 32 written a (k, c).

#include "device/device.cuh"

struct SumTapsArgs {
    const float* filter;
    bf16* out;
    uint32_t vectors;   // of out
    FastDivide columns; // vectors of C
};

namespace {

// The taps of one axis that fall on small pixel `index` of parity `parity`.
struct Taps {
    uint32_t first, count;

    __device__ __forceinline__ Taps(uint32_t parity, uint32_t index)
        : first(index * (1 + parity)), count(index == parity ? 1 : 2) {}
};

} // namespace

KERNEL(conv_sum_taps_bf16, SumTapsArgs, 256) {
    constexpr int V = 8;
    const uint32_t channels = args.columns.divisor * V;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
        uint32_t column;
        const uint32_t row = args.columns.quotient(i, column);
        const uint32_t k = row / 16, phase = row % 16 / 4, tap = row % 4;
        const Taps down(phase / 2, tap / 2), right(phase % 2, tap % 2);
        float sum[V] = {};
        for (uint32_t r = down.first; r < down.first + down.count; ++r) {
            for (uint32_t s = right.first; s < right.first + right.count; ++s) {
                float w[V];
                load_floats<V>(args.filter + (uint64_t(k) * 9 + r * 3 + s) * channels + column * V, w);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    sum[v] += w[v];
                }
            }
        }
        store_floats<V>(args.out + uint64_t(i) * V, sum);
    }
}
