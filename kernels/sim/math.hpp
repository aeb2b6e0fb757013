// Device mathematics from the host's libm. Fast intrinsics are as accurate as the plain functions here.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// glibc declares sincos and sincosf in the global namespace already.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
inline void sincospif(float x, float* sine, float* cosine) {
    double s, c;
    sincos(3.14159265358979323846 * x, &s, &c);
    *sine = float(s);
    *cosine = float(c);
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Never contracted into a multiply-add, as on the device.
__attribute__((noinline, optimize("fp-contract=off"))) inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline, optimize("fp-contract=off"))) inline float __fmul_rn(float a, float b) { return a * b; }

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)(a)*b >> 64); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __float2int_rn(float x) { return int(lrintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __brev(uint32_t x) {
    uint32_t out = 0;
    for (int bit = 0; bit < 32; ++bit) {
        out |= (x >> bit & 1u) << (31 - bit);
    }
    return out;
}

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}

namespace sim {
// Round to nearest even; every NaN becomes 0x7fff, as cvt.rn.bf16 has it.
inline uint16_t bf16_bits(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint16_t rounded = uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return (bits & 0x7fffffffu) > 0x7f800000u ? uint16_t(0x7fff) : rounded;
}
}
