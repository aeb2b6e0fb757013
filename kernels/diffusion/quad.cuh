// Four consecutive elements of an image: what one Philox call draws noise for, and the unit of work of a thread.
#pragma once

#include "device/device.cuh"

// Elements of a quad.
constexpr int QUAD = 4;

// The quad of a thread, when every image is dealt to the same number of blocks.
struct Quad {
    uint64_t image;   // which image of the batch
    uint32_t index;   // which quad of the image: the `block` of its counter
    uint32_t first;   // its first element in the image
    uint32_t count;   // how many of its elements the image has; 0 beyond the image
    uint64_t offset;  // its first element in the batch
};

__device__ inline Quad quad_at(uint64_t image, uint32_t index, uint32_t image_elements) {
    const uint32_t first = index * QUAD;
    const uint32_t left = first < image_elements ? image_elements - first : 0;
    return {image, index, first, left < QUAD ? left : QUAD, image * image_elements + first};
}

__device__ inline Quad quad_of_thread(uint32_t blocks_per_image, uint32_t image_elements) {
    const uint32_t image = blockIdx.x / blocks_per_image;
    const uint32_t index = (blockIdx.x - image * blocks_per_image) * blockDim.x + threadIdx.x;
    return quad_at(image, index, image_elements);
}

// `whole` says that images consist of whole quads, which makes every quad of the batch aligned.
template <class T>
__device__ void load_quad(const void* batch, const Quad& quad, bool whole, float (&out)[QUAD]) {
    const T* p = static_cast<const T*>(batch) + quad.offset;
    if (whole) {
        load_floats<QUAD>(p, out);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++) out[i] = uint32_t(i) < quad.count ? to_float(p[i]) : 0.0f;
    }
}

template <class T>
__device__ void store_quad(void* batch, const Quad& quad, bool whole, const float (&v)[QUAD]) {
    T* p = static_cast<T*>(batch) + quad.offset;
    if (whole) {
        store_floats<QUAD>(p, v);
    } else {
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            if (uint32_t(i) < quad.count) p[i] = from_float<T>(v[i]);
        }
    }
}

// Where the elements of a quad lie in a tensor that has more channels than the image.
struct Strided {
    uint64_t at[QUAD];
};

__device__ inline Strided strided(const Quad& quad, uint32_t image_elements, uint32_t channels, uint32_t stride) {
    Strided s;
    uint32_t pixel = quad.first / channels;
    uint32_t channel = quad.first - pixel * channels;
    const uint64_t pixels = quad.image * (image_elements / channels);
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        s.at[i] = (pixels + pixel) * stride + channel;
        if (++channel == channels) {
            channel = 0;
            pixel++;
        }
    }
    return s;
}

// Channels `extra..` of the elements of a quad.
template <class T>
__device__ void load_strided(const void* batch, const Quad& quad, const Strided& s, uint32_t extra,
                             float (&out)[QUAD]) {
    const T* p = static_cast<const T*>(batch) + extra;
#pragma unroll
    for (int i = 0; i < QUAD; i++) out[i] = uint32_t(i) < quad.count ? to_float(p[s.at[i]]) : 0.0f;
}

template <class T>
__device__ void store_strided(void* batch, const Quad& quad, const Strided& s, uint32_t extra,
                              const float (&v)[QUAD]) {
    T* p = static_cast<T*>(batch) + extra;
#pragma unroll
    for (int i = 0; i < QUAD; i++) {
        if (uint32_t(i) < quad.count) p[s.at[i]] = from_float<T>(v[i]);
    }
}

// The answer where there is none.
__device__ inline float not_a_number() { return __uint_as_float(0x7fffffffu); }

__device__ inline Key load_key(const uint32_t* key) { return {{key[0], key[1]}}; }
