// Hooks of the race detector; without SIM_RACE they are nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sim::race {

#ifdef SIM_RACE
void read(const void* pointer, size_t bytes, const void* where);
void write(const void* pointer, size_t bytes, const void* where);
void mbarrier_release(const uint64_t* barrier);
void mbarrier_acquire(const uint64_t* barrier);
#else
inline void read(const void*, size_t, const void*) {}
inline void write(const void*, size_t, const void*) {}
inline void mbarrier_release(const uint64_t*) {}
inline void mbarrier_acquire(const uint64_t*) {}
#endif

}
