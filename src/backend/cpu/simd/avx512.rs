//! AVX-512F: sixteen lanes, 32 registers, masks for partial vectors.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// # Safety
/// The CPU has AVX-512F, AVX2 and FMA, and the kernel's pointers are valid.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    // SAFETY: the features are enabled here; the caller vouches for the pointers.
    unsafe { kernel.run::<Avx512>() }
}

fn mask(len: usize) -> __mmask16 {
    ((1u32 << len) - 1) as __mmask16
}

// SAFETY (all methods): inlined into `run`, which enables the features; pointers are the caller's to vouch for.
impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    // 14 x 2 accumulators, two vectors of B and one broadcast of A: 31 of 32 registers.
    const MAX_ROWS: usize = 14;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(mask(len), p) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m512, len: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask(len), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
