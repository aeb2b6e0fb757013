// The race detector: happens-before by vector clocks over the threads of a block and its asynchronous units.
//
// Every agent has a clock; a thread knows a value of each agent's clock, and an access is ordered after another if its
// thread knows the other's clock by then. A second vector of each thread holds what lies before a fence.proxy.async:
// only such writes of threads are seen by TMA stores and wgmma. Compiled in with SIM_RACE; kernels then report their
// accesses (tsan_hooks.cpp).
#ifdef SIM_RACE

#include "sim/race.hpp"

#include <algorithm>
#include <deque>
#include <map>

#include "sim/race_shadow.hpp"
#include "sim/state.hpp"
#include "sim/wgmma_operand.hpp"

namespace sim::race {
namespace {

using Clocks = std::vector<uint32_t>;

// Agents after the threads: TMA loads by mbarrier, all TMA stores, each warpgroup's wgmma.
constexpr uint32_t LOAD_AGENTS = 64, STORE_AGENT = LOAD_AGENTS, WGMMA_AGENTS = STORE_AGENT + 1;
constexpr uint32_t ASYNC_AGENTS = WGMMA_AGENTS + MAX_THREADS / 128;

// What someone knows: of all accesses, and of those made visible to the asynchronous units.
struct Knowledge {
    Clocks seen, fenced;

