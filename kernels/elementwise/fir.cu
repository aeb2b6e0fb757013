// Resampling by two with a separable filter of four taps; along each axis, with zeros outside of the image:
//   up    y[2m] = w0 x[m-1] + w2 x[m],  y[2m+1] = w1 x[m] + w3 x[m+1]
//   down  y[m] = w0 x[2m-1] + w1 x[2m] + w2 x[2m+1] + w3 x[2m+2]
// Each is the other's gradient, with the weights reversed.
//
// Shapes: small [N, H, W, C], large [N, 2H, 2W, C]. Layout: dense NHWC. Shared memory: none.
// Grid: x strides over the vectors of a small image, y over the images.
// Limit: bytes. Floor: 5 times the small tensor; neighbours meet in the caches (9 reads a small pixel up, 16 down).

#include "device/device.cuh"

struct FirArgs {
    const void* x;
    void* y;
    uint32_t images;
    uint32_t vectors;   // of one small image
    FastDivide columns; // vectors of a pixel
    FastDivide width;   // of the small image
    uint32_t height;
    float weights[4];
    uint32_t padding;
};

namespace {

// Where a thread's small pixel lies.
struct Place {
    uint32_t h, w, column;

    __device__ Place(const FirArgs& args, uint32_t vector) {
        h = args.width.quotient(args.columns.quotient(vector, column), w);
    }
};

// The value of a pixel of an image of height x width; zero outside. Coordinates of -1 wrap around to large ones.
template <class T, int V>
__device__ __forceinline__ void load_pixel(const T* image, uint32_t h, uint32_t w, uint32_t height, uint32_t width,
                                           uint32_t columns, uint32_t column, float (&v)[V]) {
    if (h < height && w < width) {
        load_floats<V>(image + ((uint64_t(h) * width + w) * columns + column) * V, v);
    } else {
#pragma unroll
        for (int k = 0; k < V; ++k) {
            v[k] = 0.0f;
        }
    }
}

template <int V> __device__ __forceinline__ void accumulate(float weight, const float (&x)[V], float (&sum)[V]) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
        sum[k] = fmaf(weight, x[k], sum[k]);
    }
}

template <class T, int V> __device__ void fir_down(const FirArgs& args) {
    const uint32_t columns = args.columns.divisor, height = 2 * args.height, width = 2 * args.width.divisor;
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const uint64_t base = uint64_t(image) * args.vectors * V;
        const T* __restrict__ x = static_cast<const T*>(args.x) + 4 * base;
        T* __restrict__ y = static_cast<T*>(args.y) + base;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
            const Place at(args, i);
            float sum[V] = {};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                float row[V] = {};
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    float v[V];
                    load_pixel<T, V>(x, 2 * at.h + r - 1, 2 * at.w + s - 1, height, width, columns, at.column, v);
                    accumulate<V>(args.weights[s], v, row);
                }
                accumulate<V>(args.weights[r], row, sum);
            }
            store_floats<V>(y + uint64_t(i) * V, sum);
        }
    }
}

template <class T, int V> __device__ void fir_up(const FirArgs& args) {
    const uint32_t columns = args.columns.divisor, width = args.width.divisor;
    const uint64_t pixel = uint64_t(columns) * V, row = 2 * width * pixel;
    const float* w = args.weights;
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const uint64_t base = uint64_t(image) * args.vectors * V;
        const T* __restrict__ x = static_cast<const T*>(args.x) + base;
        T* __restrict__ y = static_cast<T*>(args.y) + 4 * base;
        for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < args.vectors; i += gridDim.x * blockDim.x) {
            const Place at(args, i);
            float out[2][2][V] = {};
#pragma unroll
            for (int r = 0; r < 3; ++r) {
                float left[V] = {}, right[V] = {}, v[V];
                load_pixel<T, V>(x, at.h + r - 1, at.w - 1, args.height, width, columns, at.column, v);
                accumulate<V>(w[0], v, left);
                load_pixel<T, V>(x, at.h + r - 1, at.w, args.height, width, columns, at.column, v);
                accumulate<V>(w[2], v, left);
                accumulate<V>(w[1], v, right);
                load_pixel<T, V>(x, at.h + r - 1, at.w + 1, args.height, width, columns, at.column, v);
                accumulate<V>(w[3], v, right);
                if (r < 2) {
                    accumulate<V>(w[2 * r], left, out[0][0]);
                    accumulate<V>(w[2 * r], right, out[0][1]);
                }
                if (r > 0) {
                    accumulate<V>(w[2 * r - 1], left, out[1][0]);
                    accumulate<V>(w[2 * r - 1], right, out[1][1]);
                }
            }
            T* to = y + ((uint64_t(at.h) * 4 * width + 2 * at.w) * columns + at.column) * V;
            store_floats<V>(to, out[0][0]);
            store_floats<V>(to + pixel, out[0][1]);
            store_floats<V>(to + row, out[1][0]);
            store_floats<V>(to + row + pixel, out[1][1]);
        }
    }
}

} // namespace

KERNEL(fir_up_f32, FirArgs, 256, 2) { fir_up<float, 4>(args); }
KERNEL(fir_up_bf16, FirArgs, 256, 2) { fir_up<bf16, 8>(args); }
KERNEL(fir_up_scalar_f32, FirArgs, 256) { fir_up<float, 1>(args); }
KERNEL(fir_up_scalar_bf16, FirArgs, 256) { fir_up<bf16, 1>(args); }
KERNEL(fir_down_f32, FirArgs, 256, 2) { fir_down<float, 4>(args); }
KERNEL(fir_down_bf16, FirArgs, 256, 2) { fir_down<bf16, 8>(args); }
KERNEL(fir_down_scalar_f32, FirArgs, 256) { fir_down<float, 1>(args); }
KERNEL(fir_down_scalar_bf16, FirArgs, 256) { fir_down<bf16, 1>(args); }
