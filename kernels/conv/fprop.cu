// Kernels of the forward convolution; see conv.cuh. Variants: tile (shapes.cuh); gather = channels that are no multiple of
// 16 bytes.
#include "conv/conv.cuh"
#include "conv/shapes.cuh"

KERNEL(conv_fprop_large_bf16, ConvArgs, LargeTile::THREADS, 2) { convolution<LargeTile, false, true>(args); }
KERNEL(conv_fprop_medium_bf16, ConvArgs, MediumTile::THREADS, 2) { convolution<MediumTile, false, true>(args); }
KERNEL(conv_fprop_small_bf16, ConvArgs, SmallTile::THREADS, 3) { convolution<SmallTile, false, true>(args); }
KERNEL(conv_fprop_narrow_bf16, ConvArgs, NarrowTile::THREADS, 3) { convolution<NarrowTile, false, true>(args); }
KERNEL(conv_fprop_gather_bf16, ConvArgs, SmallTile::THREADS) { convolution<SmallTile, false, false>(args); }
KERNEL(conv_fprop_small_f32, ConvArgs, FloatTile::THREADS) { convolution<FloatTile, false, true>(args); }
KERNEL(conv_fprop_gather_f32, ConvArgs, FloatTile::THREADS) { convolution<FloatTile, false, false>(args); }
