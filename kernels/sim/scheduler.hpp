// The order in which ready threads run.
#pragma once

#include "sim/state.hpp"

namespace sim {

// The thread to run next, or NO_THREAD when none is ready.
inline uint32_t next_in_order(const Block& b, uint32_t current) {
    const Warp& own = b.warp[current / 32];
    if (own.ready) {
        // The warp that runs goes on as long as it can: its lanes meet in the next collective without a detour.
        return (current & ~31u) + uint32_t(std::countr_zero(own.ready));
    }
    if (!b.ready_warps) {
        return NO_THREAD;
    }
    const uint32_t warp = uint32_t(std::countr_zero(b.ready_warps));
    return warp * 32 + uint32_t(std::countr_zero(b.warp[warp].ready));
}

inline uint32_t next_in_reverse(const Block& b) {
    if (!b.ready_warps) {
        return NO_THREAD;
    }
    const uint32_t warp = 31u - uint32_t(std::countl_zero(b.ready_warps));
    return warp * 32 + 31u - uint32_t(std::countl_zero(b.warp[warp].ready));
}

// Probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010): the ready warp of highest priority runs, and
// priorities change at few random points, which starves threads in ways that uniform choices almost never do.
inline uint32_t next_by_priority(Block& b) {
    if (!b.ready_warps) {
        return NO_THREAD;
    }
    const uint64_t dice = random_number(b);
    if (dice % 64 == 0) {
        b.priority[(dice >> 8) % b.warps] = uint32_t(dice >> 16);
    }
    uint32_t best = uint32_t(std::countr_zero(b.ready_warps));
    for (uint32_t rest = b.ready_warps; rest; rest &= rest - 1) {
        const uint32_t warp = uint32_t(std::countr_zero(rest));
        if (b.priority[warp] > b.priority[best]) {
            best = warp;
        }
    }
    const int rotation = int(b.priority[best] % 32);
    const uint32_t lane =
        (uint32_t(std::countr_zero(std::rotr(b.warp[best].ready, rotation))) + uint32_t(rotation)) % 32;
    return best * 32 + lane;
}

}
