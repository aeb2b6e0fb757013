// The 2-norm over all gradients, norm = sqrt(sum g^2), in two stages with a fixed order of additions.
//
// Shapes: the gradients of all parameters as one run of `count` f32 values (gaps hold zeros) -> [1]. Layout: dense.
// A block adds up one chunk, which depends on the length alone; a single block adds up the chunks. Shared memory: 64
// bytes.
// The sums are f64: squares of small gradients do not vanish, and the conversions hide behind the loads.
// Limit: bytes. Floor: 4 bytes and 2 FLOP a parameter.

#include "device/device.cuh"

struct GlobalNormArgs {
    const float* grads;
    double* partial;  // one a chunk
    float* norm;
    uint64_t count;
    uint32_t chunks;
    uint32_t chunk_values;  // a multiple of four
};

namespace {

constexpr int THREADS = 256;
constexpr int WIDTH = 4;

}  // namespace

KERNEL(global_norm_chunk, GlobalNormArgs, THREADS) {
    __shared__ double scratch[THREADS / 32];
    const uint64_t begin = uint64_t(blockIdx.x) * args.chunk_values;
    const uint64_t left = args.count - begin;
    const uint64_t end = begin + (left < args.chunk_values ? left : args.chunk_values);
    // A sum a lane: four chains of additions instead of one.
    double sums[WIDTH] = {};
#pragma unroll 4
    for (uint64_t i = begin + threadIdx.x * WIDTH; i < end; i += THREADS * WIDTH) {
        float g[WIDTH];
        load_floats<WIDTH>(args.grads + i, g);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sums[k] += double(g[k]) * g[k];
    }
    const double total = block_sum<THREADS>((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
    if (threadIdx.x == 0) args.partial[blockIdx.x] = total;
}

KERNEL(global_norm_total, GlobalNormArgs, THREADS) {
    __shared__ double scratch[THREADS / 32];
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < args.chunks; i += THREADS) sum += args.partial[i];
    const double total = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) *args.norm = float(sqrt(total));
}
