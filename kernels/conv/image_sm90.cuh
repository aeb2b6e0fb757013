// Forward convolution, data gradient and linear layer on Hopper: one image product.
//
//   out[pixel, column] =
//       epilogue(sum over slabs s, taps t of source[pixel + offset(t), 64 s ..] * filter[t, 64 s .., column])
//
// in ascending order of the step s * taps + t, whatever the tile, the boxes and the split: all variants agree in every
// bit. Rows of a tile are a patch of output pixels (w, h, n); those beyond w * h * n are computed and not stored. bf16,
// f32 sums, bf16 out; or e4m3 with slabs of 128 channels and a scale a column, bf16 out. NHWC, KRSC. Grid: persistent,
// block b takes items b, b + gridDim.x, ...
//
// Warpgroup 0 loads: warp 0 both rings by TMA, in the order of consumption, warp 1 the residual. Warpgroups 1 and 2
// multiply and take whole items in turn (ping-pong), so that the epilogue of one runs under the products of the other.
//
// Shared memory: source slots | filter slots | 2 staging tiles (COLUMNS >= 64) | barriers.
// Registers: 168 a thread at launch; 40 for the loading warpgroup, 232 for the others.
// Limit: tensor cores (N / 2 cycles for m64nNk16) for 3x3 layers; L2 to shared memory where a box is read for each tap;
// bytes for 1x1 layers. Floor: 2 * pixels * columns * depth FLOPs; (source + filter + out + residual) bytes.
#pragma once

#include "conv/image_args.cuh"
#include "conv/image_finish.cuh"
#include "gemm/warpgroup_split.cuh"

#ifdef DEVICE_HAS_HOPPER

// T: of source and filter. The result is bf16 whatever it is.
template <int ROWS_, int COLUMNS_, bool TOTALS_, class T_ = bf16> struct ImageTile {
    using T = T_;
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int DEPTH = LINE_BYTES / sizeof(T); // channels of a slab
    static constexpr bool TOTALS = TOTALS_;
    static constexpr bool STAGED = COLUMNS % SLAB == 0; // else a few columns, stored directly
    static constexpr int FILTER_SLOT_BYTES = COLUMNS * LINE_BYTES;
    static constexpr int STAGING_BYTES = STAGED ? ROWS * COLUMNS * 2 : 0;
};

// Shared memory of a block.
template <class Tile> struct ImageMemory {
    Ring sources, filters;
    unsigned char* staging;
    uint64_t* residual_full; // one each consumer: the residual is in its staging tile
    uint64_t* residual_free; // its staging tile may be written
    uint64_t* next_item;     // all slots of the items before its next one are filled
    uint32_t* flags;

    __device__ __forceinline__ explicit ImageMemory(const ImageArgs& args) {
        unsigned char* filter_slots = shared_memory + args.source_slots * args.source_slot_bytes;
        staging = filter_slots + args.filter_slots * Tile::FILTER_SLOT_BYTES;
        auto* barriers = reinterpret_cast<uint64_t*>(staging + 2 * Tile::STAGING_BYTES);
        sources = {shared_memory, barriers, args.source_slots, args.source_slot_bytes};
        barriers += args.source_slots * Ring::BARRIERS_A_SLOT;
        filters = {filter_slots, barriers, args.filter_slots, Tile::FILTER_SLOT_BYTES};
        barriers += args.filter_slots * Ring::BARRIERS_A_SLOT;
        residual_full = barriers;
        residual_free = barriers + 2;
        next_item = barriers + 4;
        flags = reinterpret_cast<uint32_t*>(barriers + 6);
    }

    __device__ __forceinline__ void init() const {
        sources.init(WARPGROUP / 32);
        filters.init(WARPGROUP / 32);
        for (int consumer = 0; consumer < 2; ++consumer) {
            mbarrier_init(residual_full + consumer, 1);
            mbarrier_init(residual_free + consumer, 1);
            mbarrier_init(next_item + consumer, WARPGROUP / 32);
        }
        fence_mbarrier_init();
    }
};

