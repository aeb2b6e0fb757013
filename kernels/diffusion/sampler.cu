// The sampling step of every sampler, and the step counter:
//     x_0        = clip(c_x0x x_t + c_x0m model)
//     x_next     = a x_t + b x_0 + e model + p x0_prev [+ q x0_prev2 + r saved] + std z + (g + g_variance std^2) gradient
//     saved_next = keep_x x_t + keep_x0 x_0 + keep_x0_prev x0_prev + keep_x0_prev2 x0_prev2 + keep_saved saved
// with guidance, a classifier's gradient where there is one, a learned variance, the noise and all results in one pass
// (src/diffusion/step_table.rs), x_next also as the bytes of a picture where they are asked for (src/levels.rs). The terms
// in brackets and saved_next are those of sampler_history, which a table with more states than x and x0_prev gets; a null
// state is not there.
//
// Shapes: x, x0_prev, x0_prev2, saved, z, x_next, x0 [N,H,W,C] in f32, picture in bytes, model [N or 2N,H,W,C or 2C] in
// the activation type, step [1]. Results may lie on the states: a thread reads its four elements before it writes them.
// Layout: dense NHWC. Shared memory: none.
// Limit: bytes. Floor: 16 bytes an element (12 where p is 0), 8 more for each further state, one more for the picture, and
// the model's, against about 10 f64 operations (10 more with history, 30 more for a learned variance) and, in steps with
// noise, a quarter of a Philox call.

#include "diffusion/picture.cuh"
#include "diffusion/step_row.cuh"
#include "diffusion/variance.cuh"

enum class Clip : uint32_t { none, range, dynamic };

struct SamplerStepArgs {
    const float* x;
    const float* x0_prev;
    const uint32_t* step;
    const uint32_t* sample_index;
    const uint32_t* key;
    const float* z;  // or null: drawn here
    const StepRow* rows;
    const double* scales;  // divisors of dynamic thresholding, [N]
    float* x_next;
    float* x0;
    uint8_t* picture;  // of x_next, or null
    const void* gradient;  // of a classifier, in the activation type, or null
    const double* norms;  // of z and of the prediction, [N, 2], or null where no step is a corrector
    ModelOutput model;
    double range;  // of the clip
    double gradient_scale;
    ImageLayout layout;
    uint32_t steps;
    uint32_t blocks_per_image;
    Clip clip;
    Variance variance;
    Levels levels;  // of the picture
    uint32_t batch_norms;  // correctors take the mean of the images' norms
};

// States that only some samplers have; null where a sampler has not.
struct History {
    const float* x0_prev2;
    const float* saved;
    float* x0_prev2_next;
    float* saved_next;
};

struct SamplerHistoryArgs {
    SamplerStepArgs step;
    History history;
};

struct StepTimestepArgs {
    const uint32_t* step;
    const StepRow* rows;
    float* t;
    uint32_t steps;
    uint32_t batch;
};

struct AdvanceArgs {
    const uint32_t* step;
    uint32_t* next;
};

