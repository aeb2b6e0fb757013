// Where a norm's x lies: in one tensor, or in two that follow one another in the channels (a concatenation that nobody
// wrote), each perhaps with moments that its producer left.
#pragma once

#include "norm/tile.cuh"

// Of one channel over one part of an image: what the producer of a tensor measured of the values it stored.
struct PartMoments {
    float mean;
    float m2; // sum of squared deviations
};

struct NormSource {
    const void* x;              // [N, P, channels]
    const PartMoments* moments; // [N, parts, channels], or null
    uint32_t channels;
    uint32_t parts_x; // parts side by side
    uint32_t parts;   // of an image: patches in rows of parts_x, cut off at the right and the bottom
    uint32_t patch_w;
    uint32_t patch_h;
    uint32_t padding;
};

// A column of a tile: the channels from `channel` on, which lie in one source.
template <class T> struct SourceColumn {
    const T* at; // first row of the tile
    uint32_t stride;

    template <class Args> __device__ SourceColumn(const Args& args, const Tile& tile, uint32_t channel) {
        const bool second = channel >= args.first.channels;
        stride = second ? args.second.channels : args.first.channels;
        const T* x = static_cast<const T*>(second ? args.second.x : args.first.x);
        const uint32_t own = second ? channel - args.first.channels : channel;
        at = x + (uint64_t(tile.image) * args.pixels + tile.row) * stride + own;
    }

    __device__ __forceinline__ const T* row(uint32_t row) const { return at + uint64_t(row) * stride; }
};
