// Operations that combine every pixel with something its image has once: y = x + v[image, channel], y = x / t[image].
//
// Shapes: x, y [N, P, C]; v [N, C]; t [N] f32. Layout: dense NHWC. Shared memory: none.
// Grid: x strides over the vectors of an image, y over the images, so that positions within an image stay 32-bit.
// Limit: bytes. Floor: one read and one write of x, 1 FLOP an element; v comes from the cache.

#include "device/device.cuh"

struct PerImageArgs {
    const void* x;
    const void* v;
    void* y;
    uint32_t images;
    uint32_t vectors; // of one image
    FastDivide columns; // vectors of a pixel
    uint32_t padding;
};

namespace {

template <class T, int V> struct AddVector {
    const T* row;
    FastDivide columns;

    __device__ AddVector(const PerImageArgs& args, uint32_t image)
        : row(static_cast<const T*>(args.v) + uint64_t(image) * args.columns.divisor * V), columns(args.columns) {}

    __device__ __forceinline__ void apply(uint32_t vector, float (&x)[V]) const {
        uint32_t column;
        columns.quotient(vector, column);
        float v[V];
        load_floats<V>(row + column * V, v);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[i] += v[i];
        }
    }
};

template <class T, int V> struct DivideByTime {
    float inverse;

    __device__ DivideByTime(const PerImageArgs& args, uint32_t image)
        : inverse(1.0f / static_cast<const float*>(args.v)[image]) {}

    __device__ __forceinline__ void apply(uint32_t, float (&x)[V]) const {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[i] *= inverse;
        }
    }
};

template <template <class, int> class Op, class T, int V> __device__ void per_image(const PerImageArgs& args) {
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const Op<T, V> op(args, image);
        const uint64_t base = uint64_t(image) * args.vectors * V;
        const T* __restrict__ x = static_cast<const T*>(args.x) + base;
        T* __restrict__ y = static_cast<T*>(args.y) + base;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
            float v[V];
            load_floats<V>(x + uint64_t(i) * V, v);
            op.apply(i, v);
            store_floats<V>(y + uint64_t(i) * V, v);
        }
    }
}

} // namespace

KERNEL(add_per_image_f32, PerImageArgs, 256) { per_image<AddVector, float, 4>(args); }
KERNEL(add_per_image_bf16, PerImageArgs, 256) { per_image<AddVector, bf16, 8>(args); }
KERNEL(add_per_image_scalar_f32, PerImageArgs, 256) { per_image<AddVector, float, 1>(args); }
KERNEL(add_per_image_scalar_bf16, PerImageArgs, 256) { per_image<AddVector, bf16, 1>(args); }
KERNEL(divide_by_time_f32, PerImageArgs, 256) { per_image<DivideByTime, float, 4>(args); }
KERNEL(divide_by_time_bf16, PerImageArgs, 256) { per_image<DivideByTime, bf16, 8>(args); }
KERNEL(divide_by_time_scalar_f32, PerImageArgs, 256) { per_image<DivideByTime, float, 1>(args); }
KERNEL(divide_by_time_scalar_bf16, PerImageArgs, 256) { per_image<DivideByTime, bf16, 1>(args); }
