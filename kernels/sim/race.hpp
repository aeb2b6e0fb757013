// Hooks of the race detector; without SIM_RACE they are nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sim/runtime.hpp"

namespace sim::race {

#ifdef SIM_RACE
void read(const void* pointer, size_t bytes, const void* where);
void write(const void* pointer, size_t bytes, const void* where);
void mbarrier_release(const uint64_t* barrier);
void mbarrier_acquire(const uint64_t* barrier);
void tma_load(const void* shared, size_t bytes, const uint64_t* barrier, const void* where);
void tma_store(const void* shared, size_t bytes, const void* where);
void tma_store_wait(int pending);
void wgmma(const Wgmma& operation, const void* where);
void wgmma_commit();
void wgmma_wait(int pending);
#else
inline void read(const void*, size_t, const void*) {}
inline void write(const void*, size_t, const void*) {}
inline void mbarrier_release(const uint64_t*) {}
inline void mbarrier_acquire(const uint64_t*) {}
inline void tma_load(const void*, size_t, const uint64_t*, const void*) {}
inline void tma_store(const void*, size_t, const void*) {}
inline void tma_store_wait(int) {}
inline void wgmma(const Wgmma&, const void*) {}
inline void wgmma_commit() {}
inline void wgmma_wait(int) {}
#endif

}