// One thread: both rings, for all items of the block.
template <class Tile, bool BACKWARD>
__device__ __forceinline__ void load_operands(const ImageArgs& args, const ImageMemory<Tile>& memory) {
    RingCursor sources, filters;
    for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x)) {
        const ImageItem item(args, index, Tile::COLUMNS);
        const ImagePhase& phase = args.phases[item.phase];
        int slab = item.first_step / phase.taps, tap_number = item.first_step - slab * phase.taps;
        for (int step = item.first_step; step < item.last_step; ++step) {
            const ImageTap& tap = args.taps[phase.first_tap + tap_number];
            const bool second = slab >= args.source_slabs;
            const int channel = (second ? slab - args.source_slabs : slab) * Tile::DEPTH;
            if (args.box_each_tap || tap_number == 0 || step == item.first_step) {
                unsigned char* slot = memory.sources.acquire(sources, args.source_box_bytes);
                tma_load_4d(slot, &args.sources[(second ? args.source_views : 0) + tap.view],
                            memory.sources.full(sources.slot), channel, item.x + tap.x, item.y + tap.y, item.n);
                sources.advance(args.source_slots);
            }
            const int depth = second ? args.source_channels + channel : channel;
            unsigned char* slot = memory.filters.acquire(filters, Tile::FILTER_SLOT_BYTES);
            uint64_t* full = memory.filters.full(filters.slot);
            if constexpr (BACKWARD) {
#pragma unroll
                for (int group = 0; group < Tile::COLUMNS / SLAB; ++group) {
                    tma_load_3d(slot + group * SLAB * LINE_BYTES, &args.filter, full, item.column + group * SLAB,
                                tap.filter, depth);
                }
            } else {
                tma_load_3d(slot, &args.filter, full, depth, tap.filter, item.column);
            }
            filters.advance(args.filter_slots);
            if (++tap_number == phase.taps) {
                tap_number = 0;
                ++slab;
            }
        }
    }
}

// One thread: the residual of an item, to the staging tile of its consumer.
template <class Tile>
__device__ __forceinline__ void load_residual(const ImageArgs& args, const ImageMemory<Tile>& memory,
                                              const ImageItem& item, int consumer) {
    unsigned char* staging = memory.staging + consumer * Tile::STAGING_BYTES;
    const int groups = min((args.columns - item.column + SLAB - 1) / SLAB, Tile::COLUMNS / SLAB);
    const int patch_bytes = args.patch_w * args.patch_h * args.patch_n * LINE_BYTES;
    mbarrier_arrive_expect_tx(memory.residual_full + consumer, uint32_t(groups * patch_bytes));
    for (int group = 0; group < groups; ++group) {
        tma_load_4d(staging + group * Tile::ROWS * LINE_BYTES, &args.residual[item.phase],
                    memory.residual_full + consumer, item.column + group * SLAB, item.x, item.y, item.n);
    }
}

// One thread: the residuals of all items of the block.
template <class Tile>
__device__ __forceinline__ void load_residuals(const ImageArgs& args, const ImageMemory<Tile>& memory) {
    int turn = 0;
    for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x), ++turn) {
        const int consumer = turn % 2;
        mbarrier_wait(memory.residual_free + consumer, (turn / 2 + 1) % 2);
        load_residual(args, memory, ImageItem(args, index, Tile::COLUMNS), consumer);
    }
}

// The sums of an item. `sources` and `filters` stand at its first slots, and behind its last ones afterwards. Once the
// last slot is filled, the other consumer may look for its own: earlier it could take a slot's turn before for the one
// it awaits.
template <class Tile, class Product>
__device__ __forceinline__ void multiply(const ImageArgs& args, const ImageMemory<Tile>& memory, const ImageItem& item,
                                         uint64_t* others_turn, RingCursor& sources, RingCursor& filters,
                                         Product& product) {
    const ImagePhase& phase = args.phases[item.phase];
    const RowLayout rows{args.group_bytes, args.block_bytes};
    [[maybe_unused]] SegmentTotals<Product> totals;
    [[maybe_unused]] int left = args.segment_steps;
    [[maybe_unused]] bool first_segment = true;
    int tap_number = item.first_step % phase.taps;
    bool new_box = true, accumulate = false;
    uint32_t box = 0;
    RingCursor source = sources, filter = filters; // of the step before
    for (int step = item.first_step; step < item.last_step; ++step) {
        const bool old_box_done = new_box;
        const uint32_t old_source = source.slot, old_filter = filter.slot;
        if (new_box) {
            source = sources;
            box = memory.sources.wait(source);
            sources.advance(args.source_slots);
        }
        filter = filters;
        const uint32_t b = memory.filters.wait(filter);
        filters.advance(args.filter_slots);
        if (step + 1 == item.last_step && threadIdx.x % 32 == 0) {
            mbarrier_arrive(others_turn);
        }
        product.start(box + args.taps[phase.first_tap + tap_number].shift, rows, b, accumulate);
        accumulate = true;
        // The step before is complete: its slots go back.
        wgmma_wait<1>();
        if (step > item.first_step) {
            memory.filters.release(old_filter);
            if (old_box_done) {
                memory.sources.release(old_source);
            }
        }
        if (++tap_number == phase.taps) {
            tap_number = 0;
        }
        new_box = args.box_each_tap || tap_number == 0;
        if constexpr (Tile::TOTALS) {
            if (--left == 0 && step + 1 < item.last_step) {
                wgmma_wait<0>();
                totals.add(product, first_segment);
                first_segment = false;
                accumulate = false;
                left = args.segment_steps;
            }
        }
    }
    wgmma_wait<0>();
    memory.filters.release(filter.slot);
    memory.sources.release(source.slot);
    if constexpr (Tile::TOTALS) {
        if (!first_segment) {
            totals.add(product, false);
            totals.move_to(product);
        }
    }
}

