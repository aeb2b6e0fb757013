//! The geometry of a convolution and the choice of an algorithm for it.

/// A convolution of NHWC images with `K x R x S x C` weights.
///
/// `y[n, p, q, k] = sum over r, s, c of x[n, p*stride + r - pad_top, q*stride + s - pad_left, c] * w[k, r, s, c]`, with x
/// zero outside the image. Padding at the bottom and right is whatever `oh` and `ow` reach for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images in the batch.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels.
    pub k: usize,
    /// Filter height.
    pub r: usize,
    /// Filter width.
    pub s: usize,
    /// Step between filter positions, in both directions.
    pub stride: usize,
    /// Rows of zeros above the image.
    pub pad_top: usize,
    /// Columns of zeros left of the image.
    pub pad_left: usize,
    /// Output height.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
}

impl ConvShape {
    /// A filter of odd size `size` that keeps the image size (stride 1, padding on all sides).
    pub fn same(n: usize, h: usize, w: usize, c: usize, k: usize, size: usize) -> Self {
        let pad = size / 2;
        Self { n, h, w, c, k, r: size, s: size, stride: 1, pad_top: pad, pad_left: pad, oh: h, ow: w }
    }

    /// A 3x3 convolution of stride 2 that halves the image; `pad` rows and columns of zeros above and left (DDPM
    /// pads 0 there and 1 below and right, Improved DDPM and ADM pad 1 on all sides).
    pub fn downsample(n: usize, h: usize, w: usize, c: usize, k: usize, pad: usize) -> Self {
        let half = |size: usize| (size + pad) / 2;
        Self { n, h, w, c, k, r: 3, s: 3, stride: 2, pad_top: pad, pad_left: pad, oh: half(h), ow: half(w) }
    }

    /// Floats of x.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Floats of y.
    pub fn y_len(&self) -> usize {
        self.n * self.oh * self.ow * self.k
    }

    /// Floats of the canonical weights, `K x R x S x C`.
    pub fn weight_len(&self) -> usize {
        self.k * self.r * self.s * self.c
    }

    /// Multiplications and additions of one pass by the definition, padding included.
    pub fn flops(&self) -> f64 {
        2.0 * self.y_len() as f64 * (self.r * self.s * self.c) as f64
    }

    pub(crate) fn assert_valid(&self) {
        assert!(self.stride >= 1 && self.r >= 1 && self.s >= 1, "convolution: empty filter or stride in {self:?}");
        assert!(self.c >= 1 && self.k >= 1, "convolution: no channels in {self:?}");
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// A product of the pixels with the weights: 1x1 filters of stride 1.
    Gemm,
    /// Implicit GEMM: blocks of pixels gathered tap by tap, times the weights.
    Direct,
    /// Winograd F(2x2, 3x3): 2.25 times fewer multiplications.
    Winograd2,
    /// Winograd F(4x4, 3x3): 4 times fewer multiplications, about four times the rounding error of direct.
    Winograd4,
}

/// The algorithm for every pass of `shape`: a function of the geometry of one image, never of the batch, so that an
/// image gets the same bits in any batch.
///
/// Winograd needs 3x3 filters of stride 1 and, on one side, enough channels to pay for its transforms. F(4x4) multiplies the weights'
/// memory by 4 where F(2x2) does by 1.8: on small images, where weights are the traffic of a single image, that
/// outweighs the products saved, and on 4x4 images even F(2x2) has too few tiles to fill a register tile.
pub fn algorithm(shape: &ConvShape) -> Algorithm {
    let ConvShape { c, k, r, s, stride, pad_top, pad_left, oh, ow, .. } = *shape;
    if (r, s, stride) == (1, 1, 1) && (pad_top, pad_left) == (0, 0) && (oh, ow) == (shape.h, shape.w) {
        return Algorithm::Gemm;
    }
    let winograd = (r, s, stride) == (3, 3, 1) && pad_top <= 2 && pad_left <= 2 && c.max(k) >= 16;
    match oh.min(ow) {
        12.. if winograd => Algorithm::Winograd4,
        5.. if winograd => Algorithm::Winograd2,
        _ => Algorithm::Direct,
    }
}

/// Which tensor a packed filter produces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// y from x.
    Fprop,
    /// dx from dy.
    Dgrad,
}

/// One direction of an implicit GEMM over a sub-grid of output rows (or columns).
///
/// Output `o` of the sub-grid is row `o * out_step + out_first` of the output tensor. Its tap `t` is filter row
/// `first + t * step` and meets input row `o * stride + base + t * direction`, zero outside `0..input`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub taps: usize,
    pub first: usize,
    pub step: usize,
    pub base: isize,
    pub direction: isize,
    pub stride: usize,
    pub outputs: usize,
    pub out_step: usize,
    pub out_first: usize,
    pub input: usize,
}

impl Axis {
    fn fprop(filter: usize, pad: usize, stride: usize, input: usize, output: usize) -> Self {
        Self {
            taps: filter,
            first: 0,
            step: 1,
            base: -(pad as isize),
            direction: 1,
            stride,
            outputs: output,
            out_step: 1,
            out_first: 0,
            input,
        }
    }

    /// Rows of dx of one residue modulo the stride meet only the taps of one residue: no multiplications by zero.
    fn dgrad(filter: usize, pad: usize, stride: usize, input: usize, output: usize, phase: usize) -> Self {
        let first = (phase + pad) % stride;
        Self {
            taps: filter.saturating_sub(first).div_ceil(stride),
            first,
            step: stride,
            base: ((phase + pad - first) / stride) as isize,
            direction: -1,
            stride: 1,
            outputs: input.saturating_sub(phase).div_ceil(stride),
            out_step: stride,
            out_first: phase,
            input: output,
        }
    }

