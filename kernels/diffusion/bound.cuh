// One element's term of the variational bound, in nats, with its derivatives (2006.11239, eq. 5 and 13).
//
// In f64: exp(r) - 1 - r and the difference of two nearby cumulative probabilities lose up to all digits of an f32. The
// formulas are those of src/diffusion/decoder.rs, operation by operation, so that both agree at the clamps too.
#pragma once

#include "device/device.cuh"

struct GaussianGrad {
    double nats;
    double d_mean;
    double d_log_variance;
};

// KL(N(mean_q, exp(log_var_q)) || N(mean_p, exp(log_var_p))), derivatives by the second Gaussian; delta = mean_p -
// mean_q.
__device__ inline GaussianGrad normal_kl(double delta, double log_var_q, double log_var_p) {
    const double ratio = log_var_q - log_var_p;
    const double spread = exp(ratio);
    const double precision = exp(-log_var_p);
    const double distance = delta * delta * precision;
    return {0.5 * (spread - 1.0 - ratio + distance), delta * precision, 0.5 * (1.0 - spread - distance)};
}

// The normal distribution function by its tanh approximation, with its density: the ends of a decoder bin.
struct BinEnd {
    double below;
    double density;
    double moment;  // density times the end
};

__device__ inline BinEnd bin_end(double z) {
    constexpr double ROOT = 0.79788456080286535588;  // sqrt(2 / pi)
    const double t = tanh(ROOT * (z + 0.044715 * (z * z * z)));
    const double density = 0.5 * (1.0 - t * t) * ROOT * (1.0 + 3.0 * 0.044715 * z * z);
    return {0.5 * (1.0 + t), density, z * density};
}

// -ln of the probability that N(mean, exp(log_variance)) falls into the bin of grey level `x`; the outermost bins are
// open.
__device__ inline GaussianGrad decoder_nll(double x, double mean, double log_variance, double half_width, double edge) {
    constexpr double MIN_PROBABILITY = 1e-12;
    const double inverse_std = exp(-0.5 * log_variance);
    const BinEnd low = x < -edge ? BinEnd{0.0, 0.0, 0.0} : bin_end(inverse_std * (x - mean - half_width));
    const BinEnd high = x > edge ? BinEnd{1.0, 0.0, 0.0} : bin_end(inverse_std * (x - mean + half_width));
    const double probability = high.below - low.below;
    const double nats = -log(fmax(probability, MIN_PROBABILITY));
    if (probability < MIN_PROBABILITY) return {nats, 0.0, 0.0};
    return {nats, inverse_std * (high.density - low.density) / probability,
            0.5 * (high.moment - low.moment) / probability};
}
