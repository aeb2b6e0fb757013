// Gradient of group normalisation. With n = (x - mean) / std, z = gain * n + offset (gain = gamma * (1 + scale), offset
// = beta * (1 + scale) + shift), dz = dy * silu'(z), and sums per channel A = sum dz, B = sum dz * n over the pixels:
//   dx = (gain * dz - s0 - n * s1) / std,   s0, s1 = the group's sums of gain * A, gain * B over its number of elements
//   dscale = gamma * B + beta * A,  dshift = A,  dgamma = sum over images (1 + scale) * B,  dbeta likewise with A
//
// Shapes: dy, x, dx [N, P, C]; statistics [N, groups, 2] f32; dgamma, dbeta [C] f32; dscale_shift [N, 2C].
// Layout: dense NHWC, P = H * W. V channels a thread: 16 bytes where C allows, else one.
//
// Two ways, chosen by the shape of one image (src/backend/gpu/lower/norm.rs):
//   norm_grad_fused    one block per image and slice of whole groups keeps x and dy in shared memory.
//                      Floor: one read of x and dy, one write of dx.
//   norm_grad_sums, norm_grad_finish, norm_grad_apply    blocks of rows; partial sums through scratch.
//                      Floor: two reads of x and dy, one write of dx.
// Both end with norm_grad_params, the sum over the images; every sum has a fixed order.
// Limit: bytes. About 30 FLOP an element and, with SiLU, an exponential and a division in each pass: recomputed,
// because dz rounded to bf16 would cost accuracy and as float more shared memory than x and dy together.

#include "norm/affine.cuh"
#include "norm/tile.cuh"

struct NormGradArgs {
    const void* dy;
    const void* x;
    Affine affine;
    const float* statistics;
    void* dx;
    float* dgamma;
    float* dbeta;
    void* dscale_shift; // or null
    float* partials;    // scratch [N, chunks, 2, C]
    float* totals;      // scratch [N, 2, C]: A and B
    float* means;       // scratch [N, groups, 2]: s0 and s1
    uint32_t images;
    uint32_t pixels;
    uint32_t channels;
    uint32_t groups;
    uint32_t slice;
    uint32_t slices;
    uint32_t chunk_rows;
    uint32_t chunks;
    uint32_t silu;
    uint32_t padding;
};

namespace {

// What V channels need to come from x and dy to n and dz.
template <int V> struct GradMap {
    float mean[V], inv_std[V], gain[V], offset[V];

    template <class T>
    __device__ __forceinline__ void load(const NormGradArgs& args, uint32_t image, uint32_t channel) {
        load_affine<V, T>(args.affine, image, channel, args.channels, gain, offset);
        const uint32_t width = args.channels / args.groups;
        const float* statistics = args.statistics + uint64_t(image) * args.groups * 2;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const uint32_t group = (channel + i) / width;
            mean[i] = statistics[2 * group];
            inv_std[i] = statistics[2 * group + 1];
        }
    }

    // x becomes n, dy becomes dz.
    __device__ __forceinline__ void apply(float (&x)[V], float (&dy)[V], bool with_silu) const {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            x[i] = (x[i] - mean[i]) * inv_std[i];
        }
        if (with_silu) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                dy[i] *= silu_slope(fmaf(x[i], gain[i], offset[i]));
            }
        }
    }
};

// dx from n and dz: dz becomes dx.
template <int V>
__device__ __forceinline__ void finish_dx(const GradMap<V>& map, const float (&n)[V], const float (&s0)[V],
                                          const float (&s1)[V], float (&dz)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
        dz[i] = map.inv_std[i] * (fmaf(dz[i], map.gain[i], -s0[i]) - n[i] * s1[i]);
    }
}

// Writes A and B of a channel of an image, and the gradient of its scale and shift. One thread.
template <class T>
__device__ void store_totals(const NormGradArgs& args, uint32_t image, uint32_t channel, float a, float b) {
    float* totals = args.totals + uint64_t(image) * 2 * args.channels + channel;
    totals[0] = a;
    totals[args.channels] = b;
    if (args.dscale_shift != nullptr) {
        T* row = static_cast<T*>(args.dscale_shift) + uint64_t(image) * 2 * args.channels + channel;
        row[0] = from_float<T>(fmaf(args.affine.gamma[channel], b, args.affine.beta[channel] * a));
        row[args.channels] = from_float<T>(a);
    }
}

