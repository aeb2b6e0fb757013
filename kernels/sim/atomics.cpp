#include "sim/atomics.hpp"

#include "sim/race.hpp"

#include <cstdint>

namespace sim {
namespace {

template <class T> T update(T* p, T (*combine)(T, T), T value) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, combine(old, value), false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}

}

uint32_t atomic_update_32(uint32_t* p, uint32_t (*combine)(uint32_t, uint32_t), uint32_t value) {
    return update(p, combine, value);
}

uint64_t atomic_update_64(uint64_t* p, uint64_t (*combine)(uint64_t, uint64_t), uint64_t value) {
    return update(p, combine, value);
}

uint32_t atomic_compare_swap_32(uint32_t* p, uint32_t expected, uint32_t desired) {
    __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

uint32_t draw_ticket(uint32_t* counter) {
    race::ticket(counter);
    return __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
}

}
