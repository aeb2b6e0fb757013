// Encoding of tensor maps, with the driver's rules (CUDA driver API, tensor map object management).
#include "sim/tensor_map.hpp"

#include <cstring>

namespace sim {
namespace {

// By CUtensorMapDataType: u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16, f32 flushed, tf32, tf32 flushed.
constexpr uint8_t ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr uint32_t SWIZZLE_SPAN[] = {0, 32, 64, 128};

struct Parameters {
    int32_t data_type;
    uint32_t rank;
    void* address;
    const uint64_t *dimensions, *strides;
    const uint32_t* element_strides;
    int32_t interleave, swizzle, oob_fill;
};

const char* encode_common(const Parameters& p, EncodedMap& map) {
    if (p.data_type < 0 || p.data_type >= int32_t(sizeof(ELEMENT_BYTES))) {
        return "the data type is none of CUtensorMapDataType";
    }
    if (p.rank < 1 || p.rank > 5) {
        return "the rank is not 1 to 5";
    }
    if (reinterpret_cast<uintptr_t>(p.address) % 16 != 0) {
        return "the tensor's address is not a multiple of 16 bytes";
    }
    if (p.interleave != 0 || p.oob_fill != 0) {
        return "interleaved layouts and NaN fill are not simulated";
    }
    if (p.swizzle < 0 || p.swizzle > 3) {
        return "the swizzle is not 0 to 3";
    }
    map.magic = MAP_MAGIC;
    map.base = static_cast<unsigned char*>(p.address);
    map.rank = uint8_t(p.rank);
    map.element_bytes = ELEMENT_BYTES[p.data_type];
    map.swizzle = uint8_t(p.swizzle);
    for (uint32_t d = 0; d < p.rank; ++d) {
        if (p.dimensions[d] == 0 || p.dimensions[d] > uint64_t(1) << 32) {
            return "a dimension is 0 or beyond 2^32";
        }
        if (p.element_strides[d] == 0 || p.element_strides[d] > 8) {
            return "an element stride is not 1 to 8";
        }
        map.dimension[d] = p.dimensions[d];
        map.element_stride[d] = uint8_t(p.element_strides[d]);
        if (d > 0) {
            const uint64_t stride = p.strides[d - 1];
            if (stride % 16 != 0 || stride >= uint64_t(1) << 40) {
                return "a stride is not a multiple of 16 bytes below 2^40";
            }
            map.stride[d - 1] = stride;
        }
    }
    return nullptr;
}

const char* check_row(const EncodedMap& map) {
    const uint32_t bytes = map.row_bytes();
    if (bytes % 16 != 0) {
        return "the innermost extent of the box is not a multiple of 16 bytes";
    }
    if (map.swizzle != 0 && bytes > SWIZZLE_SPAN[map.swizzle]) {
        return "the innermost extent of the box is wider than the swizzle";
    }
    return nullptr;
}

int32_t finish(const char* problem, const EncodedMap& map, void* out) {
    if (!problem && reinterpret_cast<uintptr_t>(out) % 64 != 0) {
        problem = "the map's own address is not a multiple of 64 bytes";
    }
    if (problem) {
        set_last_error(std::string("tensor map: ") + problem);
        return 1;
    }
    memset(out, 0, sizeof(TensorMap));
    memcpy(out, &map, sizeof(map));
    return 0;
}

const char* encode_box(const uint32_t* box, EncodedMap& map) {
    for (int d = 0; d < map.rank; ++d) {
        if (box[d] == 0 || box[d] > 256) {
            return "an extent of the box is not 1 to 256";
        }
        map.box[d] = uint16_t(box[d]);
    }
    return check_row(map);
}

const char* encode_corners(const int32_t* lower, const int32_t* upper, uint32_t channels, uint32_t pixels,
                           EncodedMap& map) {
    if (map.rank < 3) {
        return "im2col needs rank 3 to 5";
    }
    if (channels == 0 || channels > 256 || pixels == 0 || pixels > 1024) {
        return "im2col copies 1 to 256 channels of 1 to 1024 pixels";
    }
    // 16, 8 or 5 bits for 1, 2 or 3 spatial dimensions.
    const int limit = map.rank == 3 ? 32768 : map.rank == 4 ? 128 : 16;
    for (int d = 0; d < map.rank - 2; ++d) {
        if (lower[d] < -limit || lower[d] >= limit || upper[d] < -limit || upper[d] >= limit) {
            return "a corner is out of its range";
        }
        if (lower[d] >= int64_t(map.dimension[d + 1]) + upper[d]) {
            return "the corners leave no base pixels";
        }
        map.lower[d] = int16_t(lower[d]);
        map.upper[d] = int16_t(upper[d]);
    }
    map.im2col = 1;
    map.channels = uint16_t(channels);
    map.pixels = uint16_t(pixels);
    return check_row(map);
}

}
}

using namespace sim;

int32_t sim_tensor_map_tiled(void* out, int32_t data_type, uint32_t rank, void* address, const uint64_t* dimensions,
                             const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                             int32_t interleave, int32_t swizzle, int32_t, int32_t oob_fill) {
    EncodedMap map{};
    const char* problem = encode_common(
        {data_type, rank, address, dimensions, strides, element_strides, interleave, swizzle, oob_fill}, map);
    return finish(problem ? problem : encode_box(box, map), map, out);
}

int32_t sim_tensor_map_im2col(void* out, int32_t data_type, uint32_t rank, void* address, const uint64_t* dimensions,
                              const uint64_t* strides, const int32_t* lower, const int32_t* upper, uint32_t channels,
                              uint32_t pixels, const uint32_t* element_strides, int32_t interleave, int32_t swizzle,
                              int32_t, int32_t oob_fill) {
    EncodedMap map{};
    const char* problem = encode_common(
        {data_type, rank, address, dimensions, strides, element_strides, interleave, swizzle, oob_fill}, map);
    return finish(problem ? problem : encode_corners(lower, upper, channels, pixels, map), map, out);
}
