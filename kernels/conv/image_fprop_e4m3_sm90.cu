// Forward convolutions of quantised images with quantised filters on Hopper; see image_sm90.cuh. e4m3 operands make half the
// bytes of bf16 and half the steps, each of the same time.
//   out = (scale[column] * sum + bias + per_image + residual) * scale, bf16
// Variants: rows x columns of the tile.
#include "conv/image_sm90.cuh"

#ifdef DEVICE_HAS_HOPPER

KERNEL(conv_hopper_fprop_128x128_e4m3, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<128, 128, false, e4m3>, false>(args);
}
KERNEL(conv_hopper_fprop_128x64_e4m3, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<128, 64, true, e4m3>, false>(args);
}
KERNEL(conv_hopper_fprop_64x64_e4m3, ImageArgs, IMAGE_THREADS, 1) {
    image_product<ImageTile<64, 64, true, e4m3>, false>(args);
}

#endif
