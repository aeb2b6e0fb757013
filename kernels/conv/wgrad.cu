// Kernels of the weight gradient of a convolution; see wgrad.cuh. Variants: tile (shapes.cuh); gather_dy = only the output
// channels are no multiple of 16 bytes (the last layer of a network, whose wide input deserves vector loads); gather = the
// input channels are not.
#include "conv/shapes.cuh"
#include "conv/wgrad.cuh"

KERNEL(conv_wgrad_large_bf16, WgradArgs, LargeTile::THREADS, 2) { weight_gradient<LargeTile, true, true>(args); }
KERNEL(conv_wgrad_small_bf16, WgradArgs, SmallGradientTile::THREADS, 3) {
    weight_gradient<SmallGradientTile, true, true>(args);
}
KERNEL(conv_wgrad_gather_dy_bf16, WgradArgs, SmallGradientTile::THREADS) {
    weight_gradient<SmallGradientTile, false, true>(args);
}
KERNEL(conv_wgrad_gather_bf16, WgradArgs, SmallGradientTile::THREADS) {
    weight_gradient<SmallGradientTile, false, false>(args);
}
KERNEL(conv_wgrad_small_f32, WgradArgs, FloatGradientTile::THREADS) {
    weight_gradient<FloatGradientTile, true, true>(args);
}
KERNEL(conv_wgrad_gather_f32, WgradArgs, FloatGradientTile::THREADS) {
    weight_gradient<FloatGradientTile, false, false>(args);
}