    void assign(size_t agents) {
        seen.assign(agents, 0);
        fenced.assign(agents, 0);
    }
    void join(const Knowledge& other) {
        for (size_t i = 0; i < seen.size(); ++i) {
            seen[i] = std::max(seen[i], other.seen[i]);
            fenced[i] = std::max(fenced[i], other.fenced[i]);
        }
    }
    void meet(const Knowledge& other) {
        for (size_t i = 0; i < seen.size(); ++i) {
            seen[i] = std::min(seen[i], other.seen[i]);
            fenced[i] = std::min(fenced[i], other.fenced[i]);
        }
    }
};

struct Mbarrier {
    uint32_t load_agent;
    Knowledge knowledge;
};

struct State {
    uint32_t threads, agents;
    std::vector<Knowledge> thread;
    Knowledge barrier[16];
    std::map<const uint64_t*, Mbarrier> mbarriers;
    std::map<const uint32_t*, Knowledge> tickets;
    uint32_t async_clock[ASYNC_AGENTS];
    std::vector<std::deque<uint32_t>> store_groups, wgmma_groups; // by thread: clocks of the groups not yet waited for
    Shadow shadow;
};

thread_local State state;

Knowledge& own() { return state.thread[threadIdx.linear]; }

// What the running thread did so far becomes known through `target`; what it does from now on does not.
void release_into(Knowledge& target) {
    target.join(own());
    ++own().seen[threadIdx.linear];
}

Mbarrier& mbarrier_at(const uint64_t* address) {
    auto [at, fresh] = state.mbarriers.try_emplace(address);
    if (fresh) {
        at->second.load_agent = state.threads + uint32_t(state.mbarriers.size() - 1) % LOAD_AGENTS;
        at->second.knowledge.assign(state.agents);
    }
    return at->second;
}

std::string agent_name(uint32_t agent) {
    if (agent < state.threads) {
        return "thread " + std::to_string(agent);
    }
    const uint32_t unit = agent - state.threads;
    return unit < LOAD_AGENTS    ? "a TMA load"
           : unit == STORE_AGENT ? "a TMA store"
                                 : "wgmma of warpgroup " + std::to_string(unit - WGMMA_AGENTS);
}

std::string place(uintptr_t address) {
    const uintptr_t offset = address - reinterpret_cast<uintptr_t>(shared_memory);
    if (offset < block->dynamic_shared) {
        return "shared_memory+" + std::to_string(offset);
    }
    if (is_static_shared_address(reinterpret_cast<const void*>(address))) {
        return "a __shared__ variable";
    }
    char text[32];
    snprintf(text, sizeof(text), "%#zx", size_t(address));
    return std::string("global memory at ") + text;
}

struct Accessor {
    uint32_t agent, clock;
    const Knowledge& knowledge;
    bool asynchronous_read; // by TMA or wgmma
};

void check_ordered(const Accessor& by, const Access& earlier, bool write, uintptr_t address, const void* where) {
    if (by.knowledge.seen[earlier.agent] < earlier.clock) {
        fail("RACE on %s: a %s by %s is not ordered after a %s by %s%s", place(address).c_str(),
             write ? "write" : "read", agent_name(by.agent).c_str(), earlier.write ? "write" : "read",
             agent_name(earlier.agent).c_str(), source_line(where).c_str());
    }
    if (by.asynchronous_read && earlier.agent < state.threads && by.knowledge.fenced[earlier.agent] < earlier.clock) {
        fail("RACE on %s: %s reads what %s wrote without a fence_proxy_async after the write%s", place(address).c_str(),
             agent_name(by.agent).c_str(), agent_name(earlier.agent).c_str(), source_line(where).c_str());
    }
}

void remember(Cell& cell, const Accessor& by, const Access& access) {
    Access* slot = nullptr;
    for (Access& old : cell.accesses) {
        const bool covered = (old.bytes & ~access.bytes) == 0 && (access.write || !old.write);
        const bool ordered = old.agent == by.agent || by.knowledge.seen[old.agent] >= old.clock;
        if (old.clock == 0 || (covered && ordered)) {
            old.clock = 0;
            slot = slot ? slot : &old;
        }
    }
    if (!slot) {
        slot = &cell.accesses[random_number(*block) % REMEMBERED];
    }
    *slot = access;
}

void access(uintptr_t address, size_t bytes, bool write, const Accessor& by, const void* where) {
    const uintptr_t end = address + bytes;
    for (uintptr_t granule = address & ~uintptr_t(7); granule < end; granule += 8) {
        const uint32_t low = uint32_t(std::max(granule, address) - granule);
        const uint32_t high = uint32_t(std::min(granule + 8, end) - granule);
        const auto mask = uint8_t((1u << high) - (1u << low));
        Cell& cell = state.shadow.cell(granule);
        for (const Access& earlier : cell.accesses) {
            if (earlier.clock && (earlier.bytes & mask) && earlier.agent != by.agent && (write || earlier.write)) {
                check_ordered(by, earlier, write, granule + low, where);
            }
        }
        remember(cell, by, {by.clock, uint16_t(by.agent), mask, write});
    }
}

void thread_access(const void* p, size_t bytes, bool write, const void* where) {
    const uint32_t self = threadIdx.linear;
    access(reinterpret_cast<uintptr_t>(p), bytes, write, {self, own().seen[self], own(), false}, where);
}

// What all lanes of a warp together know: they issue an aligned instruction as one.
Knowledge of_warp(uint32_t warp) {
    Knowledge knowledge = state.thread[warp * 32];
    for (uint32_t lane = 1; lane < 32; ++lane) {
        knowledge.join(state.thread[warp * 32 + lane]);
    }
    return knowledge;
}

void read_operand(const Accessor& by, const Wgmma& operation, bool b, int first, int last, const void* where) {
    // Two bytes at a time whatever the type: there are accesses enough.
    const int bytes = 32 / depth(operation), step = 2 / bytes;
    const uint64_t descriptor = b ? operation.b : operation.a;
    const bool mn_major = b ? operation.mn_major_b : operation.mn_major_a;
    for (int row = first; row < last; ++row) {
        for (int k = 0; k < depth(operation); k += step) {
            const size_t offset = operand_offset(descriptor, mn_major, row, k, bytes);
            access(reinterpret_cast<uintptr_t>(shared_memory) + offset, 2, false, by, where);
        }
    }
}

// Waiting until `pending` groups are left tells the clock of the newest finished one.
uint32_t finished_clock(std::deque<uint32_t>& groups, int pending) {
    uint32_t clock = 0;
    while (groups.size() > size_t(pending)) {
        clock = groups.front();
        groups.pop_front();
    }
    return clock;
}

}

void begin_block() {
    const uint32_t threads = block->threads;
    state.threads = threads;
    state.agents = threads + ASYNC_AGENTS;
    state.thread.resize(threads);
    for (uint32_t i = 0; i < threads; ++i) {
        state.thread[i].assign(state.agents);
        state.thread[i].seen[i] = 1;
    }
    for (Knowledge& barrier : state.barrier) {
        barrier.assign(state.agents);
    }
    state.mbarriers.clear();
    state.tickets.clear();
    std::fill(std::begin(state.async_clock), std::end(state.async_clock), 0);
    state.store_groups.assign(threads, {});
    state.wgmma_groups.assign(threads, {});
    state.shadow.begin(shared_memory, block->dynamic_shared);
}

void read(const void* p, size_t bytes, const void* where) { thread_access(p, bytes, false, where); }
void write(const void* p, size_t bytes, const void* where) { thread_access(p, bytes, true, where); }

void tma_load(const void* shared, size_t bytes, const uint64_t* barrier, const void* where) {
    Mbarrier& mbarrier = mbarrier_at(barrier);
    const uint32_t agent = mbarrier.load_agent, clock = ++state.async_clock[agent - state.threads];
    access(reinterpret_cast<uintptr_t>(shared), bytes, true, {agent, clock, own(), false}, where);
    mbarrier.knowledge.seen[agent] = clock;
}

void tma_store(const void* shared, size_t bytes, const void* where) {
    const uint32_t clock = ++state.async_clock[STORE_AGENT];
    access(reinterpret_cast<uintptr_t>(shared), bytes, false, {state.threads + STORE_AGENT, clock, own(), true}, where);
}

void wgmma(const Wgmma& operation, const void* where) {
    const uint32_t group = threadIdx.linear / 128, unit = WGMMA_AGENTS + group;
    const uint32_t agent = state.threads + unit, clock = ++state.async_clock[unit];
    Knowledge of_all;
    for (uint32_t i = 0; i < 4; ++i) {
        const Knowledge warp = of_warp(group * 4 + i);
        if (!operation.a_registers) {
            // A warp multiplies its own 16 rows of a.
            read_operand({agent, clock, warp, true}, operation, false, int(i) * 16, int(i) * 16 + 16, where);
        }
        if (i == 0) {
            of_all = warp;
        } else {
            of_all.meet(warp);
        }
    }
    read_operand({agent, clock, of_all, true}, operation, true, 0, operation.n, where);
}

void barrier_arrive(int id) { release_into(state.barrier[id]); }

void barrier_complete(int id, const uint32_t* waiting, bool running_waits) {
    Knowledge& barrier = state.barrier[id];
    for (uint32_t i = 0; i < state.threads; ++i) {
        if (waiting[i / 32] >> i % 32 & 1u) {
            state.thread[i].join(barrier);
        }
    }
    if (running_waits) {
        own().join(barrier);
    }
    barrier.assign(state.agents);
}

void warp_synchronised(uint32_t lanes) {
    const uint32_t first = threadIdx.linear & ~31u;
    Knowledge all;
    all.assign(state.agents);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (lanes >> lane & 1u) {
            all.join(state.thread[first + lane]);
        }
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
        if (lanes >> lane & 1u) {
            state.thread[first + lane] = all;
            ++state.thread[first + lane].seen[first + lane];
        }
    }
}

