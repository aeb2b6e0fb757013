// dqkv of attention in bf16, without float atomics: delta first, then blocks of query rows give dQ, blocks of key rows dK
// and dV; see gradient_bf16.cuh and weighted_sum_bf16.cuh.
//
// Limit: as in forward_bf16.cu, shared memory and the tensor cores. Products of 2 N T^2 C FLOP: 2 for delta, 4 each for dQ
// and dK, 3 for dV (above a head size of 256 scores count twice: 2, 6, 6, 4); the least possible is 5, with delta from O,
// weights rounded to bf16 and atomic sums of dQ.
// Floor for N images: 10 N T^2 C FLOP; 14 N T C bytes.
#include "attention/gradient_bf16.cuh"

KERNEL(attention_delta_d32_bf16, AttentionGradArgs, 128, 4) { attention_gradient<32, DeltaRole>(args); }
KERNEL(attention_delta_d64_bf16, AttentionGradArgs, 128, 4) { attention_gradient<64, DeltaRole>(args); }
KERNEL(attention_delta_d128_bf16, AttentionGradArgs, 128, 4) { attention_gradient<128, DeltaRole>(args); }
KERNEL(attention_delta_d256_bf16, AttentionGradArgs, 128, 4) { attention_gradient<256, DeltaRole>(args); }
KERNEL(attention_delta_d512_bf16, AttentionGradArgs, 128, 4) { attention_gradient<512, DeltaRole>(args); }

KERNEL(attention_dq_d32_bf16, AttentionGradArgs, 128) { attention_gradient<32, QueryRole>(args); }
KERNEL(attention_dq_d64_bf16, AttentionGradArgs, 128) { attention_gradient<64, QueryRole>(args); }
KERNEL(attention_dq_d128_bf16, AttentionGradArgs, 128) { attention_gradient<128, QueryRole>(args); }
KERNEL(attention_dq_d256_bf16, AttentionGradArgs, 128) { attention_gradient<256, QueryRole>(args); }
KERNEL(attention_dq_d512_bf16, AttentionGradArgs, 128) { attention_gradient<512, QueryRole>(args); }

KERNEL(attention_dk_d32_bf16, AttentionGradArgs, 128) { attention_gradient<32, KeyRole>(args); }
KERNEL(attention_dk_d64_bf16, AttentionGradArgs, 128) { attention_gradient<64, KeyRole>(args); }
KERNEL(attention_dk_d128_bf16, AttentionGradArgs, 128) { attention_gradient<128, KeyRole>(args); }
KERNEL(attention_dk_d256_bf16, AttentionGradArgs, 128) { attention_gradient<256, KeyRole>(args); }
KERNEL(attention_dk_d512_bf16, AttentionGradArgs, 128) { attention_gradient<512, KeyRole>(args); }

KERNEL(attention_dv_d32_bf16, AttentionGradArgs, 128) { attention_value_gradient<32>(args); }
KERNEL(attention_dv_d64_bf16, AttentionGradArgs, 128) { attention_value_gradient<64>(args); }
KERNEL(attention_dv_d128_bf16, AttentionGradArgs, 128) { attention_value_gradient<128>(args); }
KERNEL(attention_dv_d256_bf16, AttentionGradArgs, 128) { attention_value_gradient<256>(args); }
KERNEL(attention_dv_d512_bf16, AttentionGradArgs, 128) { attention_value_gradient<512>(args); }