    /// The input row that tap `tap` of output `out` meets, if it lies in the image.
    pub(crate) fn at(&self, out: usize, tap: usize) -> Option<usize> {
        let i = (out * self.stride) as isize + self.base + tap as isize * self.direction;
        (0..self.input as isize).contains(&i).then_some(i as usize)
    }
}

/// An implicit GEMM: one for fprop, one per phase (stride x stride) for dgrad.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gather {
    pub y: Axis,
    pub x: Axis,
    pub in_channels: usize,
    pub out_channels: usize,
}

impl Gather {
    /// Number of sub-grids of a pass.
    pub(crate) fn count(shape: &ConvShape, pass: Pass) -> usize {
        match pass {
            Pass::Fprop => 1,
            Pass::Dgrad => shape.stride * shape.stride,
        }
    }

    pub(crate) fn new(shape: &ConvShape, pass: Pass, index: usize) -> Self {
        let s = shape;
        match pass {
            Pass::Fprop => Self {
                y: Axis::fprop(s.r, s.pad_top, s.stride, s.h, s.oh),
                x: Axis::fprop(s.s, s.pad_left, s.stride, s.w, s.ow),
                in_channels: s.c,
                out_channels: s.k,
            },
            Pass::Dgrad => Self {
                y: Axis::dgrad(s.r, s.pad_top, s.stride, s.h, s.oh, index / s.stride),
                x: Axis::dgrad(s.s, s.pad_left, s.stride, s.w, s.ow, index % s.stride),
                in_channels: s.k,
                out_channels: s.c,
            },
        }
    }

    /// Depth of the product: taps times input channels.
    pub(crate) fn depth(&self) -> usize {
        self.y.taps * self.x.taps * self.in_channels
    }

    /// Output pixels per image.
    pub(crate) fn pixels(&self) -> usize {
        self.y.outputs * self.x.outputs
    }

    /// Copies columns `p0 .. p0 + depth` of pixel `pixel`'s gathered row (of the whole batch) into `out`.
    pub(crate) fn copy_row(&self, input: &[f32], pixel: usize, p0: usize, out: &mut [f32]) {
        let (image, pixel) = (pixel / self.pixels(), pixel % self.pixels());
        let (oy, ox) = (pixel / self.x.outputs, pixel % self.x.outputs);
        let c = self.in_channels;
        let (tap, mut channel) = (p0 / c, p0 % c);
        let (mut r, mut s) = (tap / self.x.taps, tap % self.x.taps);
        let mut rest = out;
        while !rest.is_empty() {
            let len = (c - channel).min(rest.len());
            let (run, tail) = rest.split_at_mut(len);
            match (self.y.at(oy, r), self.x.at(ox, s)) {
                (Some(iy), Some(ix)) => {
                    let at = ((image * self.y.input + iy) * self.x.input + ix) * c + channel;
                    run.copy_from_slice(&input[at..at + len]);
                }
                _ => run.fill(0.0),
            }
            rest = tail;
            channel = 0;
            s += 1;
            if s == self.x.taps {
                (r, s) = (r + 1, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithm_does_not_depend_on_the_batch() {
        for (h, c, k) in [(32, 128, 128), (8, 256, 256), (4, 256, 256), (16, 3, 64), (7, 24, 15)] {
            let chosen = algorithm(&ConvShape::same(1, h, h, c, k, 3));
            assert!((2..20).all(|n| algorithm(&ConvShape::same(n, h, h, c, k, 3)) == chosen));
        }
        assert_eq!(algorithm(&ConvShape::same(1, 32, 32, 128, 128, 3)), Algorithm::Winograd4);
        assert_eq!(algorithm(&ConvShape::same(1, 8, 8, 256, 256, 1)), Algorithm::Gemm);
        assert_eq!(algorithm(&ConvShape::downsample(1, 8, 8, 256, 256, 0)), Algorithm::Direct);
    }

    #[test]
    fn downsampling_halves() {
        for pad in [0, 1] {
            let s = ConvShape::downsample(1, 32, 20, 3, 3, pad);
            assert_eq!((s.oh, s.ow), (16, 10), "pad {pad}");
        }
    }

    #[test]
    fn phases_of_dgrad_cover_each_tap_once() {
        for (stride, pad, h, oh) in [(2, 0, 8, 4), (2, 1, 9, 5), (1, 1, 5, 5), (3, 1, 10, 4)] {
            let shape = ConvShape { stride, pad_top: pad, h, oh, ..ConvShape::same(1, 8, 8, 1, 1, 3) };
            let mut met = vec![0; h * oh * 3];
            for phase in 0..stride {
                let a = Gather::new(&shape, Pass::Dgrad, phase * stride).y;
                for o in 0..a.outputs {
                    for t in 0..a.taps {
                        if let Some(p) = a.at(o, t) {
                            met[((o * a.out_step + a.out_first) * oh + p) * 3 + a.first + t * a.step] += 1;
                        }
                    }
                }
            }
            for i in 0..h {
                for p in 0..oh {
                    for r in 0..3 {
                        let meets = i + pad == p * stride + r;
                        assert_eq!(met[(i * oh + p) * 3 + r], meets as i32, "dx row {i}, dy row {p}, tap {r}");
                    }
                }
            }
        }
    }
}
