// Attention on Hopper for heads of up to 64, 128 and 256 channels, in multiples of 8; see forward_sm90.cuh. Keys a
// step: as many as leave registers for the sums.
#include "attention/forward_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

KERNEL(attention_hopper_forward_d64_bf16, HopperAttentionArgs, MOST_THREADS, 1) {
    HopperAttention<64, 128, 6>::run(args);
}
KERNEL(attention_hopper_forward_d128_bf16, HopperAttentionArgs, MOST_THREADS, 1) {
    HopperAttention<128, 128, 4>::run(args);
}
KERNEL(attention_hopper_forward_d256_bf16, HopperAttentionArgs, MOST_THREADS, 1) {
    HopperAttention<256, 64, 4>::run(args);
}

#endif
