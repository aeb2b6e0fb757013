// The 2-norm over all gradients, norm = sqrt(sum g^2), in one launch with a fixed order of additions.
//
// Shapes: the gradients of all parameters as one run of `count` f32 values (gaps hold zeros) -> [1]. Layout: dense.
// A block adds up one chunk, which depends on the length alone; whoever draws the last ticket adds up the chunks, in their
// order. Shared memory: 68 bytes.
// The sums are f64: squares of small gradients do not vanish, and the conversions hide behind the loads.
// Limit: bytes. Floor: 4 bytes and 2 FLOP a parameter.

#include "device/device.cuh"

struct GlobalNormArgs {
    const float* grads;
    double* partial;  // one a chunk
    float* norm;
    uint32_t* ticket;  // zero before and after
    uint64_t count;
    uint32_t chunks;
    uint32_t chunk_values;  // a multiple of four
};

namespace {

constexpr int THREADS = 256;
constexpr int WIDTH = 4;

}  // namespace

KERNEL(global_norm, GlobalNormArgs, THREADS) {
    __shared__ double scratch[THREADS / 32];
    __shared__ uint32_t last;
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
    const double chunk = block_sum<THREADS>((sums[0] + sums[1]) + (sums[2] + sums[3]), scratch);
    if (threadIdx.x == 0) {
        __stcg(args.partial + blockIdx.x, chunk);
        last = draw_ticket(args.ticket) == args.chunks - 1;
        if (last) {
            atomicExch(args.ticket, 0u);
        }
    }
    __syncthreads();
    if (!last) {
        return;
    }
    double sum = 0.0;
    // Written by other multiprocessors: read from L2.
    for (uint32_t i = threadIdx.x; i < args.chunks; i += THREADS) sum += __ldcg(args.partial + i);
    const double total = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) *args.norm = float(sqrt(total));
}
