//! What happens to a finished output tile before it is left: bias, time embedding, residual, scale.

use crate::backend::cpu::simd::{Kernel, Simd};

/// `y = (product + bias + per_image + residual) * scale`, each part optional.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// One value per output channel, `[K]`.
    pub bias: Option<&'a [f32]>,
    /// One value per image and channel, `[N, K]`: the projected time embedding.
    pub per_image: Option<&'a [f32]>,
    /// A tensor laid out like y.
    pub residual: Option<&'a [f32]>,
    /// Multiplies the sum.
    pub scale: f32,
}

impl Epilogue<'_> {
    /// Leaves the product as it is.
    pub const NONE: Epilogue<'static> = Epilogue { bias: None, per_image: None, residual: None, scale: 1.0 };

    pub(crate) fn is_none(&self) -> bool {
        self.bias.is_none() && self.per_image.is_none() && self.residual.is_none() && self.scale == 1.0
    }

    pub(crate) fn assert_fits(&self, images: usize, channels: usize, outputs: usize) {
        let len = |s: Option<&[f32]>| s.map(<[f32]>::len);
        assert!(len(self.bias).is_none_or(|l| l == channels), "epilogue: bias must have {channels} values");
        assert!(
            len(self.per_image).is_none_or(|l| l == images * channels),
            "epilogue: per_image must have {images} x {channels} values"
        );
        assert!(len(self.residual).is_none_or(|l| l == outputs), "epilogue: residual must have {outputs} values");
    }
}

/// An [`Epilogue`] aimed at one channel of one image: null where a part is absent.
#[derive(Clone, Copy)]
pub(crate) struct Addends {
    bias: *const f32,
    per_image: *const f32,
    residual: *const f32,
    scale: f32,
}

impl Addends {
    /// The addends of channel `channel` of image `image`; `channels` is the row length of y.
    pub(crate) fn at(e: &Epilogue, image: usize, channel: usize, channels: usize) -> Self {
        let ptr = |s: Option<&[f32]>, at: usize| s.map_or(std::ptr::null(), |s| s[at..].as_ptr());
        Self {
            bias: ptr(e.bias, channel),
            per_image: ptr(e.per_image, image * channels + channel),
            residual: ptr(e.residual, 0),
            scale: e.scale,
        }
    }

    /// Finishes `v`, which is to be stored at element `at` of y, `offset` channels after the first.
    ///
    /// # Safety
    /// Every present part is valid for `len` floats there; `len == LANES` unless `PARTIAL`.
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd, const PARTIAL: bool>(
        &self,
        mut v: S::V,
        offset: usize,
        at: usize,
        len: usize,
    ) -> S::V {
        // SAFETY: the caller vouches for the parts that are present.
        unsafe {
            let load = |p: *const f32| if PARTIAL { S::load_first(p, len) } else { S::load(p) };
            if !self.bias.is_null() {
                v = S::add(v, load(self.bias.add(offset)));
            }
            if !self.per_image.is_null() {
                v = S::add(v, load(self.per_image.add(offset)));
            }
            if !self.residual.is_null() {
                v = S::add(v, load(self.residual.add(at)));
            }
            S::mul(v, S::splat(self.scale))
        }
    }
}

/// Finishes one row of `len` sums: reads `from`, writes y at element `at`.
pub(crate) struct FinishRow {
    pub from: *const f32,
    pub y: *mut f32,
    pub at: usize,
    pub len: usize,
    pub addends: Addends,
}

impl Kernel for FinishRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len - self.len % S::LANES;
        // SAFETY: the caller vouches for `len` floats of every part.
        unsafe {
            for k in (0..whole).step_by(S::LANES) {
                let v = S::load(self.from.add(k));
                S::store(self.y.add(self.at + k), self.addends.apply::<S, false>(v, k, self.at + k, S::LANES));
            }
            let left = self.len - whole;
            if left > 0 {
                let v = S::load_first(self.from.add(whole), left);
                let v = self.addends.apply::<S, true>(v, whole, self.at + whole, left);
                S::store_first(self.y.add(self.at + whole), v, left);
            }
        }
    }
}
