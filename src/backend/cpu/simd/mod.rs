//! Vector instruction sets: one trait, three implementations, chosen when the program runs.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::atomic::{AtomicU8, Ordering};

/// The operations kernels are written in. A kernel generic over `Simd` is compiled once per instruction set.
///
/// All methods are unsafe for the same two reasons: the instruction set must be present on this CPU, and pointers
/// must be valid for the lanes they touch.
pub(crate) trait Simd: Copy {
    /// A vector of [`Simd::LANES`] floats.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of the largest register tile that is two vectors wide.
    const MAX_ROWS: usize;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads the first `len <= LANES` floats, zeros in the others; touches no memory past them.
    unsafe fn load_first(p: *const f32, len: usize) -> Self::V;
    /// Stores the first `len <= LANES` floats.
    unsafe fn store_first(p: *mut f32, v: Self::V, len: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Brings the cache line at `p` closer; `p` need not be valid.
    unsafe fn prefetch(p: *const f32);
}

/// A piece of work written against [`Simd`]; `run` must be `#[inline(always)]` so that it is compiled with the
/// instruction set of [`Isa::run`]'s branch.
pub(crate) trait Kernel {
    /// # Safety
    /// The instruction set of `S` is present, and the kernel's own pointers are valid.
    unsafe fn run<S: Simd>(self);
}

/// A vector instruction set the kernels are compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust in groups of eight floats, which the compiler vectorises for its baseline target.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
}

const UNKNOWN: u8 = u8::MAX;
static CURRENT: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The instruction set in use: the fastest this CPU has, unless [`limit_isa`] lowered it.
pub fn isa() -> Isa {
    match CURRENT.load(Ordering::Relaxed) {
        0 => Isa::Portable,
        1 => Isa::Avx2,
        2 => Isa::Avx512,
        _ => {
            let found = detect();
            CURRENT.store(found as u8, Ordering::Relaxed);
            found
        }
    }
}

/// Uses no instruction set above `limit` from now on, in the whole process; returns the one that is used.
///
/// For measuring and testing the slower paths. Data packed before the call stay valid.
pub fn limit_isa(limit: Isa) -> Isa {
    let chosen = detect().min(limit);
    CURRENT.store(chosen as u8, Ordering::Relaxed);
    chosen
}

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

impl Isa {
    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Safety
    /// `self` came from [`isa`], and the kernel's pointers are valid.
    #[inline(always)]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: `isa` only returns sets this CPU has; the caller vouches for the kernel.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::run(kernel),
                _ => portable::run(kernel),
            }
        }
    }

    /// Rows of the largest register tile.
    pub(crate) fn max_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::MAX_ROWS,
            _ => portable::Portable::MAX_ROWS,
        }
    }
}
