// Warp-level built-ins: shuffles and votes. The last lane to arrive computes the result of every lane; the race
// detector must not see it reach into the others' stacks.
#pragma once

#include "sim/runtime.hpp"

inline void __syncwarp(uint32_t mask = 0xffffffffu) {
    sim::warp_collective(mask, {sim::Collective::syncwarp, 0}, nullptr, [](void* const*, uint32_t) {});
}

namespace sim {
enum class Shuffle : uint8_t { index, up, down, exclusive_or };

template <class T> struct ShuffleArgs {
    T value, result;
    int selector, width;
};

template <Shuffle KIND> inline int shuffle_source(int lane, int selector, int width) {
    const int first = lane & ~(width - 1);
    if constexpr (KIND == Shuffle::index) {
        return first + (selector & (width - 1));
    }
    const int source = KIND == Shuffle::up     ? lane - selector
                       : KIND == Shuffle::down ? lane + selector
                                               : lane ^ selector;
    return source < first || source >= first + width ? lane : source;
}

template <class T, Shuffle KIND> inline T shuffle(uint32_t mask, T value, int selector, int width) {
    ShuffleArgs<T> own{value, value, selector, width};
    constexpr CollectiveId id{Collective::shuffle, uint8_t(uint8_t(KIND) * 16 + sizeof(T))};
    warp_collective(
        mask, id, &own, [](void* const* lanes, uint32_t present) __attribute__((no_sanitize("thread"))) {
            for (int lane = 0; lane < 32; ++lane) {
                if (!(present >> lane & 1u)) {
                    continue;
                }
                auto& target = *static_cast<ShuffleArgs<T>*>(lanes[lane]);
                const int source = shuffle_source<KIND>(lane, target.selector, target.width);
                if (!(present >> source & 1u)) {
                    fail("shuffle: lane %d reads lane %d, which is not in the mask %08x", lane, source, present);
                }
                target.result = static_cast<const ShuffleArgs<T>*>(lanes[source])->value;
            }
        });
    return own.result;
}
}

template <class T> inline T __shfl_sync(uint32_t mask, T v, int lane, int width = 32) {
    return sim::shuffle<T, sim::Shuffle::index>(mask, v, lane, width);
}
template <class T> inline T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32) {
    return sim::shuffle<T, sim::Shuffle::up>(mask, v, int(delta), width);
}
template <class T> inline T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32) {
    return sim::shuffle<T, sim::Shuffle::down>(mask, v, int(delta), width);
}
template <class T> inline T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32) {
    return sim::shuffle<T, sim::Shuffle::exclusive_or>(mask, v, bits, width);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) { return sim::ballot(mask, predicate != 0); }
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