namespace {

// A NaN stays one.
__device__ double clamped(double x, double limit) { return x < -limit ? -limit : x > limit ? limit : x; }

__device__ double clipped(Clip clip, double x0, double range, double scale) {
    if (clip == Clip::none) return x0;
    return clip == Clip::range ? clamped(x0, range) : clamped(x0, scale) / scale;
}

__device__ double noise_std(const StepRow& row, Variance variance, double v) {
    if (variance == Variance::fixed) return row.s;
    if (variance == Variance::direct) return sqrt(v);
    return exp(0.5 * interpolate_log_variance(v, row.log_min, row.log_max));
}

// The step of a corrector, tau = 2 (snr |z| / |model|)^2: tau model + sqrt(2 tau) z (src/diffusion/score_sde.rs).
__device__ void correct(const SamplerStepArgs& args, uint64_t image, StepRow& row) {
    double z = args.norms[2 * image], model = args.norms[2 * image + 1];
    if (args.batch_norms) {
        z = model = 0.0;
        for (uint32_t n = 0; n < args.layout.images; n++) {
            z += args.norms[2 * n];
            model += args.norms[2 * n + 1];
        }
    }
    const double ratio = row.snr * z / model;
    row.e = 2.0 * ratio * ratio;
    row.s = sqrt(2.0 * row.e);
}

// Without history the compiler drops what would read it, and the scalars that go with it.
template <class T, bool history>
__device__ void sampler_step(const SamplerStepArgs& args, const History& states) {
    const Quad quad = quad_of_thread(args.blocks_per_image, args.layout.elements);
    if (quad.count == 0) return;
    const bool whole = args.layout.whole;
    const uint32_t step = *args.step;
    float x[QUAD], x0[QUAD] = {};
    if (step >= args.steps) {
        for (int i = 0; i < QUAD; i++) x[i] = not_a_number();
        store_quad<float>(args.x_next, quad, whole, x);
        store_quad<float>(args.x0, quad, whole, x);
        if constexpr (history) {
            if (states.x0_prev2_next) store_quad<float>(states.x0_prev2_next, quad, whole, x);
            if (states.saved_next) store_quad<float>(states.saved_next, quad, whole, x);
        }
        if (args.picture) store_picture(args.picture, args.levels, quad, whole, x);
        return;
    }
    StepRow row = args.rows[step];
    if (row.snr != 0.0) correct(args, quad.image, row);
    const double scale = args.clip == Clip::dynamic ? args.scales[quad.image] : 1.0;
    double model[QUAD];
    load_quad<float>(args.x, quad, whole, x);
    load_model<T>(args.model, args.layout, quad, model);
    float x0_prev2[QUAD] = {}, saved[QUAD] = {};
    // Guarded, as the previous x_0 of a first step is not written yet.
    if constexpr (history) {
        // The second previous x_0 becomes the previous one even where no factor asks for that.
        if (states.x0_prev2_next) {
            load_quad<float>(args.x0_prev, quad, whole, x0);
            if (row.q != 0.0 || row.keep_x0_prev2 != 0.0) load_quad<float>(states.x0_prev2, quad, whole, x0_prev2);
            store_quad<float>(states.x0_prev2_next, quad, whole, x0);
        } else if (row.p != 0.0 || row.keep_x0_prev != 0.0) {
            load_quad<float>(args.x0_prev, quad, whole, x0);
        }
        if (row.r != 0.0 || row.keep_saved != 0.0) load_quad<float>(states.saved, quad, whole, saved);
    } else {
        if (row.p != 0.0) load_quad<float>(args.x0_prev, quad, whole, x0);
    }
    float z[QUAD] = {}, v[QUAD] = {}, gradient[QUAD] = {};
    if (args.gradient) load_quad<T>(args.gradient, quad, whole, gradient);
    if (row.noise != 0.0) {
        if (args.z) {
            load_quad<float>(args.z, quad, whole, z);
        } else {
            const uint32_t sample = args.sample_index[quad.image];
            normals4(random_words(load_key(args.key), stream::sampler_noise, sample, step, quad.index), z);
        }
    }
    const bool moved_by_variance = args.gradient && row.g_variance != 0.0;
    // Only the prediction is guided; the variance stays the conditional one.
    if (args.variance != Variance::fixed && (row.noise != 0.0 || moved_by_variance)) {
        const Strided places = strided(quad, args.layout.elements, args.layout.channels, args.model.channels);
        load_strided<T>(args.model.data, quad, places, args.layout.channels, v);
    }
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        const double estimate = clipped(args.clip, row.c_x0x * x[i] + row.c_x0m * model[i], args.range, scale);
        double x_next;
        if constexpr (history) {
            x_next = row.a * x[i] + row.b * estimate + row.e * model[i];
            double kept = row.keep_x * x[i] + row.keep_x0 * estimate;
            // A state that is not written yet holds anything, a NaN too.
            if (row.p != 0.0) x_next += row.p * x0[i];
            if (row.keep_x0_prev != 0.0) kept += row.keep_x0_prev * x0[i];
            x_next += row.q * x0_prev2[i] + row.r * saved[i];
            kept += row.keep_x0_prev2 * x0_prev2[i] + row.keep_saved * saved[i];
            saved[i] = float(kept);
        } else {
            x_next = row.a * x[i] + row.b * estimate + row.e * model[i] + row.p * x0[i];
        }
        if (row.noise != 0.0) x_next += noise_std(row, args.variance, v[i]) * z[i];
        if (args.gradient) {
            const double std = moved_by_variance ? noise_std(row, args.variance, v[i]) : 0.0;
            x_next += (row.g + row.g_variance * std * std) * args.gradient_scale * gradient[i];
        }
        x[i] = float(x_next);
        x0[i] = float(estimate);
    }
    store_quad<float>(args.x_next, quad, whole, x);
    store_quad<float>(args.x0, quad, whole, x0);
    if constexpr (history) {
        if (states.saved_next) store_quad<float>(states.saved_next, quad, whole, saved);
    }
    if (args.picture) store_picture(args.picture, args.levels, quad, whole, x);
}

}  // namespace

KERNEL(sampler_step_f32, SamplerStepArgs, 128) { sampler_step<float, false>(args, {}); }
KERNEL(sampler_step_bf16, SamplerStepArgs, 128) { sampler_step<bf16, false>(args, {}); }
KERNEL(sampler_history_f32, SamplerHistoryArgs, 128) { sampler_step<float, true>(args.step, args.history); }
KERNEL(sampler_history_bf16, SamplerHistoryArgs, 128) { sampler_step<bf16, true>(args.step, args.history); }

KERNEL(step_timestep, StepTimestepArgs, 128) {
    const uint32_t sample = blockIdx.x * blockDim.x + threadIdx.x;
    if (sample >= args.batch) return;
    const uint32_t step = *args.step;
    args.t[sample] = step < args.steps ? float(args.rows[step].timestep) : not_a_number();
}

KERNEL(advance, AdvanceArgs, 32) {
    if (threadIdx.x == 0) *args.next = *args.step + 1;
}
