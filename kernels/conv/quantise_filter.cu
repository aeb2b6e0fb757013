// Filters of e4m3 with a scale an output channel: q[k, i] = e4m3(w[k, i] / s[k]), s[k] = max_i |w[k, i]| / 448, so that the
// largest weight of a channel becomes the largest e4m3; 1 where all are zero.
//
// Shapes: w [K, D] f32, the rows of [K, R, S, C] whole; q [K, D] e4m3; column_scale [K] f32 = s * source_scale, what 1 in both
// operands of the convolution stands for. D is a multiple of 8. A block a row. Shared memory: a float a warp.
// Runs once for new weights. Limit: bytes. Floor: one read of w (the second comes from cache), 1 byte written an element.

#include "device/device.cuh"

struct QuantiseFilterArgs {
    const float* w;
    e4m3* q;
    float* column_scale;
    uint32_t depth;
    float source_scale;
};

KERNEL(conv_quantise_filter_e4m3, QuantiseFilterArgs, 256) {
    constexpr int V = 8;
    __shared__ float scratch[256 / 32];
    const float* w = args.w + uint64_t(blockIdx.x) * args.depth;
    e4m3* q = args.q + uint64_t(blockIdx.x) * args.depth;
    float largest = 0.0f;
    for (uint32_t i = threadIdx.x * V; i < args.depth; i += blockDim.x * V) {
        float v[V];
        load_floats<V>(w + i, v);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            largest = fmaxf(largest, fabsf(v[k]));
        }
    }
    largest = block_max<256>(largest, scratch);
    const float scale = largest > 0.0f ? largest / 448.0f : 1.0f;
    for (uint32_t i = threadIdx.x * V; i < args.depth; i += blockDim.x * V) {
        float v[V];
        load_floats<V>(w + i, v);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            v[k] /= scale;
        }
        store_floats<V>(q + i, v);
    }
    if (threadIdx.x == 0) {
        args.column_scale[blockIdx.x] = scale * args.source_scale;
    }
}
