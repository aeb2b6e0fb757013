// The layouts that wgmma's shared memory descriptors stand for (PTX ISA, "Asynchronous warpgroup level matrix shared
// memory layout").
#pragma once

#include "sim/runtime.hpp"
#include "sim/warp_collective.hpp"

namespace sim {

// The number of products that one instruction adds to an element: 32 bytes of either type.
inline int depth(const Wgmma& operation) { return operation.e4m3 ? 32 : 16; }

// Byte offset in dynamic shared memory of element (row, k) of an operand; `row` counts m for a and n for b. Only K-major
// operands have elements of one byte.
inline size_t operand_offset(uint64_t descriptor, bool mn_major, int row, int k, int bytes) {
    const size_t start = (descriptor & 0x3fff) << 4;
    const size_t leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    // Swizzle codes 1, 2, 3 mean 128, 64, 32 bytes.
    const int code = int(descriptor >> 62);
    const size_t chunks = code == 0 ? 1 : size_t(16) >> code;
    size_t offset = start;
    if (!mn_major) {
        offset += size_t(row / 8) * stride + size_t(row % 8) * 16 * chunks;
        const auto along = size_t(k) * bytes;
        offset += code == 0 ? along / 16 * leading + along % 16 : along;
    } else {
        const auto chunk = size_t(row / 8);
        if (code == 0) {
            offset += chunk * stride + size_t(k / 8) * leading;
        } else {
            offset += chunk % chunks * 16 + chunk / chunks * leading + size_t(k / 8) * stride;
        }
        offset += size_t(k % 8) * 16 * chunks + size_t(row % 8) * 2;
    }
    return offset ^ ((offset >> 7 & (chunks - 1)) << 4);
}

}
