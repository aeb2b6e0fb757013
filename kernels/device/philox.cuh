// Counter-based random numbers, word for word those of src/rng.rs: Philox4x32-10 (Salmon et al., SC 2011), 24-bit
// uniforms and Box-Muller normals in f32.
#pragma once

#include "device/platform.cuh"

// What a random number is for; part of the counter, so that streams never share numbers.
namespace stream {
enum Tag : uint32_t {
    initial_noise = 0,
    sampler_noise = 1,
    training_noise = 2,
    timestep = 3,
    flip = 4,
    label_drop = 5,
    bound_noise = 6,
    weights = 7,
    edit_noise = 8,  // drawn on the host
    dropout = 256, // plus the layer's number
};
}

struct Words {
    uint32_t w[4];
};

struct Key {
    uint32_t k[2];
};

__device__ __forceinline__ Words philox4x32_10(Words counter, Key key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, counter.w[0]), low0 = 0xD2511F53u * counter.w[0];
        const uint32_t high1 = __umulhi(0xCD9E8D57u, counter.w[2]), low1 = 0xCD9E8D57u * counter.w[2];
        counter = Words{{high1 ^ counter.w[1] ^ key.k[0], low1, high0 ^ counter.w[3] ^ key.k[1], low0}};
        key.k[0] += 0x9E3779B9u;
        key.k[1] += 0xBB67AE85u;
    }
    return counter;
}

// Four words of one sequence: those of elements 4 * block .. 4 * block + 3.
__device__ __forceinline__ Words random_words(Key key, uint32_t tag, uint32_t sample, uint32_t step, uint32_t block) {
    return philox4x32_10(Words{{block, step, sample, tag}}, key);
}

// In [0, 1), 24 random bits, exact.
__device__ __forceinline__ float unit(uint32_t word) { return float(word >> 8) * (1.0f / 16777216.0f); }

// In (0, 1], so that its logarithm is finite.
__device__ __forceinline__ float positive_unit(uint32_t word) { return float((word >> 8) + 1u) * (1.0f / 16777216.0f); }

// Four standard normals from four words.
__device__ __forceinline__ void normals4(Words words, float (&z)[4]) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const float radius = sqrtf(-2.0f * logf(positive_unit(words.w[2 * pair])));
        float sine, cosine;
        // In half turns: exact, and without sincosf's path for large angles, which needs local memory.
        sincospif(2.0f * unit(words.w[2 * pair + 1]), &sine, &cosine);
        z[2 * pair] = radius * cosine;
        z[2 * pair + 1] = radius * sine;
    }
}
