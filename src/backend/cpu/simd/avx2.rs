//! AVX2 with FMA: eight lanes, 16 registers.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// # Safety
/// The CPU has AVX2 and FMA, and the kernel's pointers are valid.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    // SAFETY: the features are enabled here; the caller vouches for the pointers.
    unsafe { kernel.run::<Avx2>() }
}

// Eight set lanes, then eight clear ones: a window into it is a mask for `maskload`.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask(len: usize) -> __m256i {
    debug_assert!(len <= 8);
    // SAFETY: 8 - len .. 16 - len lies inside the sixteen entries.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - len).cast()) }
}

// SAFETY (all methods): inlined into `run`, which enables the features; pointers are the caller's to vouch for.
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    // 6 x 2 accumulators, two vectors of B and one broadcast of A: 15 of 16 registers.
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, mask(len)) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m256, len: usize) {
        unsafe { _mm256_maskstore_ps(p, mask(len), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