template <class T> __device__ float channel_gain(const NormGradArgs& args, uint32_t image, uint32_t channel) {
    float gain[1], offset[1];
    load_affine<1, T>(args.affine, image, channel, args.channels, gain, offset);
    return gain[0];
}

// Accumulates A and B of one column over the rows of a lane; `visit` sees each row's words.
template <class T, int V, class Visit>
__device__ __forceinline__ void sum_column(const NormGradArgs& args, const Tile& tile, const Columns& columns,
                                           uint32_t column, const GradMap<V>& map, const LaneSums& a_sums,
                                           const LaneSums& b_sums, Visit visit) {
    const uint64_t base = tile.offset(args) + column * V;
    const T* x = static_cast<const T*>(args.x) + base;
    const T* dy = static_cast<const T*>(args.dy) + base;
    float a[V] = {}, b[V] = {};
#pragma unroll 2
    for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
        const uint64_t at = uint64_t(row) * args.channels;
        const Vec<T, V> x_word = load_vec<V>(x + at), dy_word = load_vec<V>(dy + at);
        visit(row, x_word, dy_word);
        float n[V], dz[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            n[i] = to_float(x_word.v[i]);
            dz[i] = to_float(dy_word.v[i]);
        }
        map.apply(n, dz, args.silu != 0);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            a[i] += dz[i];
            b[i] = fmaf(dz[i], n[i], b[i]);
        }
    }
    a_sums.store(column * V, columns.lane, a);
    b_sums.store(column * V, columns.lane, b);
}

template <class T, int V> __device__ void norm_grad_sums(const NormGradArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    const LaneSums a_sums(shared_memory, columns.lanes);
    const LaneSums b_sums(a_sums.memory + tile.channels * a_sums.stride, columns.lanes);
    for (uint32_t column = columns.first; column < columns.count; column += blockDim.x) {
        GradMap<V> map;
        map.template load<T>(args, tile.image, tile.channel + column * V);
        sum_column<T, V>(args, tile, columns, column, map, a_sums, b_sums,
                         [](uint32_t, const Vec<T, V>&, const Vec<T, V>&) {});
    }
    __syncthreads();
    float* out = args.partials + (uint64_t(tile.image) * args.chunks + blockIdx.y) * 2 * args.channels + tile.channel;
    for (uint32_t channel = threadIdx.x / 32; channel < tile.channels; channel += blockDim.x / 32) {
        const float a = a_sums.total(channel, columns.lanes), b = b_sums.total(channel, columns.lanes);
        if (threadIdx.x % 32 == 0) {
            out[channel] = a;
            out[args.channels + channel] = b;
        }
    }
}

// One warp per image and group adds the chunks. Grid: N * groups warps.
template <class T> __device__ void norm_grad_finish(const NormGradArgs& args) {
    const uint32_t at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= args.images * args.groups) {
        return;
    }
    const uint32_t image = at / args.groups;
    const uint32_t width = args.channels / args.groups;
    const uint32_t first = (at - image * args.groups) * width;
    const uint64_t chunk_stride = 2 * uint64_t(args.channels);
    float s0 = 0.0f, s1 = 0.0f;
    for (uint32_t channel = first; channel < first + width; ++channel) {
        const float* partials = args.partials + image * args.chunks * chunk_stride + channel;
        float a = 0.0f, b = 0.0f;
        for (uint32_t chunk = threadIdx.x % 32; chunk < args.chunks; chunk += 32) {
            a += partials[chunk * chunk_stride];
            b += partials[chunk * chunk_stride + args.channels];
        }
        a = warp_sum(a);
        b = warp_sum(b);
        const float gain = channel_gain<T>(args, image, channel);
        s0 = fmaf(gain, a, s0);
        s1 = fmaf(gain, b, s1);
        if (threadIdx.x % 32 == 0) {
            store_totals<T>(args, image, channel, a, b);
        }
    }
    if (threadIdx.x % 32 == 0) {
        const float elements = float(args.pixels) * float(width);
        args.means[2 * uint64_t(at)] = s0 / elements;
        args.means[2 * uint64_t(at) + 1] = s1 / elements;
    }
}

