// Group normalisation (Wu & He 2018) with what follows it in a diffusion network:
//   y = silu?(((x - mean) / sqrt(variance + eps) * gamma + beta) * (1 + scale) + shift)
// mean and variance over the pixels and the C / groups channels of a group, per image.
//
// Shapes: x [N, P, C] in one tensor or, by channels, in two; y [N, P, C]; gamma, beta [C] f32; scale_shift [N, 2C] or null; statistics [N, groups, 2] f32 (mean,
// 1/std).
// Layout: dense NHWC, P = H * W. V channels a thread: 16 bytes where C allows, else one.
//
// Ways, chosen by the shape of one image (src/backend/gpu/lower/norm.rs), so that an image never depends on its batch:
//   norm_fused    one block per image and slice of whole groups; the slice stays in shared memory between the passes.
//                 Floor: one read and one write of x. Shared memory: the slice (at most 64 KiB) and the runs.
//   norm_moments, norm_finish, norm_apply    blocks of rows; partial moments through scratch, merged in fixed order.
//                 Floor: two reads and one write. Shared memory: the runs of one block.
// Where the producers of x left the moments of their parts [N, parts, C], x is not read for statistics:
//   norm_given    blocks of rows and of a slice of whole groups; each merges the parts of its slice before it applies.
//                 One launch, which pays where there are few parts: a part's moments are 8 bytes a channel, and the rows
//                 of a block are so many that they take a quarter of its own bytes at most.
//   norm_combine, norm_apply    many parts: a warp per image and group merges them once, blocks of whole rows apply.
//                 Floor of both: one read and one write of x. Shared memory: 16 bytes a group of the slice.
// Limit: bytes. About 12 FLOP an element and, with SiLU, an exponential and a division; at 2 bytes an element these
// come near the memory time, so the inner loops hold nothing else.
//
// *_e4m3 read bf16 and store y / scale in e4m3, for a convolution of quantised operands: three quarters of the bytes.

#include "norm/affine.cuh"
#include "norm/apply.cuh"
#include "norm/given.cuh"

struct NormArgs {
    NormSource first;
    NormSource second; // without channels where x is one tensor
    Affine affine;
    void* y;
    float* statistics;
    Moments* partials; // scratch [N, chunks, groups]
    float* low;        // scratch [N, groups]: what the mean lost when it was rounded
    double inverse_count; // 1 / (pixels * channels of a group)
    uint32_t pixels;
    uint32_t channels;
    uint32_t groups;
    uint32_t slice;      // channels of a block
    uint32_t slices;     // blocks side by side
    uint32_t chunk_rows; // pixels of a block
    uint32_t chunks;
    uint32_t run; // channels of a run
    uint32_t silu;
    float eps;
    uint32_t images;
    uint32_t width; // pixels of an image's row
    float inverse_scale; // e4m3: y is stored as y * inverse_scale
    uint32_t padding;
};

namespace {

// Of one group, in shared memory.
struct Statistics {
    double mean;
    double inv_std;
};

__device__ float inverse_std(const NormArgs& args, double m2) {
    return 1.0f / sqrtf(float(m2 * args.inverse_count) + args.eps);
}

// Writes the moments of every group of the tile: warp w takes groups w, w + warps, ...
template <class Store>
__device__ void reduce_groups(const NormArgs& args, const Tile& tile, const Runs& runs, const Columns& columns,
                              Store store) {
    const uint32_t width = args.channels / args.groups;
    const uint32_t runs_per_group = width / runs.width;
    for (uint32_t group = threadIdx.x / 32; group < tile.channels / width; group += blockDim.x / 32) {
        const Moments m = group_moments(runs, columns, tile.rows, group * runs_per_group, runs_per_group);
        if (threadIdx.x % 32 == 0) {
            store(group, m);
        }
    }
}

template <class T, int V> __device__ void norm_moments(const NormArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    Runs runs(shared_memory, args.run, tile.channels / args.run, columns.lanes);
    for (uint32_t column = columns.first; column < columns.count; column += blockDim.x) {
        const SourceColumn<T> x(args, tile, tile.channel + column * V);
        ThreadMoments<V> moments;
        float v[V] = {};
        if (columns.lane < tile.rows) {
            load_floats<V>(x.row(columns.lane), v);
        }
        moments.start(v);
#pragma unroll 4
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            load_floats<V>(x.row(row), v);
            moments.add(v);
        }
        runs.store(moments, columns.rows_of(columns.lane, tile.rows), columns.lane, column);
    }
    __syncthreads();
    const uint32_t first_group = tile.channel / (args.channels / args.groups);
    Moments* partials = args.partials + (uint64_t(tile.image) * args.chunks + blockIdx.y) * args.groups + first_group;
    reduce_groups(args, tile, runs, columns, [&](uint32_t group, Moments m) { partials[group] = m; });
}

