// What a TensorMap's 128 bytes hold in the simulator.
#pragma once

#include "sim/state.hpp"

namespace sim {

struct EncodedMap {
    uint64_t magic;
    unsigned char* base;
    uint64_t dimension[5];
    uint64_t stride[4]; // bytes, of dimensions 1 and up
    uint16_t box[5];    // tiled
    uint8_t element_stride[5];
    uint8_t rank, element_bytes, swizzle, im2col;
    int16_t lower[3], upper[3]; // im2col: corners of the box of base pixels; w, h, d
    uint16_t channels, pixels;

    uint32_t copied(int d) const { return (box[d] + element_stride[d] - 1u) / element_stride[d]; }
    // Rows of shared memory that a copy fills, and the bytes of each.
    uint32_t rows() const;
    uint32_t row_bytes() const { return (im2col ? channels : copied(0)) * element_bytes; }
};
static_assert(sizeof(EncodedMap) <= sizeof(TensorMap));

constexpr uint64_t MAP_MAGIC = 0x70616d726f736e74;

inline uint32_t EncodedMap::rows() const {
    if (im2col) {
        return pixels;
    }
    uint32_t rows = 1;
    for (int d = 1; d < rank; ++d) {
        rows *= copied(d);
    }
    return rows;
}

// Where a swizzled copy puts the byte at `offset`: 16-byte chunks of a row are exchanged by the row's number. `swizzle`
// as CUtensorMapSwizzle: 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes.
inline size_t swizzled(size_t offset, int swizzle) {
    const size_t chunks = (size_t(1) << swizzle) - 1;
    return offset ^ ((offset >> 7 & chunks) << 4);
}

// ---- launch.cpp ----
void set_last_error(const std::string& message);

}
