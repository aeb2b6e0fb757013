// The largest magnitude of a tensor: y = max |x|, NaN if any x is.
//
// Shapes: x any, `count` elements; y [1] f32; partials [blocks] in scratch. Layout: dense. Two launches: abs_max a maximum a
// block, abs_max_finish their maximum, one block. Shared memory: a word a warp. Limit: bytes. Floor: one read of x.
//
// Magnitudes are compared as the integers of their bits: the order is the same, and NaN is above infinity.

#include "device/device.cuh"

struct AbsMaxArgs {
    const void* x;
    float* y;
    uint32_t* partials;
    uint64_t count;
    uint32_t blocks;
    uint32_t padding;
};

namespace {

__device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

template <class T> __device__ void abs_max(const AbsMaxArgs& args) {
    constexpr int V = 16 / sizeof(T);
    __shared__ uint32_t scratch[256 / 32];
    const T* __restrict__ x = static_cast<const T*>(args.x);
    const uint64_t first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x, vectors = args.count / V;
    uint32_t largest = 0;
    for (uint64_t i = first; i < vectors; i += uint64_t(gridDim.x) * blockDim.x) {
        float v[V];
        load_floats<V>(x + i * V, v);
#pragma unroll
        for (int k = 0; k < V; ++k) {
            largest = max(largest, magnitude(v[k]));
        }
    }
    if (vectors * V + first < args.count) {
        largest = max(largest, magnitude(to_float(x[vectors * V + first])));
    }
    largest = block_reduce<256>(largest, scratch, MaxValues{});
    if (threadIdx.x == 0) {
        args.partials[blockIdx.x] = largest;
    }
}

} // namespace

KERNEL(abs_max_f32, AbsMaxArgs, 256) { abs_max<float>(args); }
KERNEL(abs_max_bf16, AbsMaxArgs, 256) { abs_max<bf16>(args); }

KERNEL(abs_max_finish_f32, AbsMaxArgs, 256) {
    __shared__ uint32_t scratch[256 / 32];
    uint32_t largest = 0;
    for (uint32_t i = threadIdx.x; i < args.blocks; i += blockDim.x) {
        largest = max(largest, args.partials[i]);
    }
    largest = block_reduce<256>(largest, scratch, MaxValues{});
    if (threadIdx.x == 0) {
        *args.y = __uint_as_float(largest);
    }
}
