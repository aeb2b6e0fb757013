// Weight gradients on Hopper: see wgrad_sm90.cuh. Names: taps of a tile, channels of a tile.
#include "conv/wgrad_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

KERNEL(conv_hopper_wgrad_3x128_bf16, HopperWgradArgs, 384, 1) { HopperWgrad<3, 128>::run(args); }
KERNEL(conv_hopper_wgrad_3x64_bf16, HopperWgradArgs, 384, 1) { HopperWgrad<3, 64>::run(args); }
KERNEL(conv_hopper_wgrad_1x128_bf16, HopperWgradArgs, 384, 1) { HopperWgrad<1, 128>::run(args); }
KERNEL(conv_hopper_wgrad_1x64_bf16, HopperWgradArgs, 384, 1) { HopperWgrad<1, 64>::run(args); }

#endif