// A consumer warpgroup: every second item of the block.
template <class Tile, bool BACKWARD>
__device__ __forceinline__ void consume(const ImageArgs& args, const ImageMemory<Tile>& memory, int consumer) {
    using Product = WarpgroupProduct<Tile::ROWS, Tile::COLUMNS, BACKWARD, typename Tile::T>;
    const bool leader = threadIdx.x % WARPGROUP == 0;
    unsigned char* staging = memory.staging + consumer * Tile::STAGING_BYTES;
    RingCursor sources, filters;
    uint32_t residual_parity = 0;
    int turn = 0;
    for (int index = int(blockIdx.x); index < args.items; index += int(gridDim.x), ++turn) {
        const ImageItem item(args, index, Tile::COLUMNS);
        if (turn % 2 != consumer) {
            sources.skip(uint32_t(item.boxes(args)), args.source_slots);
            filters.skip(uint32_t(item.last_step - item.first_step), args.filter_slots);
            continue;
        }
        if (turn > 0) {
            mbarrier_wait(memory.next_item + consumer, uint32_t(turn - 1) / 2 % 2);
        }
        Product product;
        multiply(args, memory, item, memory.next_item + (consumer ^ 1), sources, filters, product);
        if (args.split > 1) {
            const int64_t first = int64_t(item.tile) * args.split * (Tile::ROWS * Tile::COLUMNS);
            const SplitTile tile{args.partial + first, args.tickets + item.tile, uint32_t(args.split)};
            if (!sum_segments(product, tile, uint32_t(item.segment), consumer, memory.flags + consumer)) {
                continue;
            }
        }
        if constexpr (Tile::STAGED) {
            if (leader) {
                // Nothing reads the staging tile any more: earlier stores by this thread, earlier statistics by the
                // barriers behind them.
                tma_store_wait_read<0>();
                if (args.has_residual && args.split > 1) {
                    load_residual(args, memory, item, consumer);
                }
            }
            add_vectors(args, item, product);
            if (args.has_residual) {
                mbarrier_wait(memory.residual_full + consumer, residual_parity);
                residual_parity ^= 1;
            } else {
                consumer_sync(consumer);
            }
            stage(product, staging, args.has_residual != 0, args.scale);
            fence_proxy_async();
            consumer_sync(consumer);
            if (leader) {
                store_tile<Tile>(args, item, staging);
            }
            if (args.statistics) {
                store_statistics<Product>(args, item, staging);
                consumer_sync(consumer);
            }
            if (leader && args.has_residual && args.split == 1) {
                tma_store_wait_read<0>();
                mbarrier_arrive(memory.residual_free + consumer);
            }
        } else {
            store_directly(args, item, product);
        }
    }
    if (leader) {
        // Shared memory must outlive the stores that read it.
        tma_store_wait<0>();
    }
}

template <class Tile, bool BACKWARD> __device__ __forceinline__ void image_product(const ImageArgs& args) {
    const ImageMemory<Tile> memory(args);
    if (threadIdx.x == 0) {
        memory.init();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        set_max_registers_down<40>();
        if (threadIdx.x == 0) {
            load_operands<Tile, BACKWARD>(args, memory);
        } else if (Tile::STAGED && threadIdx.x == 32 && args.has_residual && args.split == 1) {
            load_residuals(args, memory);
        }
    } else {
        set_max_registers_up<232>();
        consume<Tile, BACKWARD>(args, memory, int(threadIdx.x) / WARPGROUP - 1);
    }
}

// Three warpgroups: 65536 / 384 registers a thread, to be dealt out anew.
constexpr int IMAGE_THREADS = 3 * WARPGROUP;

#endif
