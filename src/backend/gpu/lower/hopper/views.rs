//! Convolutions of any stride as convolutions of stride 1 between *views*: every stride-th pixel of a tensor.
//!
//! Forward, tap (r, s) of output pixel (p, q) reads pixel `stride * p + r - pad`: pixel `p + floor((r - pad) / stride)`
//! of the view that begins at `(r - pad) mod stride`. Backward, the pixels `phase + stride * h'` of dx are a view that
//! reads, under every tap r with `phase + pad - r` divisible by the stride, row `h' + (phase + pad - r) / stride` of
//! dy.

use crate::backend::gpu::choice::Pass;
use crate::graph::ConvGeometry;

/// Every `step`-th pixel of an image of `(height, width)` pixels from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Row and column of its first pixel.
    pub first: (usize, usize),
    /// Pixels from one to the next.
    pub step: usize,
    /// Rows and columns.
    pub size: (usize, usize),
}

impl View {
    fn new(first: (usize, usize), step: usize, (height, width): (usize, usize)) -> Self {
        let count = |first: usize, all: usize| all.saturating_sub(first).div_ceil(step);
        Self { first, step, size: (count(first.0, height), count(first.1, width)) }
    }

    fn is_empty(&self) -> bool {
        self.size.0 == 0 || self.size.1 == 0
    }
}

/// A tap of a phase: output pixel (y, x) reads pixel (y + self.y, x + self.x) of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    /// Number of the source's view.
    pub view: usize,
    /// Rows down.
    pub y: isize,
    /// Columns to the right.
    pub x: isize,
    /// Number in the filter.
    pub filter: usize,
}

/// A part of the output whose pixels have the same taps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    /// Its pixels.
    pub out: View,
    /// In the order of sums.
    pub taps: Vec<Tap>,
}

/// The views that a convolution reads, and its phases, the longest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Views {
    /// Of each source.
    pub sources: Vec<View>,
    /// None is empty.
    pub phases: Vec<Phase>,
}

/// The views of a convolution from images of `source` pixels to images of `out` pixels, or why it has none that the
/// kernels take.
pub(super) fn views(
    pass: Pass,
    geometry: &ConvGeometry,
    source: (usize, usize),
    out: (usize, usize),
) -> Result<Views, &'static str> {
    let views = match pass {
        Pass::Fprop => forward(geometry, source, out),
        Pass::Dgrad => backward(geometry, source, out),
    };
    if views.sources.iter().any(View::is_empty) {
        return Err("an image smaller than the stride leaves a view of it empty");
    }
    if views.phases.is_empty() || views.phases.iter().any(|phase| phase.taps.is_empty()) {
        return Err("a filter smaller than the stride leaves a phase without taps");
    }
    Ok(views)
}

fn forward(geometry: &ConvGeometry, source: (usize, usize), out: (usize, usize)) -> Views {
    let ((kh, kw), stride, (top, left, ..)) = (geometry.kernel, geometry.stride, geometry.padding);
    let split = |tap: usize, pad: usize| {
        let at = tap as isize - pad as isize;
        (at.rem_euclid(stride as isize) as usize, at.div_euclid(stride as isize))
    };
    let mut sources: Vec<View> = Vec::new();
    let mut taps = Vec::new();
    for (r, s) in (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))) {
        let ((first_y, y), (first_x, x)) = (split(r, top), split(s, left));
        let view = View::new((first_y, first_x), stride, source);
        let number = sources.iter().position(|v| *v == view).unwrap_or_else(|| {
            sources.push(view);
            sources.len() - 1
        });
        taps.push(Tap { view: number, y, x, filter: r * kw + s });
    }
    Views { sources, phases: vec![Phase { out: View::new((0, 0), 1, out), taps }] }
}

/// The views of a 3x3 convolution of images that are first doubled in size, from images of `source` pixels: a phase for each
/// parity of the output, with 2x2 taps on the small image. The filter has 16 taps, those of phase 0 first: see
/// `kernels/conv/sum_taps.cu`.
pub(super) fn upsampled(source: (usize, usize)) -> Views {
    let phase = |number: usize| {
        let (a, b) = (number / 2, number % 2);
        let tap = |i: usize, j: usize| Tap {
            view: 0,
            y: (i + a) as isize - 1,
            x: (j + b) as isize - 1,
            filter: number * 4 + i * 2 + j,
        };
        let taps = (0..2).flat_map(|i| (0..2).map(move |j| tap(i, j))).collect();
        Phase { out: View::new((a, b), 2, (2 * source.0, 2 * source.1)), taps }
    };
    Views { sources: vec![View::new((0, 0), 1, source)], phases: (0..4).map(phase).collect() }
}

