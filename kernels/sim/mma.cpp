// ldmatrix, stmatrix and mma.sync. Each lane spreads its own operands into the warp's matrices, so that the last lane
// to arrive only multiplies.
#include <bit>
#include <cstring>

#include "sim/race.hpp"
#include "sim/warp_collective.hpp"

namespace sim {
namespace {

using Eight = float __attribute__((vector_size(32)));

float bf16_low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float bf16_high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

struct MatrixRows {
    uint32_t* registers;
    unsigned char* row;
};

void load_matrices(void* const* lanes, int matrices) {
    for (int m = 0; m < matrices; ++m) {
        for (int r = 0; r < 8; ++r) {
            uint32_t words[4];
            memcpy(words, static_cast<const MatrixRows*>(lanes[m * 8 + r])->row, 16);
            for (int word = 0; word < 4; ++word) {
                static_cast<MatrixRows*>(lanes[r * 4 + word])->registers[m] = words[word];
            }
        }
    }
}

void load_matrices_transposed(void* const* lanes, int matrices) {
    for (int m = 0; m < matrices; ++m) {
        uint16_t element[8][8];
        for (int r = 0; r < 8; ++r) {
            memcpy(element[r], static_cast<const MatrixRows*>(lanes[m * 8 + r])->row, 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int column = lane / 4, r = lane % 4 * 2;
            static_cast<MatrixRows*>(lanes[lane])->registers[m] =
                uint32_t(element[r][column]) | uint32_t(element[r + 1][column]) << 16;
        }
    }
}

void check_row(const char* instruction, const void* row, const void* where) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fail("%s: the row address is not a multiple of 16 bytes%s", instruction, source_line(where).c_str());
    }
}

void multiply(void* const* lanes, uint32_t) {
    // The lanes' pointers are to their accumulators; the operands wait in the warp.
    const MmaOperands& operands = current_warp().mma;
    // All accumulators first: a vector load right after the narrow stores it covers would wait for them.
    alignas(32) float sums[16][8];
#pragma GCC unroll 4
    for (int lane = 0; lane < 32; ++lane) {
        memcpy(&sums[lane / 4][lane % 4 * 2], static_cast<const float*>(lanes[lane]), 8);
        memcpy(&sums[lane / 4 + 8][lane % 4 * 2], static_cast<const float*>(lanes[lane]) + 2, 8);
    }
    for (int row = 0; row < 16; row += 8) {
        Eight sum[8];
        memcpy(sum, sums[row], sizeof(sum));
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) {
            Eight b;
            memcpy(&b, operands.b[k], sizeof(b));
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                sum[i] += operands.a[row + i][k] * b;
            }
        }
        memcpy(sums[row], sum, sizeof(sum));
    }
#pragma GCC unroll 4
    for (int lane = 0; lane < 32; ++lane) {
        memcpy(static_cast<float*>(lanes[lane]), &sums[lane / 4][lane % 4 * 2], 8);
        memcpy(static_cast<float*>(lanes[lane]) + 2, &sums[lane / 4 + 8][lane % 4 * 2], 8);
    }
}

}

void ldmatrix(uint32_t* out, const void* row, int matrices, bool transposed) {
    const void* where = __builtin_return_address(0);
    const bool gives_address = current_lane() < uint32_t(matrices) * 8;
    if (gives_address) {
        check_row("ldmatrix", row, where);
        race::read(row, 16, where);
    }
    MatrixRows own{out, static_cast<unsigned char*>(const_cast<void*>(row))};
    static constexpr CollectiveBody BODIES[2][2] = {
        {[](void* const* lanes, uint32_t) { load_matrices(lanes, 2); },
         [](void* const* lanes, uint32_t) { load_matrices_transposed(lanes, 2); }},
        {[](void* const* lanes, uint32_t) { load_matrices(lanes, 4); },
         [](void* const* lanes, uint32_t) { load_matrices_transposed(lanes, 4); }}};
    const CollectiveId id{Collective::ldmatrix, uint8_t(matrices * 2 + transposed)};
    collective(ALL_LANES, id, &own, BODIES[matrices == 4][transposed], where);
}

void stmatrix_x4(void* row, const uint32_t* values) {
    const void* where = __builtin_return_address(0);
    check_row("stmatrix", row, where);
    race::write(row, 16, where);
    MatrixRows own{const_cast<uint32_t*>(values), static_cast<unsigned char*>(row)};
    const CollectiveBody store = [](void* const* lanes, uint32_t) {
        for (int m = 0; m < 4; ++m) {
            for (int lane = 0; lane < 32; ++lane) {
                unsigned char* target = static_cast<MatrixRows*>(lanes[m * 8 + lane / 4])->row + lane % 4 * 4;
                memcpy(target, static_cast<MatrixRows*>(lanes[lane])->registers + m, 4);
            }
        }
    };
    collective(ALL_LANES, {Collective::stmatrix, 4}, &own, store, where);
}

void mma_m16n8k16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
    const void* where = __builtin_return_address(0);
    const uint32_t lane = current_lane(), group = lane / 4, pair = lane % 4 * 2;
    Warp& warp = current_warp();
    MmaOperands& operands = warp.mma;
#pragma GCC unroll 4
    for (uint32_t i = 0; i < 4; ++i) {
        // Both values of the register at once.
        const uint64_t floats = uint64_t(a[i] & 0xffff0000u) << 32 | uint32_t(a[i] << 16);
        memcpy(&operands.a[group + i % 2 * 8][pair + i / 2 * 8], &floats, sizeof(floats));
    }
    operands.b[pair][group] = bf16_low(b0);
    operands.b[pair + 1][group] = bf16_high(b0);
    operands.b[pair + 8][group] = bf16_low(b1);
    operands.b[pair + 9][group] = bf16_high(b1);
    if (warp.lanes != ALL_LANES) [[unlikely]] {
        fail("mma.sync: the warp has fewer than 32 threads%s", source_line(where).c_str());
    }
    collective(ALL_LANES, {Collective::mma, 0}, c, multiply, where);
}

}
