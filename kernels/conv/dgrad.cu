// Kernels of the data gradient of a convolution; see conv.cuh. Variants: tile (shapes.cuh); gather = input or output
// channels that are no multiple of 16 bytes.
#include "conv/conv.cuh"
#include "conv/shapes.cuh"

KERNEL(conv_dgrad_large_bf16, ConvArgs, LargeTile::THREADS, 2) { convolution<LargeTile, true, true>(args); }
KERNEL(conv_dgrad_medium_bf16, ConvArgs, MediumTile::THREADS, 2) { convolution<MediumTile, true, true>(args); }
KERNEL(conv_dgrad_small_bf16, ConvArgs, SmallTile::THREADS, 3) { convolution<SmallTile, true, true>(args); }
KERNEL(conv_dgrad_gather_bf16, ConvArgs, SmallTile::THREADS) { convolution<SmallTile, true, false>(args); }
KERNEL(conv_dgrad_small_f32, ConvArgs, FloatTile::THREADS) { convolution<FloatTile, true, true>(args); }
KERNEL(conv_dgrad_gather_f32, ConvArgs, FloatTile::THREADS) { convolution<FloatTile, true, false>(args); }
