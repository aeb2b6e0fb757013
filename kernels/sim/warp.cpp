// Warp collectives: lanes post their arguments and wait; the last one does the work of all.
#include "sim/race.hpp"
#include "sim/warp_collective.hpp"

namespace sim {
namespace {

// By Collective.
constexpr const char* NAMES[] = {"", "shuffle", "ballot", "__syncwarp", "ldmatrix", "stmatrix", "mma.sync"};

const char* operation_name(uint64_t tag) { return NAMES[tag >> 8 & 0xff]; }

bool same_tag_in_all(const Warp& warp, uint64_t tag) {
    uint64_t difference = 0;
    for (int lane = 0; lane < 32; ++lane) {
        difference |= warp.tag[lane] ^ tag;
    }
    return difference == 0;
}

void require_same_tag(const Warp& warp, uint32_t mask, uint64_t tag, const void* where) {
    if (mask == ~0u && same_tag_in_all(warp, tag)) [[likely]] {
        return;
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if ((mask >> lane & 1u) && warp.tag[lane] != tag) {
            const uint32_t first = threadIdx.linear & ~31u;
            find_source_lines({where, block->waiting[first + lane].where});
            fail("divergent warp collective: lane %u in %s (mask %08x)%s, lane %u in %s (mask %08x)%s", current_lane(),
                 operation_name(tag), uint32_t(tag >> 32), source_line(where).c_str(), lane,
                 operation_name(warp.tag[lane]), uint32_t(warp.tag[lane] >> 32),
                 source_line(block->waiting[first + lane].where).c_str());
        }
    }
}

}

void collective(uint32_t mask, CollectiveId id, void* argument, CollectiveBody body, const void* where) {
    Warp& warp = current_warp();
    const uint32_t lane = current_lane();
    mask &= warp.lanes;
    const uint64_t tag = uint64_t(mask) << 32 | uint64_t(id.operation) << 8 | id.variant;
    if (!(mask >> lane & 1u)) [[unlikely]] {
        fail("%s: lane %u calls with mask %08x, which does not name it%s", operation_name(tag), lane, mask,
             source_line(where).c_str());
    }
    warp.tag[lane] = tag;
    warp.argument[lane] = argument;
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask) != mask) {
        suspend(operation_name(tag), where);
        return;
    }
    require_same_tag(warp, mask, tag, where);
    body(warp.argument, mask);
    if (id.operation == Collective::syncwarp) {
        race::warp_synchronised(mask);
    }
    warp.arrived &= ~mask;
    make_ready(threadIdx.linear / 32, mask);
    offer_switch(where);
}

void warp_collective(uint32_t mask, CollectiveId id, void* argument, CollectiveBody body) {
    collective(mask, id, argument, body, __builtin_return_address(0));
}

uint32_t ballot(uint32_t mask, bool predicate) {
    struct Vote {
        bool predicate;
        uint32_t result;
    } own{predicate, 0};
    const CollectiveBody count = [](void* const* lanes, uint32_t present) {
        uint32_t votes = 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (present >> lane & 1u) {
                votes |= uint32_t(static_cast<const Vote*>(lanes[lane])->predicate) << lane;
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            if (present >> lane & 1u) {
                static_cast<Vote*>(lanes[lane])->result = votes;
            }
        }
    };
    collective(mask, {Collective::ballot, 0}, &own, count, __builtin_return_address(0));
    return own.result;
}

}
