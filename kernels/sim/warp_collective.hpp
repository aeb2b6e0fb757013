// The meeting of a warp's lanes, for the runtime's own instructions.
#pragma once

#include "sim/state.hpp"

namespace sim {

constexpr uint32_t ALL_LANES = ~0u;

void collective(uint32_t mask, CollectiveId id, void* argument, CollectiveBody body, const void* where);

}
