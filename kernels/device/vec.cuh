// Vector accesses: N neighbouring values in one load or store of up to 16 bytes. Pointers are aligned to the access.
#pragma once

#include "device/types.cuh"

template <class T, int N> struct alignas(sizeof(T) * N) Vec {
    static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
    T v[N];
};

// The register types that the hardware loads at once: through them a Vec is one load instruction whatever T is.
template <int BYTES> struct AccessWord;
template <> struct AccessWord<1> {
    using Type = uint8_t;
};
template <> struct AccessWord<2> {
    using Type = uint16_t;
};
template <> struct AccessWord<4> {
    using Type = uint32_t;
};
template <> struct AccessWord<8> {
    using Type = uint2;
};
template <> struct AccessWord<16> {
    using Type = uint4;
};

template <int N, class T> __device__ __forceinline__ Vec<T, N> load_vec(const T* p) {
    using Word = typename AccessWord<sizeof(T) * N>::Type;
    const Word word = *reinterpret_cast<const Word*>(p);
    Vec<T, N> out;
    __builtin_memcpy(&out, &word, sizeof(word));
    return out;
}

template <class T, int N> __device__ __forceinline__ void store_vec(T* p, const Vec<T, N>& v) {
    using Word = typename AccessWord<sizeof(T) * N>::Type;
    Word word;
    __builtin_memcpy(&word, &v, sizeof(word));
    *reinterpret_cast<Word*>(p) = word;
}

// N values as floats, whatever their type; accesses of at most 16 bytes.
template <int N, class T> __device__ __forceinline__ void load_floats(const T* p, float (&out)[N]) {
    static_assert(N * sizeof(T) <= 32);
    constexpr int STEP = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
    for (int base = 0; base < N; base += STEP) {
        const Vec<T, STEP> part = load_vec<STEP>(p + base);
#pragma unroll
        for (int i = 0; i < STEP; ++i) {
            out[base + i] = to_float(part.v[i]);
        }
    }
}

template <int N, class T> __device__ __forceinline__ void store_floats(T* p, const float (&values)[N]) {
    static_assert(N * sizeof(T) <= 32);
    constexpr int STEP = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
#pragma unroll
    for (int base = 0; base < N; base += STEP) {
        Vec<T, STEP> part;
        if constexpr (sizeof(T) == 2 && STEP % 2 == 0) {
            // Pairs: one conversion instruction for two values.
            uint32_t pairs[STEP / 2];
#pragma unroll
            for (int i = 0; i < STEP / 2; ++i) {
                pairs[i] = pack_bf16x2(values[base + 2 * i], values[base + 2 * i + 1]);
            }
            __builtin_memcpy(&part, pairs, sizeof(part));
        } else if constexpr (sizeof(T) == 1 && STEP % 2 == 0) {
            uint16_t pairs[STEP / 2];
#pragma unroll
            for (int i = 0; i < STEP / 2; ++i) {
                pairs[i] = pack_e4m3x2(values[base + 2 * i], values[base + 2 * i + 1]);
            }
            __builtin_memcpy(&part, pairs, sizeof(part));
        } else {
#pragma unroll
            for (int i = 0; i < STEP; ++i) {
                part.v[i] = from_float<T>(values[base + i]);
            }
        }
        store_vec(p + base, part);
    }
}
