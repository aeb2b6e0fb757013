// What an image product on Hopper computes, as tables: tiles of pixels, the steps of their depth, and where each step's
// operands lie. `struct ImageArgs` of src/backend/gpu/lower/hopper/image.rs.
//
// A *view* is a tensor map on every stride-th pixel of a tensor from some pixel on. Through views every convolution is
// of stride 1: a strided forward pass reads one view of x a parity, a strided data gradient writes one view of dx a
// phase.
#pragma once

#include "gemm/ring.cuh"
#include "gemm/warpgroup_product.cuh"

#ifdef DEVICE_HAS_HOPPER

// One tap of a phase.
struct ImageTap {
    int16_t view;   // of each source
    int16_t filter; // number of the tap in the filter
    int16_t x, y;   // where the step's box begins, from the patch's first pixel
    uint32_t shift; // bytes from the box's first line to the tap's
};

struct ImagePhase {
    int32_t first_tap, taps, steps;
};

// Mean and sum of squared deviations of the stored values of a channel, over a cell: cell_w x cell_h pixels of a phase of an
// image, which they cover without rest. A patch is made of whole cells.
struct ChannelMoments {
    float mean, m2;
};

struct ImageArgs {
    static constexpr int VIEWS = 4, TAPS = 16, PHASES = 4;

    TensorMap sources[VIEWS]; // source 0's views, then source 1's; [channels, x, y, images]
    TensorMap filter;         // [C, taps, K]
    TensorMap out[PHASES];    // [columns, x, y, images]
    TensorMap residual[PHASES];
    ImageTap taps[TAPS];
    ImagePhase phases[PHASES];

    void* direct_out; // [images, out_h, out_w, columns], where there are no views of it; and so the residual
    const void* direct_residual;
    const float* bias;      // [columns] or null
    const void* per_image;  // [images, columns] or null
    float* partial;         // split: [tiles][segments][tile], else null
    uint32_t* tickets;      // split: [tiles], zero before and after
    ChannelMoments* statistics; // [images, phases * cells, columns] or null; staged
    const float* column_scale;  // e4m3: [columns], what 1 in both operands stands for

    int32_t images, out_h, out_w, columns; // of the longest phase
    int32_t source_slabs;    // of source 0, 128 bytes of channels each
    int32_t source_channels; // of source 0
    int32_t source_views;    // of each source
    int32_t patch_w, patch_h, patch_n;
    int32_t patches_x, patches_y, patches_n, column_tiles;
    int32_t items;
    int32_t split;         // segments of a tile that are items of their own, or 1
    int32_t segment_steps;
    int32_t box_each_tap;  // one box a step; else one a slab, for all taps of a phase
    uint32_t source_box_bytes, source_slot_bytes, source_slots, filter_slots;
    uint32_t group_bytes, block_bytes; // RowLayout of a source slot
    int32_t has_residual;
    float scale;
    int32_t cell_w, cell_h;
    int32_t phase_count;
};

// A work item: a tile of the result, or one segment of its depth.
struct ImageItem {
    int phase, segment, tile;
    int patch_x, patch_y;
    int x, y, n, column; // the tile's first output pixel and column
    int first_step, last_step;

    // Columns run fastest, so that the blocks that share pixels run together.
    __device__ __forceinline__ ImageItem(const ImageArgs& args, int index, int tile_columns) {
        int rest = index / args.column_tiles;
        const int column_tile = index - rest * args.column_tiles;
        segment = rest % args.split;
        rest /= args.split;
        tile = rest * args.column_tiles + column_tile;
        patch_x = rest % args.patches_x;
        rest /= args.patches_x;
        patch_y = rest % args.patches_y;
        rest /= args.patches_y;
        phase = rest / args.patches_n;
        x = patch_x * args.patch_w;
        y = patch_y * args.patch_h;
        n = (rest - phase * args.patches_n) * args.patch_n;
        column = column_tile * tile_columns;
        const int steps = args.phases[phase].steps;
        first_step = args.split > 1 ? segment * args.segment_steps : 0;
        last_step = args.split > 1 ? min(first_step + args.segment_steps, steps) : steps;
    }

    // Boxes that the item reads.
    __device__ __forceinline__ int boxes(const ImageArgs& args) const {
        const int taps = args.box_each_tap ? 1 : args.phases[phase].taps;
        return (last_step - 1) / taps - first_step / taps + 1;
    }
};

#endif