void mbarrier_release(const uint64_t* barrier) { release_into(mbarrier_at(barrier).knowledge); }
void mbarrier_acquire(const uint64_t* barrier) { own().join(mbarrier_at(barrier).knowledge); }

void ticket(const uint32_t* counter) {
    auto [at, fresh] = state.tickets.try_emplace(counter);
    if (fresh) {
        at->second.assign(state.agents);
    }
    own().join(at->second);
    release_into(at->second);
}

void proxy_fence() {
    own().fenced = own().seen;
    ++own().seen[threadIdx.linear];
}

void tma_store_commit() { state.store_groups[threadIdx.linear].push_back(state.async_clock[STORE_AGENT]); }

void tma_store_wait(int pending) {
    uint32_t& known = own().seen[state.threads + STORE_AGENT];
    known = std::max(known, finished_clock(state.store_groups[threadIdx.linear], pending));
}

void wgmma_commit() {
    state.wgmma_groups[threadIdx.linear].push_back(state.async_clock[WGMMA_AGENTS + threadIdx.linear / 128]);
}

void wgmma_wait(int pending) {
    uint32_t& known = own().seen[state.threads + WGMMA_AGENTS + threadIdx.linear / 128];
    known = std::max(known, finished_clock(state.wgmma_groups[threadIdx.linear], pending));
}

}

#endif