template <class T, int V> __device__ void norm_grad_apply(const NormGradArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    const uint32_t width = args.channels / args.groups;
    const T* __restrict__ x = static_cast<const T*>(args.x) + tile.offset(args);
    const T* __restrict__ dy = static_cast<const T*>(args.dy) + tile.offset(args);
    T* __restrict__ dx = static_cast<T*>(args.dx) + tile.offset(args);
    for (uint32_t column = columns.first; column < columns.count; column += blockDim.x) {
        const uint32_t channel = tile.channel + column * V;
        GradMap<V> map;
        map.template load<T>(args, tile.image, channel);
        const float* means = args.means + uint64_t(tile.image) * args.groups * 2;
        float s0[V], s1[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const uint32_t group = (channel + i) / width;
            s0[i] = means[2 * group];
            s1[i] = means[2 * group + 1];
        }
#pragma unroll 2
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            const uint64_t at = uint64_t(row) * args.channels + column * V;
            float n[V], dz[V];
            load_floats<V>(x + at, n);
            load_floats<V>(dy + at, dz);
            map.apply(n, dz, args.silu != 0);
            finish_dx<V>(map, n, s0, s1, dz);
            store_floats<V>(dx + at, dz);
        }
    }
}

// Dynamic shared memory: [x slice][dy slice][A, B per channel][s0, s1 per group][lane sums].
template <class T, int V> __device__ void norm_grad_fused(const NormGradArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    const uint32_t width = args.channels / args.groups;
    const uint32_t groups = tile.channels / width;
    T* x_slab = reinterpret_cast<T*>(shared_memory);
    T* dy_slab = x_slab + tile.rows * tile.channels;
    // Scalar slices may end in the middle of a word.
    const uint32_t slab_bytes = (2 * tile.rows * tile.channels * uint32_t(sizeof(T)) + 15) / 16 * 16;
    float* totals = reinterpret_cast<float*>(shared_memory + slab_bytes);
    float* means = totals + 2 * tile.channels;
    const LaneSums a_sums(means + 2 * groups, columns.lanes);
    const LaneSums b_sums(a_sums.memory + tile.channels * a_sums.stride, columns.lanes);

    // Fused slices have at most as many columns as the block has threads: a thread reads back only what it wrote.
    const uint32_t column = columns.first;
    GradMap<V> map;
    if (column < columns.count) {
        map.template load<T>(args, tile.image, tile.channel + column * V);
        sum_column<T, V>(args, tile, columns, column, map, a_sums, b_sums,
                         [&](uint32_t row, const Vec<T, V>& x_word, const Vec<T, V>& dy_word) {
                             store_vec(x_slab + row * tile.channels + column * V, x_word);
                             store_vec(dy_slab + row * tile.channels + column * V, dy_word);
                         });
    }
    __syncthreads();
    for (uint32_t channel = threadIdx.x / 32; channel < tile.channels; channel += blockDim.x / 32) {
        const float a = a_sums.total(channel, columns.lanes), b = b_sums.total(channel, columns.lanes);
        if (threadIdx.x % 32 == 0) {
            const float gain = channel_gain<T>(args, tile.image, tile.channel + channel);
            totals[2 * channel] = gain * a;
            totals[2 * channel + 1] = gain * b;
            store_totals<T>(args, tile.image, tile.channel + channel, a, b);
        }
    }
    __syncthreads();
    for (uint32_t group = threadIdx.x / 32; group < groups; group += blockDim.x / 32) {
        float s0 = 0.0f, s1 = 0.0f;
        for (uint32_t i = threadIdx.x % 32; i < width; i += 32) {
            s0 += totals[2 * (group * width + i)];
            s1 += totals[2 * (group * width + i) + 1];
        }
        s0 = warp_sum(s0);
        s1 = warp_sum(s1);
        if (threadIdx.x % 32 == 0) {
            const float elements = float(args.pixels) * float(width);
            means[2 * group] = s0 / elements;
            means[2 * group + 1] = s1 / elements;
        }
    }
    __syncthreads();
    if (column < columns.count) {
        float s0[V], s1[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const uint32_t group = (column * V + i) / width;
            s0[i] = means[2 * group];
            s1[i] = means[2 * group + 1];
        }
        T* dx = static_cast<T*>(args.dx) + tile.offset(args) + column * V;
#pragma unroll 2
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            const uint32_t at = row * tile.channels + column * V;
            float n[V], dz[V];
            load_floats<V>(x_slab + at, n);
            load_floats<V>(dy_slab + at, dz);
            map.apply(n, dz, args.silu != 0);
            finish_dx<V>(map, n, s0, s1, dz);
            store_floats<V>(dx + uint64_t(row) * args.channels, dz);
        }
    }
}

