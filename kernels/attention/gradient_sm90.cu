// dqkv of attention on Hopper, without float atomics: blocks of query rows give delta and dQ, then blocks of keys dK
// and dV; see query_gradient_sm90.cuh and key_gradient_sm90.cuh. Heads of up to 64, 128 and 256 channels, in multiples
// of 8.
//
// Products of 2 N T^2 C FLOP: 2 for delta, 4 for dQ, 6 for dK and dV. Floor for N images: 10 N T^2 C FLOP; 14 N T C
// bytes.
#include "attention/key_gradient_sm90.cuh"
#include "attention/query_gradient_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

KERNEL(attention_hopper_dq_d64_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperQueryGradient<64>::run(args);
}
KERNEL(attention_hopper_dq_d128_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperQueryGradient<128>::run(args);
}
KERNEL(attention_hopper_dq_d256_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperQueryGradient<256>::run(args);
}

KERNEL(attention_hopper_dkdv_d64_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperKeyGradient<64>::run(args);
}
KERNEL(attention_hopper_dkdv_d128_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperKeyGradient<128>::run(args);
}
KERNEL(attention_hopper_dkdv_d256_bf16, HopperAttentionGradArgs, MOST_THREADS, 1) {
    HopperKeyGradient<256>::run(args);
}

#endif
