// Atomic operations and cached accesses to memory.
#pragma once

#include <cstdint>
#include <type_traits>

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, std::type_identity_t<T> v) { *p = v; }
template <class T> inline void __stcg(T* p, std::type_identity_t<T> v) { *p = v; }

namespace sim {
// In the race detector atomics are no accesses that could race; the runtime does them out of its sight.
uint32_t atomic_update_32(uint32_t* p, uint32_t (*update)(uint32_t old, uint32_t value), uint32_t value);
uint64_t atomic_update_64(uint64_t* p, uint64_t (*update)(uint64_t old, uint64_t value), uint64_t value);
uint32_t atomic_compare_swap_32(uint32_t* p, uint32_t expected, uint32_t desired);
// Of device/ticket.cuh; orders what happened before it for the race detector.
uint32_t draw_ticket(uint32_t* counter);

template <class T, class Update> inline T atomic_update(T* p, Update, T value) {
    static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "atomics are for integers: float sums in the order of arrival do not repeat");
    if constexpr (sizeof(T) == 4) {
        return T(atomic_update_32(
            reinterpret_cast<uint32_t*>(p), [](uint32_t a, uint32_t b) { return uint32_t(Update{}(T(a), T(b))); },
            uint32_t(value)));
    } else {
        return T(atomic_update_64(
            reinterpret_cast<uint64_t*>(p), [](uint64_t a, uint64_t b) { return uint64_t(Update{}(T(a), T(b))); },
            uint64_t(value)));
    }
}
}

template <class T> inline T atomicAdd(T* p, std::type_identity_t<T> v) {
    return sim::atomic_update(p, [](T a, T b) { return T(a + b); }, v);
}
template <class T> inline T atomicMax(T* p, std::type_identity_t<T> v) {
    return sim::atomic_update(p, [](T a, T b) { return a < b ? b : a; }, v);
}
template <class T> inline T atomicMin(T* p, std::type_identity_t<T> v) {
    return sim::atomic_update(p, [](T a, T b) { return b < a ? b : a; }, v);
}
template <class T> inline T atomicOr(T* p, std::type_identity_t<T> v) {
    return sim::atomic_update(p, [](T a, T b) { return T(a | b); }, v);
}
template <class T> inline T atomicExch(T* p, std::type_identity_t<T> v) {
    return sim::atomic_update(p, [](T, T b) { return b; }, v);
}
inline uint32_t atomicCAS(uint32_t* p, uint32_t expected, uint32_t desired) {
    return sim::atomic_compare_swap_32(p, expected, desired);
}
