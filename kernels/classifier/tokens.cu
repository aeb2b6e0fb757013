// Tokens of a classifier's attention pool (Dhariwal & Nichol 2021): the mean of an image's pixels, then each of them, plus
// a vector for each place; the gradient of that; the first token of a row, and its gradient; a vector at every pixel, the
// gradient of their sum.
//
// Shapes: images [N, P, C], tokens [N, P + 1, C], positions [C, P + 1] f32, vectors [N, C]. Layout: dense NHWC.
// Shared memory: none. A thread has one channel of an image and walks its tokens, so that neighbours read neighbours.
// Limit: launch latency; ADM pools 64 pixels of 512 channels once a classifier.

#include "device/device.cuh"

struct TokenArgs {
    const void* x;
    const float* positions;
    void* y;
    uint32_t images;
    uint32_t tokens; // P + 1
    uint32_t channels;
    uint32_t padding;
};

namespace {

// One channel of an image, and where it begins among the tokens and among the pixels.
struct Column {
    uint32_t channel;
    bool inside;
    uint64_t token;
    uint64_t pixel;
    uint64_t vector;
};

__device__ Column column_of_thread(const TokenArgs& args) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t image = i / args.channels;
    const uint32_t channel = i - uint32_t(image) * args.channels;
    return {channel, i < args.images * args.channels, image * args.tokens * args.channels + channel,
            image * (args.tokens - 1) * args.channels + channel, i};
}

template <class T> __device__ void pool_tokens(const TokenArgs& args) {
    const Column column = column_of_thread(args);
    if (!column.inside) {
        return;
    }
    const T* x = static_cast<const T*>(args.x) + column.pixel;
    T* y = static_cast<T*>(args.y) + column.token;
    const float* positions = args.positions + uint64_t(column.channel) * args.tokens;
    float sum = 0.0f;
    for (uint32_t p = 1; p < args.tokens; ++p) {
        const float v = to_float(x[uint64_t(p - 1) * args.channels]);
        sum += v;
        y[uint64_t(p) * args.channels] = from_float<T>(v + positions[p]);
    }
    y[0] = from_float<T>(sum / float(args.tokens - 1) + positions[0]);
}

template <class T> __device__ void pool_tokens_grad(const TokenArgs& args) {
    const Column column = column_of_thread(args);
    if (!column.inside) {
        return;
    }
    const T* dy = static_cast<const T*>(args.x) + column.token;
    T* dx = static_cast<T*>(args.y) + column.pixel;
    const float share = to_float(dy[0]) / float(args.tokens - 1);
    for (uint32_t p = 1; p < args.tokens; ++p) {
        dx[uint64_t(p - 1) * args.channels] = from_float<T>(to_float(dy[uint64_t(p) * args.channels]) + share);
    }
}

template <class T> __device__ void first_token(const TokenArgs& args) {
    const Column column = column_of_thread(args);
    if (column.inside) {
        static_cast<T*>(args.y)[column.vector] = static_cast<const T*>(args.x)[column.token];
    }
}

template <class T> __device__ void first_token_grad(const TokenArgs& args) {
    const Column column = column_of_thread(args);
    if (!column.inside) {
        return;
    }
    T* dx = static_cast<T*>(args.y) + column.token;
    dx[0] = static_cast<const T*>(args.x)[column.vector];
    for (uint32_t p = 1; p < args.tokens; ++p) {
        dx[uint64_t(p) * args.channels] = from_float<T>(0.0f);
    }
}

template <class T> __device__ void spread_pixels(const TokenArgs& args) {
    const Column column = column_of_thread(args);
    if (!column.inside) {
        return;
    }
    const T v = static_cast<const T*>(args.x)[column.vector];
    T* y = static_cast<T*>(args.y) + column.pixel;
    for (uint32_t p = 1; p < args.tokens; ++p) {
        y[uint64_t(p - 1) * args.channels] = v;
    }
}

} // namespace

KERNEL(pool_tokens_f32, TokenArgs, 256) { pool_tokens<float>(args); }
KERNEL(pool_tokens_bf16, TokenArgs, 256) { pool_tokens<bf16>(args); }
KERNEL(pool_tokens_grad_f32, TokenArgs, 256) { pool_tokens_grad<float>(args); }
KERNEL(pool_tokens_grad_bf16, TokenArgs, 256) { pool_tokens_grad<bf16>(args); }
KERNEL(first_token_f32, TokenArgs, 256) { first_token<float>(args); }
KERNEL(first_token_bf16, TokenArgs, 256) { first_token<bf16>(args); }
KERNEL(first_token_grad_f32, TokenArgs, 256) { first_token_grad<float>(args); }
KERNEL(first_token_grad_bf16, TokenArgs, 256) { first_token_grad<bf16>(args); }
KERNEL(spread_pixels_f32, TokenArgs, 256) { spread_pixels<float>(args); }
KERNEL(spread_pixels_bf16, TokenArgs, 256) { spread_pixels<bf16>(args); }
