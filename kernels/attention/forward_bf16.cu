// O = softmax(scale Q K^T) V and its log-sum-exp in bf16; see weighted_sum_bf16.cuh.
//
// Limit: the tensor cores. P enters the second product as two bf16, so 3 products of 2 N T^2 C FLOP run on them. Every
// ldmatrix of K feeds two of 16 rows and every one of V four, so shared memory (128 B a clock and multiprocessor) allows
// 3072 FLOP a clock, more than mma.sync does. A block of 64 rows at T = 256, d = 256 reads 32 + 256 KB, from L2.
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
