// Data gradients of convolutions and linear layers on Hopper; see image_sm90.cuh. Variants: rows x columns of the tile.
#include "conv/image_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

KERNEL(conv_hopper_dgrad_128x128_bf16, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<128, 128, false>, true>(args);
}
KERNEL(conv_hopper_dgrad_128x64_bf16, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<128, 64, true>, true>(args);
}
KERNEL(conv_hopper_dgrad_64x64_bf16, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<64, 64, true>, true>(args);
}

#endif
