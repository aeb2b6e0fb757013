// The pipeline of every matrix product here: loaders bring tiles of A and B into a ring of stages, STAGES - 1 steps ahead of
// the product that consumes them.
//
// The depth is cut into segments of `segment_steps` steps. An element's value is the sum of its segments in ascending order,
// each summed from zero. One block adds all its segments (`close_segment` into totals), or one launch gives each segment to
// a block of its own and a second launch adds them (epilogue.cuh): the same additions in the same order, hence the same
// bits. So the number of segments belongs to the shape of one image, and the way of launching may follow the batch.
#pragma once

#include "gemm/fused_multiply_add.cuh"
#include "gemm/tensor_core.cuh"

template <class Shape, Major A_MAJOR, Major B_MAJOR, bool ROW_SUMS, class T = typename Shape::T> struct ProductFor;
template <class Shape, Major A_MAJOR, Major B_MAJOR, bool ROW_SUMS>
struct ProductFor<Shape, A_MAJOR, B_MAJOR, ROW_SUMS, bf16> {
    using Type = TensorCoreProduct<Shape, A_MAJOR, B_MAJOR, ROW_SUMS>;
};
template <class Shape, Major A_MAJOR, Major B_MAJOR, bool ROW_SUMS>
struct ProductFor<Shape, A_MAJOR, B_MAJOR, ROW_SUMS, float> {
    using Type = FusedMultiplyAddProduct<Shape, A_MAJOR, B_MAJOR, ROW_SUMS>;
};

// A loader has fill(tile), which brings in the tile of its current step, and advance(), which moves to the next step.
// Ends with a barrier: shared memory is free again.
template <class Shape, class Product, class ALoader, class BLoader>
__device__ __forceinline__ void mainloop(Product& product, ALoader& a, BLoader& b, int steps, int segment_steps,
                                         bool row_sums) {
    constexpr int STAGES = Shape::STAGES;
    static_assert(Product::A::BYTES + Product::B::BYTES == Shape::STAGE_BYTES);

    const auto load = [&](int step) {
        if (step < steps) {
            unsigned char* tile = shared_memory + step % STAGES * Shape::STAGE_BYTES;
            a.fill(tile);
            b.fill(tile + Product::A::BYTES);
            a.advance();
            b.advance();
        }
        // Groups are committed when empty too: the count of those under way then says which stage is complete.
        cp_async_commit();
    };
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        load(step);
    }
    int until_segment_end = segment_steps;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // Everyone's copies of this step have arrived, and everyone is done with the stage that is filled next.
        __syncthreads();
        load(step + STAGES - 1);
        const unsigned char* tile = shared_memory + step % STAGES * Shape::STAGE_BYTES;
        product.add(tile, tile + Product::A::BYTES, row_sums);
        if (--until_segment_end == 0) {
            product.close_segment();
            until_segment_end = segment_steps;
        }
    }
    product.close_segment();
    cp_async_wait<0>();
    __syncthreads();
}
