// How the variance of the reverse step is had (src/diffusion/variance.rs).
#pragma once

#include "device/device.cuh"

enum class Variance : uint32_t {
    fixed,
    direct,     // the network's channel v is the variance
    log_range,  // v in [-1, 1] interpolates between two log variances
};

__device__ inline double interpolate_log_variance(double v, double log_min, double log_max) {
    const double f = 0.5 * (v + 1.0);
    return f * log_max + (1.0 - f) * log_min;
}
