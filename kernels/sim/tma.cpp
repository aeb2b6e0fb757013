// The TMA unit: bulk tensor copies. A copy may happen at any time between its issue and the moment someone needs it;
// eager mode does it at once, the others later. Until then the target of a load holds NaN.
#include <algorithm>
#include <cstring>

#include "sim/mbarrier.hpp"
#include "sim/race.hpp"
#include "sim/tensor_map.hpp"

namespace sim {
namespace {

const EncodedMap& decoded(const TensorCopy& copy) { return *reinterpret_cast<const EncodedMap*>(copy.map); }

// The global address of a row's first element; null where the row lies outside in one of the outer dimensions.
unsigned char* row_address(const EncodedMap& map, const int64_t (&position)[5]) {
    unsigned char* address = map.base;
    for (int d = 1; d < map.rank; ++d) {
        if (position[d] < 0 || position[d] >= int64_t(map.dimension[d])) {
            return nullptr;
        }
        address += position[d] * int64_t(map.stride[d - 1]);
    }
    return address;
}

// The outer coordinates of row number `row` of a tiled copy.
void tiled_position(const TensorCopy& copy, uint32_t row, int64_t (&position)[5]) {
    const EncodedMap& map = decoded(copy);
    for (int d = 1; d < map.rank; ++d) {
        position[d] = copy.coordinates[d] + int64_t(row % map.copied(d)) * map.element_stride[d];
        row /= map.copied(d);
    }
}

// The coordinates that base pixel number `row` of an im2col copy reads: base pixels advance by the element strides
// through the box between the corners, w first, and on to the next image.
void im2col_position(const TensorCopy& copy, uint32_t row, int64_t (&position)[5]) {
    const EncodedMap& map = decoded(copy);
    const int spatial = map.rank - 2;
    int64_t carry = row;
    for (int d = 0; d < spatial; ++d) {
        const int64_t stride = map.element_stride[d + 1];
        const int64_t extent = int64_t(map.dimension[d + 1]) + map.upper[d] - map.lower[d];
        const int64_t steps = (extent + stride - 1) / stride;
        const int64_t step = (copy.coordinates[d + 1] - map.lower[d]) / stride + carry;
        position[d + 1] = map.lower[d] + step % steps * stride + copy.tap[d];
        carry = step / steps;
    }
    position[map.rank - 1] = copy.coordinates[map.rank - 1] + carry;
}

void perform(const TensorCopy& copy, bool store) {
    const EncodedMap& map = decoded(copy);
    const auto first = size_t(static_cast<unsigned char*>(copy.shared) - shared_memory);
    const uint32_t rows = map.rows(), row_bytes = map.row_bytes(), bytes = map.element_bytes;
    const int64_t step = map.im2col ? 1 : map.element_stride[0];
    for (uint32_t row = 0; row < rows; ++row) {
        int64_t position[5];
        if (map.im2col) {
            im2col_position(copy, row, position);
        } else {
            tiled_position(copy, row, position);
        }
        unsigned char* global = row_address(map, position);
        for (uint32_t offset = 0; offset < row_bytes; offset += bytes) {
            const int64_t column = copy.coordinates[0] + int64_t(offset / bytes) * step;
            const bool inside = global && column >= 0 && column < int64_t(map.dimension[0]);
            unsigned char* shared = shared_memory + swizzled(first + size_t(row) * row_bytes + offset, map.swizzle);
            if (inside && store) {
                memcpy(global + column * bytes, shared, bytes);
            } else if (inside) {
                memcpy(shared, global + column * bytes, bytes);
            } else if (!store) {
                memset(shared, 0, bytes);
            }
        }
    }
    if (!store) {
        mbarrier_complete_bytes(copy.barrier, rows * row_bytes);
    }
}

uint32_t check(const TensorCopy& copy, const void* where) {
    const EncodedMap& map = decoded(copy);
    if (reinterpret_cast<uintptr_t>(copy.map) % 64 != 0 || map.magic != MAP_MAGIC) {
        fail("TMA: the address is not that of an encoded tensor map%s", source_line(where).c_str());
    }
    if (map.rank != copy.rank || bool(map.im2col) != copy.im2col) {
        fail("TMA: a %s copy of rank %d uses a %s map of rank %d%s", copy.im2col ? "im2col" : "tiled", copy.rank,
             map.im2col ? "im2col" : "tiled", map.rank, source_line(where).c_str());
    }
    const uint32_t bytes = map.rows() * map.row_bytes();
    const uint32_t first = shared_address(copy.shared);
    if (first % 128 != 0) {
        fail("TMA: shared_memory+%u is not a multiple of 128 bytes%s", first, source_line(where).c_str());
    }
    if (first + bytes > block->dynamic_shared) {
        fail("TMA: a box of %u bytes at shared_memory+%u leaves the %u bytes of dynamic shared memory%s", bytes, first,
             block->dynamic_shared, source_line(where).c_str());
    }
    for (int d = 0; map.im2col && d < map.rank - 2; ++d) {
        const int base = copy.coordinates[d + 1];
        if (base < map.lower[d] || base >= int64_t(map.dimension[d + 1]) + map.upper[d]) {
            fail("TMA: im2col base pixel %d of spatial dimension %d is outside its corners%s", base, d,
                 source_line(where).c_str());
        }
    }
    return bytes;
}

void issue(const TensorCopy& copy, bool store, const void* where) {
    Block& b = *block;
    b.tensor_copies.push_back({copy, store, false, threadIdx.linear, 0, where});
    if (AsyncMode(b.config.async_mode) == AsyncMode::eager) {
        perform(copy, store);
        b.tensor_copies.back().done = true;
        if (!store) {
            b.tensor_copies.pop_back();
        }
    }
}

}

void tma_load(const TensorCopy& copy) {
    const void* where = __builtin_return_address(0);
    const uint32_t bytes = check(copy, where);
    check_mbarrier(copy.barrier, where);
    race::tma_load(copy.shared, bytes, copy.barrier, where);
    memset(copy.shared, 0xff, bytes);
    issue(copy, false, where);
}

void tma_store(const TensorCopy& copy) {
    const void* where = __builtin_return_address(0);
    const uint32_t bytes = check(copy, where);
    race::tma_store(copy.shared, bytes, where);
    issue(copy, true, where);
}

void tma_store_commit() {
    for (PendingTensorCopy& pending : block->tensor_copies) {
        if (pending.store && pending.owner == threadIdx.linear) {
            ++pending.committed;
        }
    }
    race::tma_store_commit();
}

void tma_store_wait(int allowed) {
    auto& copies = block->tensor_copies;
    const auto finished = [&](PendingTensorCopy& pending) {
        // A copy committed k times ago belongs to the k-th latest group.
        if (!pending.store || pending.owner != threadIdx.linear || pending.committed <= allowed) {
            return false;
        }
        if (!pending.done) {
            perform(pending.copy, true);
        }
        return true;
    };
    copies.erase(std::remove_if(copies.begin(), copies.end(), finished), copies.end());
    race::tma_store_wait(allowed);
}

bool run_pending_tensor_copy() {
    Block& b = *block;
    auto& copies = b.tensor_copies;
    const size_t start =
        AsyncMode(b.config.async_mode) == AsyncMode::random && !copies.empty() ? random_number(b) % copies.size() : 0;
    for (size_t i = 0; i < copies.size(); ++i) {
        PendingTensorCopy& pending = copies[(start + i) % copies.size()];
        if (!pending.done) {
            perform(pending.copy, pending.store);
            pending.done = true;
            if (!pending.store) {
                copies.erase(copies.begin() + long((start + i) % copies.size()));
            }
            return true;
        }
    }
    return false;
}

std::string describe_tensor_copies_in_flight() {
    for (const PendingTensorCopy& pending : block->tensor_copies) {
        return std::string("the block ended with a TMA ") +
               (pending.store ? "store that its thread never waited for" : "load in flight") +
               source_line(pending.where);
    }
    return {};
}

}
