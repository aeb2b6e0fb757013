// The cut of an image into blocks, the same forward and backward.
#pragma once

#include "device/device.cuh"

// The part of one image that a block works on: a slice of the channels over a chunk of the rows. `Args` has the cut:
// slice, slices, chunk_rows, pixels and channels.
struct Tile {
    uint32_t image, channel, channels, row, rows;

    template <class Args> __device__ explicit Tile(const Args& args) {
        image = blockIdx.x / args.slices;
        channel = (blockIdx.x - image * args.slices) * args.slice;
        channels = min(args.slice, args.channels - channel);
        row = blockIdx.y * args.chunk_rows;
        rows = min(args.chunk_rows, args.pixels - row);
    }

    // Offset of the tile's first element.
    template <class Args> __device__ uint64_t offset(const Args& args) const {
        return (uint64_t(image) * args.pixels + row) * args.channels + channel;
    }
};
