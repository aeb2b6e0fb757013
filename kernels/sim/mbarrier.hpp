// The state of an mbarrier, for the units that complete copies on it.
#pragma once

#include "sim/state.hpp"

namespace sim {

struct MbarrierState {
    int32_t bytes; // expected minus copied: a copy may finish before it is announced
    uint32_t pending : 14, count : 14, phase : 1, unused : 3;
};
static_assert(sizeof(MbarrierState) == sizeof(uint64_t));

void mbarrier_complete_bytes(uint64_t* barrier, uint32_t bytes);
void check_mbarrier(uint64_t* barrier, const void* where);

}
