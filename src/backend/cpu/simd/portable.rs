//! Any CPU: arrays of eight floats, left to the compiler's vectoriser (NEON on aarch64, SSE2 on old x86-64).

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// # Safety
/// The kernel's pointers are valid.
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    // SAFETY: no instruction set is needed; the caller vouches for the pointers.
    unsafe { kernel.run::<Portable>() }
}

/// Eight floats.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct F8([f32; 8]);

#[inline(always)]
fn zip(a: F8, b: F8, f: impl Fn(f32, f32) -> f32) -> F8 {
    F8(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

// SAFETY (all methods): plain memory accesses, valid when the caller's pointers are.
impl Simd for Portable {
    type V = F8;
    const LANES: usize = 8;
    const MAX_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> F8 {
        F8([0.0; 8])
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> F8 {
        F8([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F8 {
        F8(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: F8) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, len: usize) -> F8 {
        let mut v = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), len) };
        F8(v)
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: F8, len: usize) {
        unsafe { std::ptr::copy_nonoverlapping(v.0.as_ptr(), p, len) }
    }
    #[inline(always)]
    unsafe fn add(a: F8, b: F8) -> F8 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F8, b: F8) -> F8 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F8, b: F8) -> F8 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fma(a: F8, b: F8, c: F8) -> F8 {
        // `mul_add` is a library call on targets whose baseline has no fused multiply-add.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            F8(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
        } else {
            F8(std::array::from_fn(|i| a.0[i] * b.0[i] + c.0[i]))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}