// For one lane of the warp that merged an image's group.
__device__ void store_statistics(const NormArgs& args, uint64_t at, Moments m) {
    args.statistics[2 * at] = float(m.mean);
    args.statistics[2 * at + 1] = inverse_std(args, m.m2);
    args.low[at] = float(m.mean - double(float(m.mean)));
}

// One warp per image and group merges the chunks. Grid: N * groups warps.
__device__ void norm_finish(const NormArgs& args) {
    const uint32_t at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= args.images * args.groups) {
        return;
    }
    const uint32_t image = at / args.groups;
    const Moments* partials = args.partials + uint64_t(image) * args.chunks * args.groups + (at - image * args.groups);
    const double width = double(args.channels / args.groups);
    double sum = 0.0;
    for (uint32_t c = threadIdx.x % 32; c < args.chunks; c += 32) {
        const double rows = double(min(args.chunk_rows, args.pixels - c * args.chunk_rows));
        sum += rows * width * partials[uint64_t(c) * args.groups].mean;
    }
    const double mean = warp_sum(sum) * args.inverse_count;
    double m2 = 0.0;
    for (uint32_t c = threadIdx.x % 32; c < args.chunks; c += 32) {
        const double rows = double(min(args.chunk_rows, args.pixels - c * args.chunk_rows));
        const Moments m = partials[uint64_t(c) * args.groups];
        m2 += m.m2 + rows * width * (m.mean - mean) * (m.mean - mean);
    }
    m2 = warp_sum(m2);
    if (threadIdx.x % 32 == 0) {
        store_statistics(args, at, Moments{mean, m2});
    }
}

// One warp per image and group merges what the producers left. Grid: N * groups warps.
__device__ void norm_combine(const NormArgs& args) {
    const uint32_t at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= args.images * args.groups) {
        return;
    }
    const uint32_t image = at / args.groups;
    const Moments m = given_moments(args, image, at - image * args.groups);
    if (threadIdx.x % 32 == 0) {
        store_statistics(args, at, m);
    }
}

template <class Out, int V> __device__ __forceinline__ void store_result(const NormArgs& args, Out* y, float (&v)[V]) {
    if constexpr (sizeof(Out) == 1) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
            v[i] *= args.inverse_scale;
        }
    }
    store_floats<V>(y, v);
}

// y of the tile; normalise(map, i, group) gives channel i of a column the statistics of its group in the image.
template <class T, int V, class Out, class Normalise>
__device__ __forceinline__ void apply_tile(const NormArgs& args, const Tile& tile, const Columns& columns,
                                           Normalise normalise) {
    const uint32_t width = args.channels / args.groups;
    Out* __restrict__ y = static_cast<Out*>(args.y) + tile.offset(args);
    for (uint32_t column = columns.first; column < columns.count; column += blockDim.x) {
        const uint32_t channel = tile.channel + column * V;
        const SourceColumn<T> source(args, tile, channel);
        const T* __restrict__ x = source.at;
        ChannelMap<V> map;
        load_affine<V, T>(args.affine, tile.image, channel, args.channels, map.gain, map.offset);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            normalise(map, i, (channel + i) / width);
        }
#pragma unroll 4
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            float v[V];
            load_floats<V>(x + uint64_t(row) * source.stride, v);
            map.apply(v, args.silu != 0);
            store_result(args, y + uint64_t(row) * args.channels + column * V, v);
        }
    }
}

