// Mean and sum of squared deviations (M2) of groups of channels over a tile of rows, without cancellation.
//
// Sums of x and x^2 lose everything where the mean is large against the deviation. Here a thread sums deviations from its
// first row (float, a few dozen terms), turns them into a mean and M2, and from there on only means (double) and M2 about
// the exact mean are combined: M2 = sum of M2_i + n_i (mean_i - mean)^2 (Chan, Golub & LeVeque 1979, in two sweeps).
#pragma once

#include "device/device.cuh"

// Of a group over part of an image.
struct Moments {
    double mean;
    double m2;
};

// V channels of one thread.
template <int V> struct ThreadMoments {
    float shift[V], sum[V], square[V];

    __device__ __forceinline__ void start(const float (&first)[V]) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            shift[i] = first[i];
            sum[i] = square[i] = 0.0f;
        }
    }

    __device__ __forceinline__ void add(const float (&x)[V]) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float d = x[i] - shift[i];
            sum[i] += d;
            square[i] = fmaf(d, d, square[i]);
        }
    }
};

// What a thread tells its block: the moments of each run of `width` channels, the largest power of two that divides both
// V and a group. They lie in shared memory as [lane][run of the tile].
struct Runs {
    double* mean;
    float* m2;
    uint32_t width;
    uint32_t per_lane;

    // `memory`: lanes * per_lane * 12 bytes, aligned to 8.
    __device__ Runs(void* memory, uint32_t width, uint32_t per_lane, uint32_t lanes)
        : mean(static_cast<double*>(memory)), m2(reinterpret_cast<float*>(mean + lanes * per_lane)), width(width),
          per_lane(per_lane) {}

    // Merges the channels of each run (all have `rows` rows) and stores the runs of column `column`.
    template <int V>
    __device__ __forceinline__ void store(const ThreadMoments<V>& t, uint32_t rows, uint32_t lane, uint32_t column) {
        const float inverse = rows > 0 ? 1.0f / float(rows) : 0.0f;
        uint32_t at = lane * per_lane + column * V / width;
        double run_mean = 0.0;
        float run_m2 = 0.0f;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const float offset = t.sum[i] * inverse;
            const double mean_i = double(t.shift[i]) + double(offset);
            const float m2_i = fmaxf(fmaf(-offset, t.sum[i], t.square[i]), 0.0f);
            const uint32_t place = i & (width - 1);
            if (place == 0) {
                run_mean = mean_i;
                run_m2 = m2_i;
            } else {
                const float share = 1.0f / float(place + 1);
                const float d = float(mean_i - run_mean);
                run_mean += double(d * share);
                run_m2 += fmaf(d * d, float(rows) * float(place) * share, m2_i);
            }
            if (place == width - 1) {
                mean[at] = run_mean;
                m2[at] = run_m2;
                ++at;
            }
        }
    }
};

// The moments of the group that spans runs first .. first + count of the tile: one warp, two sweeps in fixed order.
__device__ __forceinline__ Moments group_moments(const Runs& runs, const Columns& columns, uint32_t rows, uint32_t first,
                                                 uint32_t count) {
    const uint32_t entries = columns.lanes * count;
    double sum = 0.0;
    for (uint32_t e = threadIdx.x % 32; e < entries; e += 32) {
        const uint32_t lane = e / count;
        sum += double(columns.rows_of(lane, rows)) * runs.mean[lane * runs.per_lane + first + (e - lane * count)];
    }
    const double mean = warp_sum(sum) / (double(rows) * double(count));
    double m2 = 0.0;
    for (uint32_t e = threadIdx.x % 32; e < entries; e += 32) {
        const uint32_t lane = e / count;
        const uint32_t at = lane * runs.per_lane + first + (e - lane * count);
        const double d = runs.mean[at] - mean;
        m2 += double(runs.m2[at]) + double(columns.rows_of(lane, rows)) * double(runs.width) * d * d;
    }
    return Moments{mean, warp_sum(m2)};
}
