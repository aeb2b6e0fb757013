// Numbers that a sampling step needs of whole images, in f64:
//   guidance_factors  rescale std(conditional) / std(guided) + 1 - rescale, of the prediction (2305.08891, section 3.4)
//   corrector_norms   |z| and |prediction|, from which a Langevin corrector takes its step (2011.13456, algorithm 4)
//
// Shapes: model as in sampler.cu; out [N] or [N, 2] in f64. Shared memory: the partial sums of a block.
// Grid: a block an image, so that the sums do not depend on the batch. The order of additions is fixed.
// Limit: latency; an image is read once or twice by one block. Floor: the model's output, and a quarter of a Philox call an
// element for the norms, only in the steps that use them.

#include "diffusion/step_row.cuh"

struct ImageSumsArgs {
    const uint32_t* step;
    const uint32_t* sample_index;
    const uint32_t* key;
    const float* z;  // or null: drawn here, as the step draws it
    const StepRow* rows;
    double* out;
    ModelOutput model;
    double rescale;
    ImageLayout layout;
    uint32_t steps;
    uint32_t unused;
};

namespace {

constexpr int SUMS_THREADS = 512;

// Calls f for every quad of the block's image.
template <class F> __device__ void for_quads(const ImageLayout& layout, F f) {
    for (uint32_t i = threadIdx.x; i * QUAD < layout.elements; i += SUMS_THREADS) {
        f(quad_at(blockIdx.x, i, layout.elements));
    }
}

// Sums of deviations from the means, which a first pass makes: predictions of one sign would cancel otherwise.
template <class T> __device__ void guidance_factors(const ImageSumsArgs& args) {
    __shared__ double scratch[SUMS_THREADS / 32];
    const uint32_t elements = args.layout.elements;
    double means[2] = {}, variances[2] = {};
    for (int pass = 0; pass < 2; pass++) {
        double sums[2] = {};
        for_quads(args.layout, [&](const Quad& quad) {
            const Quad other = quad_at(quad.image + args.layout.images, quad.index, elements);
            float conditional[QUAD], unconditional[QUAD];
            load_prediction<T>(args.model, args.layout, quad, conditional);
            load_prediction<T>(args.model, args.layout, other, unconditional);
#pragma unroll
            for (int i = 0; i < QUAD; i++) {
                if (uint32_t(i) >= quad.count) continue;
                const double both[2] = {conditional[i], guided(args.model, conditional[i], unconditional[i])};
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const double deviation = both[k] - means[k];
                    sums[k] += pass == 0 ? both[k] : deviation * deviation;
                }
            }
        });
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const double mean = block_sum<SUMS_THREADS>(sums[k], scratch) / elements;
            if (pass == 0) {
                means[k] = mean;
            } else {
                variances[k] = mean;
            }
        }
    }
    if (threadIdx.x == 0) {
        const double ratio = variances[1] == 0.0 ? 1.0 : sqrt(variances[0] / variances[1]);
        args.out[blockIdx.x] = args.rescale * ratio + (1.0 - args.rescale);
    }
}

template <class T> __device__ void corrector_norms(const ImageSumsArgs& args) {
    __shared__ double scratch[SUMS_THREADS / 32];
    const uint32_t step = *args.step;
    if (step >= args.steps || args.rows[step].snr == 0.0) return;
    double of_noise = 0.0, of_model = 0.0;
    for_quads(args.layout, [&](const Quad& quad) {
        double model[QUAD];
        float z[QUAD];
        load_model<T>(args.model, args.layout, quad, model);
        if (args.z) {
            load_quad<float>(args.z, quad, args.layout.whole, z);
        } else {
            const uint32_t sample = args.sample_index[quad.image];
            normals4(random_words(load_key(args.key), stream::sampler_noise, sample, step, quad.index), z);
        }
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            if (uint32_t(i) >= quad.count) continue;
            of_noise += double(z[i]) * z[i];
            of_model += model[i] * model[i];
        }
    });
    of_noise = block_sum<SUMS_THREADS>(of_noise, scratch);
    of_model = block_sum<SUMS_THREADS>(of_model, scratch);
    if (threadIdx.x == 0) {
        args.out[2 * blockIdx.x] = sqrt(of_noise);
        args.out[2 * blockIdx.x + 1] = sqrt(of_model);
    }
}

}  // namespace

KERNEL(guidance_factors_f32, ImageSumsArgs, 512) { guidance_factors<float>(args); }
KERNEL(guidance_factors_bf16, ImageSumsArgs, 512) { guidance_factors<bf16>(args); }
KERNEL(corrector_norms_f32, ImageSumsArgs, 512) { corrector_norms<float>(args); }
KERNEL(corrector_norms_bf16, ImageSumsArgs, 512) { corrector_norms<bf16>(args); }