template <class T, int V, class Out = T> __device__ void norm_apply(const NormArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    apply_tile<T, V, Out>(args, tile, columns, [&](ChannelMap<V>& map, int i, uint32_t group) {
        const uint64_t at = uint64_t(tile.image) * args.groups + group;
        map.normalise(i, args.statistics[2 * at], args.low[at], args.statistics[2 * at + 1]);
    });
}

// Dynamic shared memory: the statistics of the slice's groups.
template <class T, int V, class Out = T> __device__ void norm_given(const NormArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    const uint32_t width = args.channels / args.groups;
    const uint32_t first_group = tile.channel / width;
    Statistics* statistics = reinterpret_cast<Statistics*>(shared_memory);
    float* out = args.statistics + (uint64_t(tile.image) * args.groups + first_group) * 2;
    for (uint32_t group = threadIdx.x / 32; group < tile.channels / width; group += blockDim.x / 32) {
        const Moments m = given_moments(args, tile.image, first_group + group);
        if (threadIdx.x % 32 == 0) {
            const float inv_std = inverse_std(args, m.m2);
            statistics[group] = Statistics{m.mean, double(inv_std)};
            // Every chunk has the same.
            if (blockIdx.y == 0) {
                out[2 * group] = float(m.mean);
                out[2 * group + 1] = inv_std;
            }
        }
    }
    __syncthreads();
    apply_tile<T, V, Out>(args, tile, columns, [&](ChannelMap<V>& map, int i, uint32_t group) {
        const Statistics s = statistics[group - first_group];
        map.normalise(i, float(s.mean), float(s.mean - double(float(s.mean))), float(s.inv_std));
    });
}

// Dynamic shared memory: [mean and 1/std of each group of the slice: 16 bytes][runs][slice of x].
template <class T, int V, class Out = T> __device__ void norm_fused(const NormArgs& args) {
    const Tile tile(args);
    const Columns columns(tile.channels / V);
    const uint32_t width = args.channels / args.groups;
    Statistics* statistics = reinterpret_cast<Statistics*>(shared_memory);
    void* runs_memory = statistics + tile.channels / width;
    const uint32_t runs_per_lane = tile.channels / args.run;
    Runs runs(runs_memory, args.run, runs_per_lane, columns.lanes);
    // 12 bytes a run, rounded up to whole vectors.
    const uint32_t runs_bytes = (columns.lanes * runs_per_lane * 12 + 15) / 16 * 16;
    T* slab = reinterpret_cast<T*>(static_cast<unsigned char*>(runs_memory) + runs_bytes);

    // Fused slices have at most as many columns as the block has threads: a thread reads back only what it wrote.
    const uint32_t column = columns.first;
    if (column < columns.count) {
        const SourceColumn<T> x(args, tile, tile.channel + column * V);
        ThreadMoments<V> moments;
        float v[V] = {};
        if (columns.lane < tile.rows) {
            load_floats<V>(x.row(columns.lane), v);
        }
        moments.start(v);
#pragma unroll 4
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            const Vec<T, V> word = load_vec<V>(x.row(row));
            store_vec(slab + row * tile.channels + column * V, word);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                v[i] = to_float(word.v[i]);
            }
            moments.add(v);
        }
        runs.store(moments, columns.rows_of(columns.lane, tile.rows), columns.lane, column);
    }
    __syncthreads();
    float* out = args.statistics + (uint64_t(tile.image) * args.groups + tile.channel / width) * 2;
    reduce_groups(args, tile, runs, columns, [&](uint32_t group, Moments m) {
        const float inv_std = inverse_std(args, m.m2);
        statistics[group] = Statistics{m.mean, double(inv_std)};
        out[2 * group] = float(m.mean);
        out[2 * group + 1] = inv_std;
    });
    __syncthreads();

    if (column < columns.count) {
        const uint32_t channel = tile.channel + column * V;
        ChannelMap<V> map;
        load_affine<V, T>(args.affine, tile.image, channel, args.channels, map.gain, map.offset);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const Statistics s = statistics[(column * V + i) / width];
            map.normalise(i, float(s.mean), float(s.mean - double(float(s.mean))), float(s.inv_std));
        }
        Out* y = static_cast<Out*>(args.y) + tile.offset(args);
