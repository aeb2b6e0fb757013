// mbarrier: arrivals and bytes of asynchronous copies, counted in the 8 bytes that the hardware uses.
#include "sim/mbarrier.hpp"

#include "sim/race.hpp"

namespace sim {
namespace {

constexpr uint32_t MAX_ARRIVALS = (1u << 14) - 1;

MbarrierState& state_of(uint64_t* barrier, const void* where) {
    auto& state = *reinterpret_cast<MbarrierState*>(barrier);
    shared_address(barrier);
    // Fresh shared memory is all ones: `unused` tells it from an initialised barrier.
    if (state.unused != 0 || state.count == 0 || state.count > MAX_ARRIVALS) {
        fail("%s is used before its initialisation%s", describe_mbarrier(barrier).c_str(), source_line(where).c_str());
    }
    return state;
}

void complete_if_due(MbarrierState& state) {
    if (state.pending == 0 && state.bytes == 0) {
        state.phase ^= 1;
        state.pending = state.count;
    }
}

bool phase_complete(const uint64_t* barrier, uint32_t parity) {
    return reinterpret_cast<const MbarrierState*>(barrier)->phase != parity;
}

void arrive(uint64_t* barrier, uint32_t bytes, const void* where) {
    MbarrierState& state = state_of(barrier, where);
    if (state.pending == 0) {
        fail("%s: more arrivals in one phase than its count of %u%s", describe_mbarrier(barrier).c_str(),
             unsigned(state.count), source_line(where).c_str());
    }
    state.bytes += int32_t(bytes);
    --state.pending;
    race::mbarrier_release(barrier);
    complete_if_due(state);
    offer_switch(where);
}

}

void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
    if (arrivals == 0 || arrivals > MAX_ARRIVALS || reinterpret_cast<uintptr_t>(barrier) % 8 != 0) {
        fail("mbarrier.init: a count of %u or a misaligned address%s", arrivals,
             source_line(__builtin_return_address(0)).c_str());
    }
    *reinterpret_cast<MbarrierState*>(barrier) = {0, arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(uint64_t* barrier) { arrive(barrier, 0, __builtin_return_address(0)); }

void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
    arrive(barrier, bytes, __builtin_return_address(0));
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    const void* where = __builtin_return_address(0);
    state_of(barrier, where);
    if (parity > 1) {
        fail("mbarrier wait: parity %u%s", parity, source_line(where).c_str());
    }
    if (phase_complete(barrier, parity)) {
        offer_switch(where);
    } else {
        Waiting& waiting = block->waiting[threadIdx.linear];
        waiting.mbarrier = barrier;
        waiting.parity = parity;
        block->mbarrier_waiters.push_back(threadIdx.linear);
        suspend("mbarrier wait", where);
        waiting.mbarrier = nullptr;
        waiting.parity = 0;
    }
    race::mbarrier_acquire(barrier);
}

void mbarrier_complete_bytes(uint64_t* barrier, uint32_t bytes) {
    auto& state = *reinterpret_cast<MbarrierState*>(barrier);
    state.bytes -= int32_t(bytes);
    complete_if_due(state);
}

void check_mbarrier(uint64_t* barrier, const void* where) { state_of(barrier, where); }

bool wake_mbarrier_waiters() {
    auto& waiters = block->mbarrier_waiters;
    bool any = false;
    for (size_t i = 0; i < waiters.size();) {
        const Waiting& waiting = block->waiting[waiters[i]];
        if (phase_complete(waiting.mbarrier, waiting.parity)) {
            make_ready(waiters[i]);
            waiters[i] = waiters.back();
            waiters.pop_back();
            any = true;
        } else {
            ++i;
        }
    }
    return any;
}

std::string describe_mbarrier(const uint64_t* barrier) {
    const auto& state = *reinterpret_cast<const MbarrierState*>(barrier);
    std::string text =
        "mbarrier at shared_memory+" + std::to_string(reinterpret_cast<const unsigned char*>(barrier) - shared_memory);
    if (state.unused == 0) {
        text += " (phase " + std::to_string(state.phase) + ", " + std::to_string(state.pending) + " of " +
                std::to_string(state.count) + " arrivals and " + std::to_string(state.bytes) + " bytes missing)";
    }
    return text;
}

void fence_mbarrier_init() {}

void fence_proxy_async() { race::proxy_fence(); }

uint32_t shared_address(const void* pointer) {
    const auto offset = static_cast<const unsigned char*>(pointer) - shared_memory;
    if (offset < 0 || offset > block->dynamic_shared) {
        fail(
            "asynchronous units and mbarriers use dynamic shared memory: an address is %td bytes from its start, of %u",
            offset, block->dynamic_shared);
    }
    return uint32_t(offset);
}

}
