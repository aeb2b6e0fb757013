// Resampling by two with a separable filter of four taps on a mirrored image, x[-1] = x[1], and the gradient of that, which
// adds what falls outside to the pixel that was mirrored there. Along each axis, from n pixels:
//   up    y[o] = sum over i with o + i even of w[i] x[(o + i - 2) / 2]
//   down  y[o] = sum over i of w[i] x[2 o + i - 1]
//
// Shapes: x [N, H, W, C], y twice or half as high and wide. Layout: dense NHWC. Shared memory: none.
// Grid: x strides over the elements of y. A thread an element: the blocks that need this kernel are in no published network,
// so it is short rather than fast. Limit: latency of its up to 16 reads (36 where the gradient folds both borders).

#include "device/device.cuh"

struct FirMirroredArgs {
    const void* x;
    void* y;
    uint64_t elements; // of y
    uint32_t height;   // of y
    uint32_t width;
    uint32_t channels;
    uint32_t up;
    uint32_t folds; // the gradient
    float weights[4];
    uint32_t padding;
};

namespace {

// The pixel of an axis of length `from` that tap i of pixel o meets; -1 if there is none.
__device__ __forceinline__ int met(int o, int i, int from, bool up, bool folds) {
    if (up && ((o + i) & 1) != 0) {
        return -1;
    }
    const int at = up ? (o + i - 2) / 2 : 2 * o + i - 1;
    if (at >= 0 && at < from) {
        return at;
    }
    return folds ? -1 : at < 0 ? -at : 2 * (from - 1) - at;
}

// Image k of pixel o of an axis of length `to`: itself, then the places outside that mirror it; INT32_MIN if there is none.
__device__ __forceinline__ int image_of(int o, int k, int to, bool folds) {
    if (k == 0) {
        return o;
    }
    const bool mirrored = folds && (k == 1 ? o == 1 : o == to - 2);
    return mirrored ? (k == 1 ? -1 : to) : INT32_MIN;
}

template <class T> __device__ void fir_mirrored(const FirMirroredArgs& args) {
    const bool up = args.up != 0, folds = args.folds != 0;
    const int to_h = int(args.height), to_w = int(args.width);
    const int from_h = up ? to_h / 2 : 2 * to_h, from_w = up ? to_w / 2 : 2 * to_w;
    const T* __restrict__ x = static_cast<const T*>(args.x);
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t e = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < args.elements; e += stride) {
        const uint64_t pixel = e / args.channels, row = pixel / args.width;
        const uint32_t c = uint32_t(e % args.channels);
        const int w = int(pixel % args.width), h = int(row % args.height);
        const T* image = x + row / args.height * (uint64_t(from_h) * from_w * args.channels) + c;
        float sum = 0.0f;
        for (int r = 0; r < 12; ++r) {
            const int v = image_of(h, r / 4, to_h, folds);
            const int y = v == INT32_MIN ? -1 : met(v, r % 4, from_h, up, folds);
            if (y < 0) {
                continue;
            }
            float of_row = 0.0f;
            for (int s = 0; s < 12; ++s) {
                const int u = image_of(w, s / 4, to_w, folds);
                const int z = u == INT32_MIN ? -1 : met(u, s % 4, from_w, up, folds);
                if (z >= 0) {
                    const uint64_t at = (uint64_t(y) * from_w + z) * args.channels;
                    of_row = fmaf(args.weights[s % 4], to_float(image[at]), of_row);
                }
            }
            sum = fmaf(args.weights[r % 4], of_row, sum);
        }
        static_cast<T*>(args.y)[e] = from_float<T>(sum);
    }
}

} // namespace

KERNEL(fir_mirrored_f32, FirMirroredArgs, 256) { fir_mirrored<float>(args); }
KERNEL(fir_mirrored_bf16, FirMirroredArgs, 256) { fir_mirrored<bf16>(args); }
