// Dropout (Srivastava et al. 2014): y = 0 where u < p, else x / (1 - p), u in [0, 1) drawn per element from (seed, layer,
// example, element within the example), so that a mask never depends on the batch and is drawn again for the gradient.
//
// Shapes: x, y [N, S] (S elements of one example), example [N], key [2]. Layout: dense. Shared memory: none.
// Grid: x strides over blocks of four elements, the unit of the generator, y over the images.
// Limit: bytes in f32, about even with the integer multiplications of Philox (20 per four elements) in bf16.
// Floor: one read and one write of x.

#include "device/device.cuh"

struct DropoutArgs {
    const void* x;
    const uint32_t* example;
    const uint32_t* key;
    void* y;
    uint32_t images;
    uint32_t elements; // of one example
    uint32_t layer;
    float p;
    float scale; // 1 / (1 - p)
    uint32_t padding;
};

namespace {

// V = 4: whole blocks with one access; V = 1: the last block of an example may be short and the others unaligned.
template <class T, int V> __device__ void dropout(const DropoutArgs& args) {
    const Key key{{args.key[0], args.key[1]}};
    const uint32_t blocks = (args.elements + 3) / 4;
    for (uint32_t image = blockIdx.y; image < args.images; image += gridDim.y) {
        const uint32_t example = args.example[image];
        const T* __restrict__ x = static_cast<const T*>(args.x) + uint64_t(image) * args.elements;
        T* __restrict__ y = static_cast<T*>(args.y) + uint64_t(image) * args.elements;
        for (uint32_t block = blockIdx.x * blockDim.x + threadIdx.x; block < blocks; block += gridDim.x * blockDim.x) {
            const Words words = random_words(key, stream::dropout + args.layer, example, 0, block);
#pragma unroll
            for (int part = 0; part < 4; part += V) {
                const uint32_t at = block * 4 + part;
                if (V == 1 && at >= args.elements) {
                    break;
                }
                float v[V];
                load_floats<V>(x + at, v);
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    v[i] = unit(words.w[part + i]) < args.p ? 0.0f : v[i] * args.scale;
                }
                store_floats<V>(y + at, v);
            }
        }
    }
}

} // namespace

KERNEL(dropout_f32, DropoutArgs, 256) { dropout<float, 4>(args); }
KERNEL(dropout_bf16, DropoutArgs, 256) { dropout<bf16, 4>(args); }
KERNEL(dropout_scalar_f32, DropoutArgs, 256) { dropout<float, 1>(args); }
KERNEL(dropout_scalar_bf16, DropoutArgs, 256) { dropout<bf16, 1>(args); }
