// Embeddings of a timestep: sinusoidal, [sin, cos](t * freq_i) with freq_i = exp(-ln(10000) i / (half - shift)) (Vaswani et
// al. 2017, Ho et al. 2020), and Fourier, [sin, cos](2 pi w_i ln t) (Song et al. 2021).
//
// Shapes: t [N] f32, turns [half] f64 (freq / 2 pi), w [half] f32, y [N, dim]. One thread computes a sine and its cosine.
// Angles reach thousands of radians, where a float is off by 1e-4: product and reduction are in double.
// Limit: launch latency; a batch of 256 at width 128 is 16,384 threads with 6 double operations each.

#include "embedding/turns.cuh"

struct TimeArgs {
    const float* t;
    const void* frequencies; // double [half] in turns; Fourier: float [half]
    void* y;
    uint32_t images;
    uint32_t half;
    uint32_t dim; // 2 * half, or one more: a zero
    uint32_t cosine_first;
};

namespace {

template <class T, bool FOURIER> __device__ void time_embedding(const TimeArgs& args) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= args.images * args.half) {
        return;
    }
    const uint32_t image = thread / args.half;
    const uint32_t i = thread - image * args.half;
    const double t = double(args.t[image]);
    const double turns = FOURIER ? double(static_cast<const float*>(args.frequencies)[i]) * log(t)
                                 : static_cast<const double*>(args.frequencies)[i] * t;
    float sine, cosine;
    sin_cos_turns(fraction(turns), sine, cosine);
    T* y = static_cast<T*>(args.y) + uint64_t(image) * args.dim;
    y[i] = from_float<T>(args.cosine_first ? cosine : sine);
    y[args.half + i] = from_float<T>(args.cosine_first ? sine : cosine);
    if (i == 0 && args.dim > 2 * args.half) {
        y[args.dim - 1] = from_float<T>(0.0f);
    }
}

} // namespace

KERNEL(time_embedding_f32, TimeArgs, 256) { time_embedding<float, false>(args); }
KERNEL(time_embedding_bf16, TimeArgs, 256) { time_embedding<bf16, false>(args); }
KERNEL(fourier_embedding_f32, TimeArgs, 256) { time_embedding<float, true>(args); }
KERNEL(fourier_embedding_bf16, TimeArgs, 256) { time_embedding<bf16, true>(args); }