fn backward(geometry: &ConvGeometry, source: (usize, usize), out: (usize, usize)) -> Views {
    let ((kh, kw), stride, (top, left, ..)) = (geometry.kernel, geometry.stride, geometry.padding);
    // Row of dy under tap r, if the tap is one of the phase's.
    let at = |phase: usize, pad: usize, tap: usize| {
        let distance = (phase + pad) as isize - tap as isize;
        (distance % stride as isize == 0).then_some(distance / stride as isize)
    };
    let phase = |(py, px): (usize, usize)| {
        let tap = |(r, s)| {
            let (y, x) = (at(py, top, r)?, at(px, left, s)?);
            Some(Tap { view: 0, y, x, filter: r * kw + s })
        };
        let taps = (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))).filter_map(tap).collect();
        Phase { out: View::new((py, px), stride, out), taps }
    };
    let corners = (0..stride).flat_map(|y| (0..stride).map(move |x| (y, x)));
    let mut phases: Vec<Phase> = corners.map(phase).filter(|phase| !phase.out.is_empty()).collect();
    phases.sort_by_key(|phase| std::cmp::Reverse(phase.taps.len()));
    Views { sources: vec![View::new((0, 0), 1, source)], phases }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRIES: [ConvGeometry; 5] = [
        ConvGeometry { kernel: (3, 3), stride: 1, padding: (1, 1, 1, 1) },
        ConvGeometry { kernel: (3, 3), stride: 2, padding: (1, 1, 1, 1) },
        ConvGeometry { kernel: (3, 3), stride: 2, padding: (0, 0, 1, 1) },
        ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) },
        ConvGeometry { kernel: (2, 3), stride: 1, padding: (1, 2, 0, 1) },
    ];

    /// Products (output pixel, tap, source pixel) by the definition, forward.
    fn products(g: &ConvGeometry, (h, w): (usize, usize), (p, q): (usize, usize)) -> Vec<[usize; 5]> {
        let mut all = Vec::new();
        for (y, x) in (0..p).flat_map(|y| (0..q).map(move |x| (y, x))) {
            for (r, s) in (0..g.kernel.0).flat_map(|r| (0..g.kernel.1).map(move |s| (r, s))) {
                let row = (y * g.stride + r).checked_sub(g.padding.0).filter(|&row| row < h);
                let column = (x * g.stride + s).checked_sub(g.padding.1).filter(|&column| column < w);
                if let (Some(row), Some(column)) = (row, column) {
                    all.push([y, x, r * g.kernel.1 + s, row, column]);
                }
            }
        }
        all.sort_unstable();
        all
    }

    /// The same from the tables: [output pixel, tap, source pixel].
    fn products_of(views: &Views) -> Vec<[usize; 5]> {
        let pixel = |view: &View, y: usize, x: usize| (view.first.0 + y * view.step, view.first.1 + x * view.step);
        let mut all = Vec::new();
        for phase in &views.phases {
            let (h, w) = phase.out.size;
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                for tap in &phase.taps {
                    let view = &views.sources[tap.view];
                    let row = y.checked_add_signed(tap.y).filter(|&row| row < view.size.0);
                    let column = x.checked_add_signed(tap.x).filter(|&column| column < view.size.1);
                    if let (Some(row), Some(column)) = (row, column) {
                        let (out, source) = (pixel(&phase.out, y, x), pixel(view, row, column));
                        all.push([out.0, out.1, tap.filter, source.0, source.1]);
                    }
                }
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn views_are_the_convolution_forward_and_backward() {
        for g in &GEOMETRIES {
            for size in [(2, 2), (2, 5), (3, 3), (7, 4), (8, 9)] {
                let Some(out) = g.output_size(size.0, size.1) else { continue };
                let expected = products(g, size, out);
                assert_eq!(products_of(&views(Pass::Fprop, g, size, out).unwrap()), expected, "{g:?} {size:?}");
                let backward = views(Pass::Dgrad, g, out, size).unwrap();
                let mut turned: Vec<_> =
                    products_of(&backward).into_iter().map(|[h, w, tap, p, q]| [p, q, tap, h, w]).collect();
                turned.sort_unstable();
                assert_eq!(turned, expected, "backward {g:?} {size:?}");
                let lengths: Vec<usize> = backward.phases.iter().map(|phase| phase.taps.len()).collect();
                assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
            }
        }
    }

    /// Products of the convolution of the large image, each large pixel named by the small one that it copies.
    #[test]
    fn phases_of_an_upsampling_convolution_read_what_the_large_image_copies() {
        // The taps of one axis that `sum_taps.cu` adds for (parity, index).
        let summed = |parity: usize, index: usize| match (parity, index) {
            (0, 0) => 0..1,
            (0, 1) => 1..3,
            (1, 0) => 0..2,
            _ => 2..3,
        };
        for size in [(1, 1), (3, 2), (4, 5)] {
            let large = (2 * size.0, 2 * size.1);
            let mut expected = products(&GEOMETRIES[0], large, large);
            expected.iter_mut().for_each(|[.., row, column]| (*row, *column) = (*row / 2, *column / 2));
            expected.sort_unstable();
            let mut actual = Vec::new();
            for [y, x, filter, row, column] in products_of(&upsampled(size)) {
                let (phase, tap) = (filter / 4, filter % 4);
                for r in summed(phase / 2, tap / 2) {
                    actual.extend(summed(phase % 2, tap % 2).map(|s| [y, x, 3 * r + s, row, column]));
                }
            }
            actual.sort_unstable();
            assert_eq!(actual, expected, "{size:?}");
        }
    }

    #[test]
    fn what_has_no_views_says_why() {
        let halving = &GEOMETRIES[1];
        assert!(views(Pass::Fprop, halving, (1, 4), (1, 2)).unwrap_err().contains("view of it empty"));
        let pointwise = ConvGeometry { kernel: (1, 1), stride: 2, padding: (0, 0, 0, 0) };
        assert!(views(Pass::Dgrad, &pointwise, (2, 2), (4, 4)).unwrap_err().contains("without taps"));
        // A row of pixels has two phases, not four.
        assert_eq!(views(Pass::Dgrad, halving, (1, 2), (1, 4)).unwrap().phases.len(), 2);
    }
}
