// Which source pixels an output pixel of a convolution reads, forward and backward.
//
// Forward, output pixel (p, q) and tap (r, s) read image pixel (p * stride - pad + r, ...). Backward, pixel (h, w) of dx reads
// dy pixel ((h + pad - r) / stride, ...) for the taps r that divide evenly. These are one pattern per *phase*, the remainder
// of h and w by the stride: with h = phase + stride * h', r = first + stride * tap, the dy pixel is h' + origin - tap. So a
// strided data gradient runs once for each of the stride^2 phases and never multiplies a tap that contributes nothing.
#pragma once

#include "gemm/epilogue.cuh"

struct ConvArgs {
    const void* source;   // forward x [N, H, W, C]; backward dy [N, H', W', K]
    const void* filter;   // [K, R, S, C]
    float* partial;       // [splits, output pixels, columns] or null
    Epilogue epilogue;    // out: forward y [N, H', W', K]; backward dx [N, H, W, C]
    int32_t images;
    int32_t source_h, source_w, source_channels;
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride;
    int32_t pad_top, pad_left;
    int32_t segment_steps; // tile depths a segment
};

// One dimension of a phase.
struct PhaseAxis {
    int outputs;    // output positions of the phase
    int first;      // the first of them
    int step;       // and the distance to the next
    int taps;       // taps that contribute
    int first_tap;  // the first of them
    int tap_step;   // and the distance to the next
    int origin;     // source position of the phase's output 0 under its tap 0
    int advance;    // source positions from one of the phase's outputs to the next
};

template <bool BACKWARD>
__device__ __forceinline__ PhaseAxis phase_axis(int phase, int out, int kernel, int stride, int pad) {
    if constexpr (BACKWARD) {
        const int first_tap = (phase + pad) % stride;
        const int taps = first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0;
        return {(out - phase + stride - 1) / stride, phase, stride, taps, first_tap, stride, (phase + pad) / stride, 1};
    } else {
        return {out, 0, 1, kernel, 0, 1, -pad, stride};
    }
}

// A position in the flattened depth of a convolution: tap (y, x), then channel.
struct Tap {
    int channel, x, y;

    __device__ __forceinline__ static Tap at(int depth, int channels, int width) {
        const int tap = depth / channels;
        return {depth % channels, width ? tap % width : 0, width ? tap / width : 0};
    }

    __device__ __forceinline__ void advance(int by, int channels, int width) {
        channel += by;
        while (channel >= channels) {
            channel -= channels;
            if (++x == width) {
                x = 0;
                ++y;
            }
        }
    }
};
