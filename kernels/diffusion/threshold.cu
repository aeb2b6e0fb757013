// Dynamic thresholding (2205.11487, section 2.3): S = clamp(quantile of |x_0| over one image, 1, max_value), the
// quantile by linear interpolation between two neighbouring order statistics, as src/diffusion/clip.rs has it.
//
// Shapes: x [N,H,W,C] in f32, model as in sampler.cu; scales [N] in f64. Layout: dense NHWC.
// Small images: a block an image, keys and histograms in shared memory (4 bytes an element and 16 KiB).
// Large ones: begin, then count (many blocks an image; 16 KiB of shared memory) and select (one) for each of three
// digits.
// Keys are |x_0| rounded to f32: rounding keeps the order, so S is the exact quantile up to that rounding.
// Limit: shared-memory atomics where most keys share a digit. Floor: x and the model's output once, or three times.

#include "diffusion/select.cuh"
#include "diffusion/step_row.cuh"

struct ThresholdArgs {
    const float* x;
    const uint32_t* step;
    const StepRow* rows;
    double* scales;
    uint32_t* histograms;   // [N, 2, BINS]
    Selection* selections;  // [N]
    ModelOutput model;
    double fraction;  // of the way from the lower to the upper order statistic
    double max_value;
    ImageLayout layout;
    uint32_t lower;
    uint32_t upper;
    uint32_t steps;
    uint32_t blocks_per_image;
    uint32_t pass;
    uint32_t unused;
};

namespace {

// The magnitudes of x_0 of a quad as keys. A step beyond the table gives some image: the sampling step writes NaN.
template <class T>
__device__ void load_keys(const ThresholdArgs& args, const Quad& quad, uint32_t (&keys)[QUAD]) {
    const uint32_t step = *args.step;
    const StepRow& row = args.rows[step < args.steps ? step : 0];
    float x[QUAD];
    double model[QUAD];
    load_quad<float>(args.x, quad, args.layout.whole, x);
    load_model<T>(args.model, args.layout, quad, model);
#pragma unroll
    for (int i = 0; i < QUAD; i++) keys[i] = __float_as_uint(fabsf(float(row.c_x0x * x[i] + row.c_x0m * model[i])));
}

__device__ double scale_of(const ThresholdArgs& args, const Selection& selection) {
    const double lower = __uint_as_float(selection.prefix[0]);
    const double upper = __uint_as_float(selection.prefix[1]);
    return fmin(fmax(lower + args.fraction * (upper - lower), 1.0), args.max_value);
}

__device__ void clear(uint32_t* histograms) {
    for (int i = threadIdx.x; i < 2 * BINS; i += SELECT_THREADS) histograms[i] = 0;
}

template <class T>
__device__ void threshold_image(const ThresholdArgs& args) {
    __shared__ Selection selection;
    __shared__ uint32_t scratch[SELECT_THREADS / 32];
    uint32_t* histograms = reinterpret_cast<uint32_t*>(shared_memory);
    uint32_t* keys = histograms + 2 * BINS;
    if (threadIdx.x == 0) selection = {{0, 0}, {args.lower, args.upper}};
    for (uint32_t i = threadIdx.x; i * QUAD < args.layout.elements; i += SELECT_THREADS) {
        const Quad quad = quad_at(blockIdx.x, i, args.layout.elements);
        uint32_t own[QUAD];
        load_keys<T>(args, quad, own);
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            if (uint32_t(k) < quad.count) keys[quad.first + k] = own[k];
        }
    }
    for (int pass = 0; pass < PASSES; pass++) {
        clear(histograms);
        __syncthreads();
        const Selection known = selection;
        for (uint32_t i = threadIdx.x; i < args.layout.elements; i += SELECT_THREADS) {
            count_key(histograms, known, digit_of(pass), keys[i]);
        }
        __syncthreads();
        select_digit(histograms, selection, digit_of(pass), scratch);
    }
    if (threadIdx.x == 0) args.scales[blockIdx.x] = scale_of(args, selection);
}

// Counts one digit of a part of an image: first in shared memory, then what is there into the image's histograms.
template <class T>
__device__ void threshold_count(const ThresholdArgs& args) {
    uint32_t* histograms = reinterpret_cast<uint32_t*>(shared_memory);
    clear(histograms);
    __syncthreads();
    const uint32_t image = blockIdx.x / args.blocks_per_image;
    const uint32_t part = blockIdx.x - image * args.blocks_per_image;
    const Selection known = args.selections[image];
    const uint32_t stride = args.blocks_per_image * SELECT_THREADS;
    for (uint32_t i = part * SELECT_THREADS + threadIdx.x; i * QUAD < args.layout.elements; i += stride) {
        const Quad quad = quad_at(image, i, args.layout.elements);
        uint32_t keys[QUAD];
        load_keys<T>(args, quad, keys);
#pragma unroll
        for (int k = 0; k < QUAD; k++) {
            if (uint32_t(k) < quad.count) count_key(histograms, known, digit_of(args.pass), keys[k]);
        }
    }
    __syncthreads();
    uint32_t* counts = args.histograms + uint64_t(image) * 2 * BINS;
    for (int i = threadIdx.x; i < 2 * BINS; i += SELECT_THREADS) {
        if (histograms[i] != 0) atomicAdd(counts + i, histograms[i]);
    }
}

}  // namespace

KERNEL(threshold_image_f32, ThresholdArgs, SELECT_THREADS) { threshold_image<float>(args); }
KERNEL(threshold_image_bf16, ThresholdArgs, SELECT_THREADS) { threshold_image<bf16>(args); }

KERNEL(threshold_begin, ThresholdArgs, SELECT_THREADS) {
    clear(args.histograms + uint64_t(blockIdx.x) * 2 * BINS);
    if (threadIdx.x == 0) args.selections[blockIdx.x] = {{0, 0}, {args.lower, args.upper}};
}

KERNEL(threshold_count_f32, ThresholdArgs, SELECT_THREADS) { threshold_count<float>(args); }
KERNEL(threshold_count_bf16, ThresholdArgs, SELECT_THREADS) { threshold_count<bf16>(args); }

// Fixes the digit that was counted and clears the histograms for the next one; the last digit gives S.
KERNEL(threshold_select, ThresholdArgs, SELECT_THREADS) {
    __shared__ Selection selection;
    __shared__ uint32_t scratch[SELECT_THREADS / 32];
    uint32_t* histograms = args.histograms + uint64_t(blockIdx.x) * 2 * BINS;
    if (threadIdx.x == 0) selection = args.selections[blockIdx.x];
    __syncthreads();
    select_digit(histograms, selection, digit_of(args.pass), scratch);
    clear(histograms);
    if (threadIdx.x != 0) return;
    args.selections[blockIdx.x] = selection;
    if (args.pass == PASSES - 1) args.scales[blockIdx.x] = scale_of(args, selection);
}
