// Forward noising: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (2006.11239, eq. 4), with t and eps drawn
// here.
//
// Shapes: x0 [N,H,W,C], t [N] and, if it is asked for, eps [N,H,W,C] in f32; x_t [N,H,W,C] in the activation type.
// Layout: dense NHWC. A thread makes four elements of one image, which is what one Philox call yields; an image has the
// same blocks in every batch. Shared memory: 4 bytes.
// Limit: arithmetic. Floor: 6 bytes an element in bf16 (8 in f32), against about 40 integer and 20 float instructions
// a normal, of which four share a Philox call.

#include "diffusion/quad.cuh"

struct NoisingArgs {
    const float* x0;
    const uint32_t* example_index;
    const uint32_t* key;
    const Vec<float, 2>* rows;  // (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t))
    void* x_t;
    float* t;
    float* eps;  // or null
    uint32_t timesteps;
    uint32_t image_elements;
    uint32_t blocks_per_image;
    uint32_t whole;
};

namespace {

template <class T>
__device__ void noising(const NoisingArgs& args) {
    const Quad quad = quad_of_thread(args.blocks_per_image, args.image_elements);
    const Key key = load_key(args.key);
    const uint32_t example = args.example_index[quad.image];
    __shared__ uint32_t drawn;
    if (threadIdx.x == 0) {
        drawn = __umulhi(random_words(key, stream::timestep, example, 0, 0).w[0], args.timesteps);
        if (quad.first == 0) args.t[quad.image] = float(drawn);
    }
    __syncthreads();
    if (quad.count == 0) return;
    const Vec<float, 2> row = args.rows[drawn];
    float x[QUAD], eps[QUAD];
    load_quad<float>(args.x0, quad, args.whole, x);
    normals4(random_words(key, stream::training_noise, example, 0, quad.index), eps);
    for (int i = 0; i < QUAD; i++) x[i] = row.v[0] * x[i] + row.v[1] * eps[i];
    store_quad<T>(args.x_t, quad, args.whole, x);
    if (args.eps) store_quad<float>(args.eps, quad, args.whole, eps);
}

}  // namespace

KERNEL(noising_f32, NoisingArgs, 128) { noising<float>(args); }
KERNEL(noising_bf16, NoisingArgs, 128) { noising<bf16>(args); }
