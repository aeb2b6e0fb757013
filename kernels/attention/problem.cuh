// Self-attention over the pixels of an image: what the kernels of this family share about their operands.
//
// qkv [N, T, 3C], out and dout [N, T, C], dqkv [N, T, 3C]: dense, the channels of head h are h d .. h d + d - 1 of each
// C-wide third. lse and delta [N, heads, T] in f32. d = C / heads is any number from 1 to 512, T any number.
//   S = scale Q K^T,  P = softmax(S),  O = P V,  lse_i = log sum_j exp S_ij
//   dV = P^T dO,  dP = dO V^T,  delta_i = sum_j P_ij dP_ij,  dS = P (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q
//
// Grid of every kernel: x = block of rows (tokens), y = head (bf16 head sizes above 256: head * 2 + half of the columns),
// z = image. A row's arithmetic depends on T, d and the row alone: neither on the batch nor on the rows in its block.
#pragma once

#include "device/device.cuh"

struct AttentionArgs {
    const void* qkv;
    void* out;
    float* lse;
    uint32_t tokens;
    uint32_t heads;
    uint32_t head_size;
    float scale;
};

struct AttentionGradArgs {
    const void* dout;
    const void* qkv;
    const float* lse;
    float* delta;
    void* dqkv;
    uint32_t tokens;
    uint32_t heads;
    uint32_t head_size;
    float scale;
};

constexpr float LOG2_E = 1.4426950408889634f;

// The rows (tokens) of one operand of one head of one image. T is const where the operand is read.
template <class T> struct HeadMatrix {
    T* data;
    uint32_t pitch;
    uint32_t tokens;
    uint32_t columns;
    // Whether each row begins at a multiple of 16 bytes and has a whole number of them.
    bool vector_access;

    __device__ __forceinline__ T* row(uint32_t token) const { return data + size_t(token) * pitch; }

    __device__ __forceinline__ HeadMatrix columns_from(uint32_t first, uint32_t count) const {
        return {data + first, pitch, tokens, min(count, columns - first), vector_access};
    }
};

// Heads and thirds begin at multiples of the head size.
template <class T> __device__ __forceinline__ bool whole_vectors(uint32_t head_size) {
    return head_size % (16 / sizeof(T)) == 0;
}

enum QkvPart : uint32_t { QUERY, KEY, VALUE };

// Third `part` of a tensor with 3C channels.
template <class T, class Args>
__device__ __forceinline__ HeadMatrix<T> qkv_matrix(T* tensor, const Args& args, QkvPart part, uint32_t head) {
    const uint32_t channels = args.heads * args.head_size;
    T* const image = tensor + size_t(blockIdx.z) * args.tokens * 3 * channels;
    return {image + part * channels + head * args.head_size, 3 * channels, args.tokens, args.head_size,
            whole_vectors<T>(args.head_size)};
}

// The head's slice of a tensor with C channels.
template <class T, class Args>
__device__ __forceinline__ HeadMatrix<T> head_matrix(T* tensor, const Args& args, uint32_t head) {
    const uint32_t channels = args.heads * args.head_size;
    T* const image = tensor + size_t(blockIdx.z) * args.tokens * channels;
    return {image + head * args.head_size, channels, args.tokens, args.head_size,
            whole_vectors<T>(args.head_size)};
}

// One f32 per token of the head: lse, delta.
template <class T, class Args> __device__ __forceinline__ T* head_statistics(T* tensor, const Args& args, uint32_t head) {
    return tensor + (size_t(blockIdx.z) * args.heads + head) * args.tokens;
}
