// Sums over the pixels of each image: y[n, c] = sum over p of x[n, p, c], the gradient of a vector added to every pixel.
//
// Shapes: x [N, P, C], y [N, C]. Layout: dense NHWC. A block sums a slice of channels over a chunk of pixels; where an
// image has several chunks, their sums go through scratch [N, chunks, C] and are added in order.
// Shared memory: one float per thread and channel of a vector. Limit: bytes. Floor: one read of x, 1 FLOP an element.

#include "device/device.cuh"

struct SumPixelsArgs {
    const void* x;
    void* y;
    float* partials; // null where an image is one chunk
    uint32_t images;
    uint32_t pixels;
    uint32_t channels;
    uint32_t slice; // channels of a block
    uint32_t slices;
    uint32_t chunk_rows;
    uint32_t chunks;
    uint32_t padding;
};

namespace {

template <class T, int V> __device__ void sum_pixels(const SumPixelsArgs& args) {
    const uint32_t image = blockIdx.x / args.slices;
    const uint32_t channel = (blockIdx.x - image * args.slices) * args.slice;
    const uint32_t channels = min(args.slice, args.channels - channel);
    const uint32_t row = blockIdx.y * args.chunk_rows;
    const uint32_t rows = min(args.chunk_rows, args.pixels - row);
    const Columns columns(channels / V);
    const LaneSums sums(shared_memory, columns.lanes);
    const T* x = static_cast<const T*>(args.x) + (uint64_t(image) * args.pixels + row) * args.channels + channel;
    // A slice has at most as many columns as the block has threads.
    if (columns.first < columns.count) {
        float sum[V] = {};
#pragma unroll 4
        for (uint32_t r = columns.lane; r < rows; r += columns.lanes) {
            float v[V];
            load_floats<V>(x + uint64_t(r) * args.channels + columns.first * V, v);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                sum[i] += v[i];
            }
        }
        sums.store(columns.first * V, columns.lane, sum);
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x / 32; c < channels; c += blockDim.x / 32) {
        const float total = sums.total(c, columns.lanes);
        if (threadIdx.x % 32 != 0) {
            continue;
        }
        if (args.partials != nullptr) {
            args.partials[(uint64_t(image) * args.chunks + blockIdx.y) * args.channels + channel + c] = total;
        } else {
            static_cast<T*>(args.y)[uint64_t(image) * args.channels + channel + c] = from_float<T>(total);
        }
    }
}

// One thread per image and channel.
template <class T> __device__ void sum_chunks(const SumPixelsArgs& args) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.images * args.channels) {
        return;
    }
    const uint32_t image = i / args.channels;
    const float* partials = args.partials + uint64_t(image) * args.chunks * args.channels + (i - image * args.channels);
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t chunk = 0; chunk < args.chunks; ++chunk) {
        sum += partials[uint64_t(chunk) * args.channels];
    }
    static_cast<T*>(args.y)[i] = from_float<T>(sum);
}

} // namespace

KERNEL(sum_pixels_f32, SumPixelsArgs, 256) { sum_pixels<float, 4>(args); }
KERNEL(sum_pixels_bf16, SumPixelsArgs, 256) { sum_pixels<bf16, 8>(args); }
KERNEL(sum_pixels_scalar_f32, SumPixelsArgs, 256) { sum_pixels<float, 1>(args); }
KERNEL(sum_pixels_scalar_bf16, SumPixelsArgs, 256) { sum_pixels<bf16, 1>(args); }
KERNEL(sum_chunks_f32, SumPixelsArgs, 256) { sum_chunks<float>(args); }
KERNEL(sum_chunks_bf16, SumPixelsArgs, 256) { sum_chunks<bf16>(args); }
