// Small kernels around single primitives, for tests/simulator.rs.
#include "device/device.cuh"

struct ArrayArgs {
    const void* x;
    void* y;
    uint64_t count;
};

// y[4 i ..] = the normals of block i of sequence (key x[0..2], training noise, sample 3, step 5).
KERNEL(test_normals, ArrayArgs, 128) {
    const auto* key = static_cast<const uint32_t*>(args.x);
    const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block * 4 >= args.count) {
        return;
    }
    float z[4];
    normals4(random_words(Key{{key[0], key[1]}}, stream::training_noise, 3, 5, block), z);
    store_floats<4>(static_cast<float*>(args.y) + block * 4, z);
}

// y = Philox of counter x[0..4] and key x[4..6].
KERNEL(test_philox, ArrayArgs, 32) {
    const auto* x = static_cast<const uint32_t*>(args.x);
    if (threadIdx.x == 0) {
        const Words words = philox4x32_10(Words{{x[0], x[1], x[2], x[3]}}, Key{{x[4], x[5]}});
        for (int i = 0; i < 4; ++i) {
            static_cast<uint32_t*>(args.y)[i] = words.w[i];
        }
    }
}

// y = x rounded to e4m3: `count` floats, eight a thread or one.
template <int V> __device__ void round_to_e4m3(const ArrayArgs& args) {
    const uint64_t at = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (at < args.count) {
        float v[V];
        load_floats<V>(static_cast<const float*>(args.x) + at, v);
        store_floats<V>(static_cast<e4m3*>(args.y) + at, v);
    }
}
KERNEL(test_e4m3, ArrayArgs, 256) { round_to_e4m3<8>(args); }
KERNEL(test_e4m3_scalar, ArrayArgs, 256) { round_to_e4m3<1>(args); }

// y = x through bf16 and back: `count` floats, eight a thread.
KERNEL(test_bf16_round_trip, ArrayArgs, 256) {
    const uint64_t first = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    if (first >= args.count) {
        return;
    }
    float values[8];
    load_floats<8>(static_cast<const float*>(args.x) + first, values);
    Vec<bf16, 8> rounded;
    store_floats<8>(rounded.v, values);
    load_floats<8>(rounded.v, values);
    store_floats<8>(static_cast<float*>(args.y) + first, values);
}

template <class T, bool MAXIMUM> __device__ void reduce_rows(const ArrayArgs& args) {
    __shared__ T scratch[8];
    const auto* x = static_cast<const T*>(args.x);
    T total = 0;
    // Twice with the same scratch: the second call must not disturb slower threads of the first.
    for (int repeat = 0; repeat < 2; ++repeat) {
        const T v = x[threadIdx.x] + T(repeat);
        if constexpr (MAXIMUM) {
            total += block_max<256>(v, scratch);
        } else {
            total += block_sum<256>(v, scratch);
        }
    }
    static_cast<T*>(args.y)[threadIdx.x] = total;
}
KERNEL(test_block_sum_f32, ArrayArgs, 256) { reduce_rows<float, false>(args); }
KERNEL(test_block_sum_f64, ArrayArgs, 256) { reduce_rows<double, false>(args); }
KERNEL(test_block_max_f32, ArrayArgs, 256) { reduce_rows<float, true>(args); }

// Shared memory as a block finds it.
KERNEL(test_poison, ArrayArgs, 64) {
    __shared__ float scratch[64];
    auto* y = static_cast<float*>(args.y);
    y[threadIdx.x] = scratch[threadIdx.x];
    y[64 + threadIdx.x] = reinterpret_cast<float*>(shared_memory)[threadIdx.x];
    scratch[threadIdx.x] = 1.0f;
    reinterpret_cast<float*>(shared_memory)[threadIdx.x] = 1.0f;
}

// y[0..32]: shuffles within halves; y[32..36]: votes and an atomic count.
KERNEL(test_warp, ArrayArgs, 64) {
    const uint32_t lane = threadIdx.x % 32;
    auto* y = static_cast<uint32_t*>(args.y);
    uint32_t v = lane;
    if (lane < 16) {
        v = __shfl_down_sync(0x0000ffffu, v, 1, 16);
    } else {
        v = __shfl_xor_sync(0xffff0000u, v, 1);
    }
    const uint32_t thirds = __ballot_sync(0xffffffffu, lane % 3 == 0);
    const int any = __any_sync(0xffffffffu, lane == 31), all = __all_sync(0xffffffffu, lane < 31);
    const int fifths = __syncthreads_count(threadIdx.x % 5 == 0);
    if (threadIdx.x < 32) {
        y[lane] = v;
    }
    if (threadIdx.x == 63) {
        y[32] = thirds;
        y[33] = uint32_t(any + 2 * all);
        y[34] = uint32_t(fifths);
    }
    atomicAdd(y + 35, 2u);
}

// Speed of the simulator itself.
KERNEL(bench_sync, ArrayArgs, 1024) {
    for (uint64_t i = 0; i < args.count; ++i) {
        __syncthreads();
    }
}
KERNEL(bench_shuffle, ArrayArgs, 1024) {
    float v = float(threadIdx.x);
    for (uint64_t i = 0; i < args.count; ++i) {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    }
    static_cast<float*>(args.y)[threadIdx.x] = v;
}
KERNEL(bench_mma, ArrayArgs, 1024) {
    const auto* x = static_cast<const uint32_t*>(args.x);
    uint32_t a[4] = {x[0], x[1], x[2], x[3]};
    float c[4][4] = {};
    for (uint64_t i = 0; i < args.count; i += 4) {
        for (int j = 0; j < 4; ++j) {
            mma_m16n8k16(c[j], a, a[0], a[1]);
        }
    }
    static_cast<float*>(args.y)[threadIdx.x] = c[0][0] + c[1][1] + c[2][2] + c[3][3];
}
KERNEL(bench_empty, ArrayArgs, 1024) {
    if (args.count == threadIdx.x + 1) {
        static_cast<float*>(args.y)[threadIdx.x] = 0.0f;
    }
}