#pragma unroll 4
        for (uint32_t row = columns.lane; row < tile.rows; row += columns.lanes) {
            float v[V];
            load_floats<V>(slab + row * tile.channels + column * V, v);
            map.apply(v, args.silu != 0);
            store_result(args, y + uint64_t(row) * args.channels + column * V, v);
        }
    }
}

} // namespace

KERNEL(norm_moments_f32, NormArgs, 256) { norm_moments<float, 4>(args); }
KERNEL(norm_moments_bf16, NormArgs, 256) { norm_moments<bf16, 8>(args); }
KERNEL(norm_moments_scalar_f32, NormArgs, 256) { norm_moments<float, 1>(args); }
KERNEL(norm_moments_scalar_bf16, NormArgs, 256) { norm_moments<bf16, 1>(args); }
KERNEL(norm_finish_f32, NormArgs, 256) { norm_finish(args); }
KERNEL(norm_combine_f32, NormArgs, 256) { norm_combine(args); }
KERNEL(norm_apply_f32, NormArgs, 256) { norm_apply<float, 4>(args); }
KERNEL(norm_apply_bf16, NormArgs, 256) { norm_apply<bf16, 8>(args); }
KERNEL(norm_apply_scalar_f32, NormArgs, 256) { norm_apply<float, 1>(args); }
KERNEL(norm_apply_scalar_bf16, NormArgs, 256) { norm_apply<bf16, 1>(args); }
KERNEL(norm_given_f32, NormArgs, 256) { norm_given<float, 4>(args); }
KERNEL(norm_given_bf16, NormArgs, 256) { norm_given<bf16, 8>(args); }
KERNEL(norm_given_scalar_f32, NormArgs, 256) { norm_given<float, 1>(args); }
KERNEL(norm_given_scalar_bf16, NormArgs, 256) { norm_given<bf16, 1>(args); }
KERNEL(norm_fused_f32, NormArgs, 256, 2) { norm_fused<float, 4>(args); }
KERNEL(norm_fused_bf16, NormArgs, 256, 2) { norm_fused<bf16, 8>(args); }
KERNEL(norm_fused_scalar_f32, NormArgs, 256, 2) { norm_fused<float, 1>(args); }
KERNEL(norm_fused_scalar_bf16, NormArgs, 256, 2) { norm_fused<bf16, 1>(args); }
KERNEL(norm_apply_e4m3, NormArgs, 256) { norm_apply<bf16, 8, e4m3>(args); }
KERNEL(norm_apply_scalar_e4m3, NormArgs, 256) { norm_apply<bf16, 1, e4m3>(args); }
KERNEL(norm_given_e4m3, NormArgs, 256) { norm_given<bf16, 8, e4m3>(args); }
KERNEL(norm_given_scalar_e4m3, NormArgs, 256) { norm_given<bf16, 1, e4m3>(args); }
KERNEL(norm_fused_e4m3, NormArgs, 256, 2) { norm_fused<bf16, 8, e4m3>(args); }
KERNEL(norm_fused_scalar_e4m3, NormArgs, 256, 2) { norm_fused<bf16, 1, e4m3>(args); }
