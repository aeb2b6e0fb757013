// The sixteen barriers of a block.
#include "sim/race.hpp"
#include "sim/state.hpp"

namespace sim {
namespace {

const char* barrier_name(int id) { return id == 0 ? "__syncthreads" : "named barrier"; }

// Counts the running thread in; true if it was the last one, which has then released the others.
bool arrive(int id, uint32_t threads, bool predicate, bool waits) {
    Block& b = *block;
    if (id != 0 && (threads == 0 || threads % 32 != 0 || threads > b.threads)) {
        fail("named barrier %d: %u threads is not a multiple of 32 within the block's %u", id, threads, b.threads);
    }
    Barrier& barrier = b.barrier[id];
    if (barrier.arrived == 0) {
        barrier.expected = threads;
        barrier.accumulated = 0;
    } else if (barrier.expected != threads) {
        fail("named barrier %d: this thread expects %u threads, earlier ones %u", id, threads, barrier.expected);
    }
    race::barrier_arrive(id);
    ++barrier.arrived;
    barrier.accumulated += predicate;
    if (barrier.arrived < threads) {
        return false;
    }
    barrier.arrived = 0;
    barrier.result = barrier.accumulated;
    race::barrier_complete(id, barrier.waiting, waits);
    for (uint32_t warp = 0; warp < b.warps; ++warp) {
        make_ready(warp, barrier.waiting[warp]);
        barrier.waiting[warp] = 0;
    }
    return true;
}

void arrive_and_wait(int id, uint32_t threads, bool predicate, const void* where) {
    const uint32_t self = threadIdx.linear;
    if (arrive(id, threads, predicate, true)) {
        offer_switch(where);
    } else {
        block->barrier[id].waiting[self / 32] |= 1u << self % 32;
        suspend(barrier_name(id), where);
    }
}

}

void barrier_sync(int id, int threads) { arrive_and_wait(id, uint32_t(threads), false, __builtin_return_address(0)); }

void barrier_arrive(int id, int threads) {
    arrive(id, uint32_t(threads), false, false);
    offer_switch(__builtin_return_address(0));
}

uint32_t barrier_reduce(bool predicate) {
    arrive_and_wait(0, block->threads, predicate, __builtin_return_address(0));
    return block->barrier[0].result;
}

}
