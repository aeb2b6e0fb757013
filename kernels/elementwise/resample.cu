// Resampling by two: spread, y[2h + i, 2w + j] = scale * x[h, w] (nearest-neighbour upsampling with scale 1, the gradient of
// average pooling with 1/4), and gather, y[h, w] = scale * sum of the 2x2 patch of x (their gradients).
//
// Shapes: small [N, H, W, C], large [N, 2H, 2W, C]. Layout: dense NHWC. Shared memory: none.
// Grid: x strides over the vectors of a small image, y over the images.
// Limit: bytes. Floor: 5 times the small tensor, about 1 FLOP an element.

#include "device/device.cuh"

struct ResampleArgs {
    const void* x;
    void* y;
    uint32_t images;
    uint32_t vectors;   // of one small image
    FastDivide columns; // vectors of a pixel
    FastDivide width;   // of the small image
    float scale;
    uint32_t padding;
};

namespace {

// Offset within the large image of the top left pixel of a small pixel's patch.
template <int V> __device__ __forceinline__ uint64_t patch_offset(const ResampleArgs& args, uint32_t vector) {
    uint32_t column, w;
    const uint32_t pixel = args.columns.quotient(vector, column);
    const uint32_t h = args.width.quotient(pixel, w);
    return ((uint64_t(h) * 4 * args.width.divisor + 2 * w) * args.columns.divisor + column) * V;
}

template <class T, int V> __device__ void spread(const ResampleArgs& args) {
    const uint64_t pixel = uint64_t(args.columns.divisor) * V, row = 2 * args.width.divisor * pixel;
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const uint64_t base = uint64_t(image) * args.vectors * V;
        const T* __restrict__ x = static_cast<const T*>(args.x) + base;
        T* __restrict__ y = static_cast<T*>(args.y) + 4 * base;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
            float v[V];
            load_floats<V>(x + uint64_t(i) * V, v);
#pragma unroll
            for (int k = 0; k < V; ++k) {
                v[k] *= args.scale;
            }
            T* at = y + patch_offset<V>(args, i);
            store_floats<V>(at, v);
            store_floats<V>(at + pixel, v);
            store_floats<V>(at + row, v);
            store_floats<V>(at + row + pixel, v);
        }
    }
}

template <class T, int V> __device__ void gather(const ResampleArgs& args) {
    const uint64_t pixel = uint64_t(args.columns.divisor) * V, row = 2 * args.width.divisor * pixel;
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const uint64_t base = uint64_t(image) * args.vectors * V;
        const T* __restrict__ x = static_cast<const T*>(args.x) + 4 * base;
        T* __restrict__ y = static_cast<T*>(args.y) + base;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
            const T* at = x + patch_offset<V>(args, i);
            float a[V], b[V], c[V], d[V];
            load_floats<V>(at, a);
            load_floats<V>(at + pixel, b);
            load_floats<V>(at + row, c);
            load_floats<V>(at + row + pixel, d);
#pragma unroll
            for (int k = 0; k < V; ++k) {
                a[k] = ((a[k] + b[k]) + (c[k] + d[k])) * args.scale;
            }
            store_floats<V>(y + uint64_t(i) * V, a);
        }
    }
}

} // namespace

KERNEL(spread_2x_f32, ResampleArgs, 256) { spread<float, 4>(args); }
KERNEL(spread_2x_bf16, ResampleArgs, 256) { spread<bf16, 8>(args); }
KERNEL(spread_2x_scalar_f32, ResampleArgs, 256) { spread<float, 1>(args); }
KERNEL(spread_2x_scalar_bf16, ResampleArgs, 256) { spread<bf16, 1>(args); }
KERNEL(gather_2x_f32, ResampleArgs, 256) { gather<float, 4>(args); }
KERNEL(gather_2x_bf16, ResampleArgs, 256) { gather<bf16, 8>(args); }
KERNEL(gather_2x_scalar_f32, ResampleArgs, 256) { gather<float, 1>(args); }
KERNEL(gather_2x_scalar_bf16, ResampleArgs, 256) { gather<bf16, 1>(args); }
