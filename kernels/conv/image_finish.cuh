// The end of an item of an image product: vectors added to the sums, the tile to global memory, statistics of what was
// stored.
#pragma once

#include "conv/image_args.cuh"
#include "gemm/warpgroup_epilogue.cuh"

#ifdef DEVICE_HAS_HOPPER

// The image that a row of the item's tile belongs to; rows beyond the patch are given the last image.
__device__ __forceinline__ int image_of_row(const ImageArgs& args, const ImageItem& item, int row) {
    return min(item.n + row / (args.patch_w * args.patch_h), args.images - 1);
}

template <class Product>
__device__ __forceinline__ void add_vectors(const ImageArgs& args, const ImageItem& item, Product& product) {
    if constexpr (Product::E4M3) {
        scale_columns(product, args.column_scale, item.column, args.columns);
    }
    if (args.bias) {
        add_bias(product, args.bias, item.column, args.columns);
    }
    if (args.per_image) {
        add_per_image(product, static_cast<const bf16*>(args.per_image), item.column, args.columns,
                      [&](int row) { return image_of_row(args, item, row); });
    }
}

// One thread: the staging tile to the phase's view, which cuts what lies outside.
template <class Tile>
__device__ __forceinline__ void store_tile(const ImageArgs& args, const ImageItem& item, const unsigned char* staging) {
#pragma unroll
    for (int group = 0; group < Tile::COLUMNS / SLAB; ++group) {
        const int column = item.column + group * SLAB;
        if (column < args.columns) {
            tma_store_4d(&args.out[item.phase], staging + group * Tile::ROWS * LINE_BYTES, column, item.x, item.y,
                         item.n);
        }
    }
    tma_store_commit();
}

// A thread a column: mean and M2 of the cells of the item's patch that lie in the image. Deviations from a cell's first
// pixel are summed, so that nothing cancels where the mean is large. What a cell gives depends on its pixels alone.
template <class Product>
__device__ __forceinline__ void store_statistics(const ImageArgs& args, const ImageItem& item,
                                                 const unsigned char* staging) {
    const int column = int(threadIdx.x) % WARPGROUP;
    if (column >= Product::COLUMNS || item.column + column >= args.columns) {
        return;
    }
    const int width = min(args.patch_w, args.out_w - item.x), height = min(args.patch_h, args.out_h - item.y);
    const int images = min(args.patch_n, args.images - item.n);
    const int cells_x = args.out_w / args.cell_w, cells = cells_x * (args.out_h / args.cell_h);
    const float inverse = 1.0f / float(args.cell_w * args.cell_h);
    for (int image = 0; image < images; ++image) {
        for (int top = 0; top < height; top += args.cell_h) {
            for (int left = 0; left < width; left += args.cell_w) {
                const int first_row = (image * args.patch_h + top) * args.patch_w + left;
                const float shift = staged<Product>(staging, first_row, column);
                float sum = 0.0f, square = 0.0f;
                for (int y = 0; y < args.cell_h; ++y) {
                    for (int x = 0; x < args.cell_w; ++x) {
                        const float d = staged<Product>(staging, first_row + y * args.patch_w + x, column) - shift;
                        sum += d;
                        square = fmaf(d, d, square);
                    }
                }
                const float offset = sum * inverse;
                const int cell = (item.y + top) / args.cell_h * cells_x + (item.x + left) / args.cell_w;
                const int64_t part = (int64_t(item.n + image) * args.phase_count + item.phase) * cells + cell;
                args.statistics[part * args.columns + item.column + column] = {
                    shift + offset, fmaxf(fmaf(-offset, sum, square), 0.0f)};
            }
        }
    }
}

// Without a staging tile: each thread stores the columns of its fragments that exist.
template <class Product>
__device__ __forceinline__ void store_directly(const ImageArgs& args, const ImageItem& item, const Product& product) {
    const auto* per_image = static_cast<const bf16*>(args.per_image);
    const auto* residual = static_cast<const bf16*>(args.direct_residual);
    auto* out = static_cast<bf16*>(args.direct_out);
#pragma unroll
    for (int block = 0; block < Product::BLOCKS; ++block) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = block * 64 + half * 8 + fragment_row();
            const int line = row / args.patch_w, x = item.x + row - line * args.patch_w;
            const int image = item.n + line / args.patch_h, y = item.y + line % args.patch_h;
            if (row >= args.patch_w * args.patch_h * args.patch_n || x >= args.out_w || y >= args.out_h ||
                image >= args.images) {
                continue;
            }
            const int64_t pixel = (int64_t(image) * args.out_h + y) * args.out_w + x;
#pragma unroll
            for (int i = 0; i < Product::COUNT; ++i) {
                if (i / 2 % 2 != half) {
                    continue;
                }
                const int column = item.column + i / 4 * 8 + fragment_column() + i % 2;
                if (column < args.columns) {
                    float value = product.sums[block][i];
                    value += args.bias ? args.bias[column] : 0.0f;
                    value += per_image ? to_float(per_image[int64_t(image) * args.columns + column]) : 0.0f;
                    value += residual ? to_float(residual[pixel * args.columns + column]) : 0.0f;
                    out[pixel * args.columns + column] = from_float<bf16>(value * args.scale);
                }
            }
        }
    }
}

#endif
