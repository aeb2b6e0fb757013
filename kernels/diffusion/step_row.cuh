// The scalars of a sampling step, the numbers of src/diffusion/step_table.rs, and the x_0 estimate that they make.
//
// They are f64, and so is the arithmetic: near alpha_bar = 0 the two terms of x_0 are hundreds of times larger than
// their sum, and f32 scalars would leave an error of 1e-5 to 1e-3 in an x_0 of about 1. In f64 a step adds no more than
// the rounding of its results.
#pragma once

#include "diffusion/quad.cuh"

struct StepRow {
    double timestep;
    double c_x0x;  // x_0 = c_x0x x_t + c_x0m model
    double c_x0m;
    double a;  // x_next = a x_t + b x_0 + e model + p x0_prev + std z
    double b;
    double e;
    double p;
    double s;        // std of a fixed variance
    double log_min;  // log variance at v = -1 and at v = 1
    double log_max;
    double noise;  // 0 in steps without
    double q;      // x_next also has q x0_prev2 + r saved
    double r;
    double keep_x;  // saved_next = keep_x x_t + keep_x0 x_0 + keep_x0_prev x0_prev + keep_x0_prev2 x0_prev2 + keep_saved saved
    double keep_x0;
    double keep_x0_prev;
    double keep_x0_prev2;
    double keep_saved;
    double g;  // x_next also has (g + g_variance std^2) gradient, where a classifier guides
    double g_variance;
    double snr;  // of a corrector, whose e and s follow from norms; 0 in all other steps
    double unused;
};

// The network's output and how to read it.
struct ModelOutput {
    const void* data;  // [N or 2N, H, W, channels]; the second half unconditional
    const double* factors;  // of the guided prediction, [N], or null
    double guidance;
    uint32_t guided;
    uint32_t channels;  // of the output; those of the image or twice as many
};

// What a kernel needs of an image to find its elements.
struct ImageLayout {
    uint32_t images;
    uint32_t elements;  // of one image
    uint32_t channels;
    uint32_t whole;
};

template <class T>
__device__ void load_prediction(const ModelOutput& output, const ImageLayout& layout, const Quad& quad,
                                float (&out)[QUAD]) {
    if (output.channels == layout.channels) {
        load_quad<T>(output.data, quad, layout.whole, out);
    } else {
        const Strided places = strided(quad, layout.elements, layout.channels, output.channels);
        load_strided<T>(output.data, quad, places, 0, out);
    }
}

__device__ inline double guided(const ModelOutput& output, double conditional, double unconditional) {
    return unconditional + output.guidance * (conditional - unconditional);
}

// The network's prediction after guidance: unconditional + scale (conditional - unconditional), times the image's factor.
template <class T>
__device__ void load_model(const ModelOutput& output, const ImageLayout& layout, const Quad& quad,
                           double (&out)[QUAD]) {
    float conditional[QUAD];
    load_prediction<T>(output, layout, quad, conditional);
#pragma unroll
    for (int i = 0; i < QUAD; i++) out[i] = conditional[i];
    if (!output.guided) return;
    float unconditional[QUAD];
    load_prediction<T>(output, layout, quad_at(quad.image + layout.images, quad.index, layout.elements), unconditional);
#pragma unroll
    for (int i = 0; i < QUAD; i++) out[i] = guided(output, out[i], unconditional[i]);
    if (!output.factors) return;
    const double factor = output.factors[quad.image];
#pragma unroll
    for (int i = 0; i < QUAD; i++) out[i] *= factor;
}
