// The bodies of the copies declared in device/tma.cuh, for the simulator.
#pragma once

#include "sim/runtime.hpp"

template <class... Coordinates>
inline sim::TensorCopy tensor_copy(const TensorMap* map, const void* shared, uint64_t* barrier, Coordinates... c) {
    return {map, const_cast<void*>(shared), barrier, int(sizeof...(c)), {c...}, false, {}};
}

template <class... Taps> inline void load_im2col(sim::TensorCopy copy, Taps... taps) {
    const uint16_t values[] = {taps...};
    copy.im2col = true;
    for (size_t i = 0; i < sizeof...(taps); ++i) {
        copy.tap[i] = values[i];
    }
    sim::tma_load(copy);
}

inline void tma_load_1d(void* shared, const TensorMap* map, uint64_t* barrier, int c0) {
    sim::tma_load(tensor_copy(map, shared, barrier, c0));
}
inline void tma_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1) {
    sim::tma_load(tensor_copy(map, shared, barrier, c0, c1));
}
inline void tma_load_3d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2) {
    sim::tma_load(tensor_copy(map, shared, barrier, c0, c1, c2));
}
inline void tma_load_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3) {
    sim::tma_load(tensor_copy(map, shared, barrier, c0, c1, c2, c3));
}
inline void tma_load_5d(void* shared, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3, int c4) {
    sim::tma_load(tensor_copy(map, shared, barrier, c0, c1, c2, c3, c4));
}

inline void tma_load_im2col_3d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int n,
                               uint16_t tap_w) {
    load_im2col(tensor_copy(map, shared, barrier, c, w, n), tap_w);
}
inline void tma_load_im2col_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                               uint16_t tap_w, uint16_t tap_h) {
    load_im2col(tensor_copy(map, shared, barrier, c, w, h, n), tap_w, tap_h);
}
inline void tma_load_im2col_5d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int d, int n,
                               uint16_t tap_w, uint16_t tap_h, uint16_t tap_d) {
    load_im2col(tensor_copy(map, shared, barrier, c, w, h, d, n), tap_w, tap_h, tap_d);
}

inline void tma_store_1d(const TensorMap* map, const void* shared, int c0) {
    sim::tma_store(tensor_copy(map, shared, nullptr, c0));
}
inline void tma_store_2d(const TensorMap* map, const void* shared, int c0, int c1) {
    sim::tma_store(tensor_copy(map, shared, nullptr, c0, c1));
}
inline void tma_store_3d(const TensorMap* map, const void* shared, int c0, int c1, int c2) {
    sim::tma_store(tensor_copy(map, shared, nullptr, c0, c1, c2));
}
inline void tma_store_4d(const TensorMap* map, const void* shared, int c0, int c1, int c2, int c3) {
    sim::tma_store(tensor_copy(map, shared, nullptr, c0, c1, c2, c3));
}
inline void tma_store_5d(const TensorMap* map, const void* shared, int c0, int c1, int c2, int c3, int c4) {
    sim::tma_store(tensor_copy(map, shared, nullptr, c0, c1, c2, c3, c4));
}
