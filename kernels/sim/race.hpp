// Hooks of the race detector; without SIM_RACE they are nothing. `where` is an address in the kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sim/runtime.hpp"

namespace sim::race {

#ifdef SIM_RACE
#define SIM_RACE_HOOK(declaration) declaration;
#else
#define SIM_RACE_HOOK(declaration) \
    inline declaration {}
#endif

SIM_RACE_HOOK(void begin_block())

// Accesses by the running thread, and by asynchronous units on its behalf.
SIM_RACE_HOOK(void read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes,
                        [[maybe_unused]] const void* where))
SIM_RACE_HOOK(void write([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes,
                         [[maybe_unused]] const void* where))
SIM_RACE_HOOK(void tma_load([[maybe_unused]] const void* shared, [[maybe_unused]] size_t bytes,
                            [[maybe_unused]] const uint64_t* barrier, [[maybe_unused]] const void* where))
SIM_RACE_HOOK(void tma_store([[maybe_unused]] const void* shared, [[maybe_unused]] size_t bytes,
                             [[maybe_unused]] const void* where))
SIM_RACE_HOOK(void wgmma([[maybe_unused]] const Wgmma& operation, [[maybe_unused]] const void* where))

// What orders them. `waiting`: for each warp the lanes that a completed barrier releases, the running thread left out.
SIM_RACE_HOOK(void barrier_arrive([[maybe_unused]] int id))
SIM_RACE_HOOK(void barrier_complete([[maybe_unused]] int id, [[maybe_unused]] const uint32_t* waiting,
                                    [[maybe_unused]] bool running_waits))
SIM_RACE_HOOK(void warp_synchronised([[maybe_unused]] uint32_t lanes))
SIM_RACE_HOOK(void mbarrier_release([[maybe_unused]] const uint64_t* barrier))
SIM_RACE_HOOK(void mbarrier_acquire([[maybe_unused]] const uint64_t* barrier))
SIM_RACE_HOOK(void ticket([[maybe_unused]] const uint32_t* counter))
SIM_RACE_HOOK(void proxy_fence())
SIM_RACE_HOOK(void tma_store_commit())
SIM_RACE_HOOK(void tma_store_wait([[maybe_unused]] int pending))
SIM_RACE_HOOK(void wgmma_commit())
SIM_RACE_HOOK(void wgmma_wait([[maybe_unused]] int pending))

#undef SIM_RACE_HOOK

}
