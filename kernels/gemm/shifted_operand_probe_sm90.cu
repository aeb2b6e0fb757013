// Does wgmma find its operands where the swizzle put them when they begin at any row of a box?
//
// TMA and wgmma exchange the 16-byte pieces of a 128-byte row by the row's number in a block of 1024 bytes. Whether that
// number is taken from the address, or from the position in the operand, shows once an operand begins between two
// blocks, or its groups of eight rows are not whole blocks apart. By address, one box of pixels serves every tap of a
// filter: tap (dy, dx) of a box PITCH pixels wide begins dy * PITCH + dx rows further on.
//
//     by_row[shift][m][n]    = sum over k of box[row(m) + shift][k] tile[n][k]      row(i) = i / 8 * PITCH + i % 8
//     by_depth[shift][m][n]  = sum over k of tile[m][k] box[row(k) + shift][n]      m, n, k < 64
//
// box [ROWS][64] and tile [64][64] in bf16, both results in f32. A block a shift; 128 threads; 21 KiB of shared memory.
// It runs once when a device is opened; nothing depends on its speed.
#include "device/device.cuh"

#ifdef DEVICE_HAS_HOPPER

// `struct Args` of src/backend/gpu/driver/shifted_operands.rs.
struct ShiftedOperandArgs {
    TensorMap box, tile;
    float *by_row, *by_depth;
};

namespace shifted_operand {

constexpr uint32_t PITCH = 10, ROWS = 104, ROW_BYTES = 128, SIDE = 64;
constexpr uint32_t BOX_BYTES = ROWS * ROW_BYTES, TILE_BYTES = SIDE * ROW_BYTES;
constexpr uint32_t GROUP_BYTES = PITCH * ROW_BYTES;

__device__ void store(const float (&d)[SIDE / 2], float* out) {
    const uint32_t t = threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < SIDE / 2; ++i) {
        const uint32_t row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
        out[row * SIDE + column] = d[i];
    }
}

}

KERNEL(gemm_shifted_operand_probe, ShiftedOperandArgs, 128) {
    using namespace shifted_operand;
    unsigned char *const box = shared_memory, *const tile = shared_memory + BOX_BYTES;
    auto* arrived = reinterpret_cast<uint64_t*>(tile + TILE_BYTES);
    if (threadIdx.x == 0) {
        mbarrier_init(arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(arrived, BOX_BYTES + TILE_BYTES);
        tma_load_2d(box, &args.box, arrived, 0, 0);
        tma_load_2d(tile, &args.tile, arrived, 0, 0);
    }
    mbarrier_wait(arrived, 0);

    const uint32_t shift = blockIdx.x, shifted = shared_address(box) + shift * ROW_BYTES, whole = shared_address(tile);
    float by_row[SIDE / 2], by_depth[SIDE / 2];
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < SIDE / 16; ++k) {
        // 16 of the depth: 32 bytes of a row where rows are the operand's, two groups of rows where they are its depth.
        const uint64_t rows = wgmma_descriptor(shifted + k * 32, 16, GROUP_BYTES, Swizzle::bytes128);
        const uint64_t depth = wgmma_descriptor(shifted + k * 2 * GROUP_BYTES, 16, GROUP_BYTES, Swizzle::bytes128);
        const uint64_t plain = wgmma_descriptor(whole + k * 32, 16, 1024, Swizzle::bytes128);
        wgmma_ss<SIDE>(by_row, rows, plain, k > 0);
        wgmma_ss<SIDE, true>(by_depth, plain, depth, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    store(by_row, args.by_row + shift * SIDE * SIDE);
    store(by_depth, args.by_depth + shift * SIDE * SIDE);
}

#endif