// dgamma and dbeta: sums over the images. A block takes 32 channels, warp w the images w, w + 8, ..., added in that
// order.
template <class T> __device__ void norm_grad_params(const NormGradArgs& args) {
    __shared__ float sums[2][8][32];
    const uint32_t channel = blockIdx.x * 32 + threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    float a = 0.0f, b = 0.0f;
    if (channel < args.channels) {
        for (uint32_t image = warp; image < args.images; image += 8) {
            const float* totals = args.totals + uint64_t(image) * 2 * args.channels + channel;
            float modulation = 1.0f;
            if (args.affine.scale_shift != nullptr) {
                const T* scale = static_cast<const T*>(args.affine.scale_shift) + uint64_t(image) * 2 * args.channels;
                modulation += to_float(scale[channel]);
            }
            a = fmaf(modulation, totals[0], a);
            b = fmaf(modulation, totals[args.channels], b);
        }
    }
    sums[0][warp][threadIdx.x % 32] = a;
    sums[1][warp][threadIdx.x % 32] = b;
    __syncthreads();
    if (warp < 2 && channel < args.channels) {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            total += sums[warp][i][threadIdx.x % 32];
        }
        (warp == 0 ? args.dbeta : args.dgamma)[channel] = total;
    }
}

} // namespace

KERNEL(norm_grad_sums_f32, NormGradArgs, 256) { norm_grad_sums<float, 4>(args); }
KERNEL(norm_grad_sums_bf16, NormGradArgs, 256) { norm_grad_sums<bf16, 8>(args); }
KERNEL(norm_grad_sums_scalar_f32, NormGradArgs, 256) { norm_grad_sums<float, 1>(args); }
KERNEL(norm_grad_sums_scalar_bf16, NormGradArgs, 256) { norm_grad_sums<bf16, 1>(args); }
KERNEL(norm_grad_finish_f32, NormGradArgs, 256) { norm_grad_finish<float>(args); }
KERNEL(norm_grad_finish_bf16, NormGradArgs, 256) { norm_grad_finish<bf16>(args); }
KERNEL(norm_grad_apply_f32, NormGradArgs, 256, 4) { norm_grad_apply<float, 4>(args); }
KERNEL(norm_grad_apply_bf16, NormGradArgs, 256) { norm_grad_apply<bf16, 8>(args); }
KERNEL(norm_grad_apply_scalar_f32, NormGradArgs, 256) { norm_grad_apply<float, 1>(args); }
KERNEL(norm_grad_apply_scalar_bf16, NormGradArgs, 256) { norm_grad_apply<bf16, 1>(args); }
KERNEL(norm_grad_fused_f32, NormGradArgs, 256, 2) { norm_grad_fused<float, 4>(args); }
KERNEL(norm_grad_fused_bf16, NormGradArgs, 256, 2) { norm_grad_fused<bf16, 8>(args); }
KERNEL(norm_grad_fused_scalar_f32, NormGradArgs, 256, 2) { norm_grad_fused<float, 1>(args); }
KERNEL(norm_grad_fused_scalar_bf16, NormGradArgs, 256, 2) { norm_grad_fused<bf16, 1>(args); }
KERNEL(norm_grad_params_f32, NormGradArgs, 256) { norm_grad_params<float>(args); }
KERNEL(norm_grad_params_bf16, NormGradArgs, 256) { norm_grad_params<bf16>(args); }
