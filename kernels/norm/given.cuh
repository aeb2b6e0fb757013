// Moments of a group from those that the producers of x left: one warp, two sweeps in fixed order, as `group_moments`.
#pragma once

#include "norm/moments.cuh"
#include "norm/source.cuh"

// Calls each(pixels, moments) for `count` channels from `channel` on in every part of an image, dealt to a warp.
template <class Each>
__device__ __forceinline__ void for_each_part(const NormSource& source, uint32_t image, uint32_t width, uint32_t height,
                                              uint32_t channel, uint32_t count, Each each) {
    const PartMoments* moments = source.moments + uint64_t(image) * source.parts * source.channels + channel;
    for (uint32_t e = threadIdx.x % 32; e < source.parts * count; e += 32) {
        const uint32_t part = e / count;
        const uint32_t part_y = part / source.parts_x;
        const uint32_t w = min(source.patch_w, width - (part - part_y * source.parts_x) * source.patch_w);
        const uint32_t h = min(source.patch_h, height - part_y * source.patch_h);
        each(w * h, moments[uint64_t(part) * source.channels + (e - part * count)]);
    }
}

// The group's channels may begin in the first source and end in the second.
template <class Args, class Each>
__device__ __forceinline__ void for_each_moment(const Args& args, uint32_t image, uint32_t group, Each each) {
    const uint32_t begin = group * (args.channels / args.groups), end = begin + args.channels / args.groups;
    const uint32_t seam = min(max(args.first.channels, begin), end);
    const uint32_t width = args.width, height = args.pixels / args.width;
    for_each_part(args.first, image, width, height, begin, seam - begin, each);
    if (seam < end) {
        for_each_part(args.second, image, width, height, seam - args.first.channels, end - seam, each);
    }
}

template <class Args> __device__ __forceinline__ Moments given_moments(const Args& args, uint32_t image, uint32_t group) {
    double sum = 0.0;
    for_each_moment(args, image, group, [&](uint32_t pixels, PartMoments part) {
        sum += double(pixels) * double(part.mean);
    });
    const double mean = warp_sum(sum) * args.inverse_count;
    double m2 = 0.0;
    for_each_moment(args, image, group, [&](uint32_t pixels, PartMoments part) {
        const double d = double(part.mean) - mean;
        m2 += double(part.m2) + double(pixels) * d * d;
    });
    return Moments{mean, warp_sum(m2)};
}
