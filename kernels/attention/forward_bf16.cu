// O = softmax(scale Q K^T) V and its log-sum-exp in bf16; see weighted_sum_bf16.cuh.
//
// Limit: at T = 256, d = 256 a block of 64 rows does 16.8 MFLOP on 32 + 256 KB that come from L2 (8 CTAs of 16 rows would
// read the same 256 KB each). Every ldmatrix of K and V feeds two products of 16 rows, so shared memory (128 B a clock)
// allows 2048 FLOP a clock and multiprocessor: the whole of an A100's tensor cores, half of a Hopper's.
// Floor for N images: 4 N T^2 C FLOP; 8 N T C bytes.
#include "attention/weighted_sum_bf16.cuh"

template <int D> __device__ __forceinline__ void attention_forward(const AttentionArgs& args) {
    const uint32_t head = blockIdx.y / COLUMN_SPLITS<D>;
    const bf16* const qkv = static_cast<const bf16*>(args.qkv);
    const OnlineSoftmax softmax(head_statistics(args.lse, args, head), args.scale);
    weighted_sum<D>(qkv_matrix(qkv, args, QUERY, head), qkv_matrix(qkv, args, KEY, head),
                    qkv_matrix(qkv, args, VALUE, head), softmax, head_matrix(static_cast<bf16*>(args.out), args, head));
}

KERNEL(attention_forward_d32_bf16, AttentionArgs, 128) { attention_forward<32>(args); }
KERNEL(attention_forward_d64_bf16, AttentionArgs, 128) { attention_forward<64>(args); }
KERNEL(attention_forward_d128_bf16, AttentionArgs, 128) { attention_forward<128>(args); }
KERNEL(attention_forward_d256_bf16, AttentionArgs, 128) { attention_forward<256>(args); }
KERNEL(attention_forward_d512_bf16, AttentionArgs, 128) { attention_forward<512>(args); }
