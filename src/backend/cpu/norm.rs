//! Group normalisation on NHWC, forward and backward.
//!
//! Two passes over slices of rows: sums per channel, then a map per channel. The slices depend only on the shape of one
//! image and sums are f64, so results depend neither on the batch nor on the threads. Where there are enough images each
//! is one task, so that its second pass finds it in the cache; else its slices are tasks.

use multiversion::multiversion;
use rayon::prelude::*;

use super::math::{exp, sigmoid};
use crate::graph::{GroupNorm, Shape};

/// How the work on one image is cut.
#[derive(Clone, Copy)]
struct Cut {
    channels: usize,
    pixels: usize,
    /// Rows of one slice: enough to amortise a task, few enough that a single image fills the cores.
    rows: usize,
    slices: usize,
    /// Whether slices, rather than images, are tasks.
    by_slice: bool,
}

impl Cut {
    fn new(shape: Shape) -> Self {
        let (channels, pixels) = (shape.channels(), shape.pixels());
        let rows = (16_384 / channels).clamp(1, pixels);
        let by_slice = shape.batch() < 2 * rayon::current_num_threads();
        Self { channels, pixels, rows, slices: pixels.div_ceil(rows), by_slice }
    }

    /// Elements of an image.
    fn image(&self) -> usize {
        self.channels * self.pixels
    }

    /// Elements of a slice; the last may have fewer.
    fn slice(&self) -> usize {
        self.rows * self.channels
    }

    /// f64 numbers of workspace of an image: two sums per channel and slice, and four f32 per channel for the map.
    fn workspace(&self) -> usize {
        (self.slices + 1) * 2 * self.channels
    }

    /// The two parts of an image's workspace.
    fn split<'a>(&self, workspace: &'a mut [f64]) -> (&'a mut [f64], &'a mut [f32]) {
        let (sums, map) = workspace.split_at_mut(self.slices * 2 * self.channels);
        (sums, bytemuck::cast_slice_mut(map))
    }
}

/// f64 numbers of workspace that either direction needs.
pub(super) fn workspace(shape: Shape) -> usize {
    shape.batch() * Cut::new(shape).workspace()
}

/// Operands of the forward pass; `scale_shift` is empty where the norm is not modulated.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub x: &'a [f32],
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub scale_shift: &'a [f32],
}

impl Forward<'_> {
    /// The factor and summand that follow normalisation at channel `k` of image `n`.
    fn affine(&self, norm: &GroupNorm, n: usize, k: usize) -> (f64, f64) {
        let (gamma, beta) = (f64::from(self.gamma[k]), f64::from(self.beta[k]));
        let (scale, shift) = self.modulation(norm, n, k);
        (gamma * scale, beta * scale + shift)
    }

    /// `1 + scale` and shift.
    fn modulation(&self, norm: &GroupNorm, n: usize, k: usize) -> (f64, f64) {
        if !norm.modulated {
            return (1.0, 0.0);
        }
        let c = self.gamma.len();
        let row = &self.scale_shift[n * 2 * c..];
        (1.0 + f64::from(row[k]), f64::from(row[c + k]))
    }
}

/// Writes y and the statistics (mean, 1/std) of each (image, group).
pub(super) fn forward(
    norm: &GroupNorm,
    shape: Shape,
    t: Forward,
    y: &mut [f32],
    statistics: &mut [f32],
    workspace: &mut [f64],
) {
    let cut = Cut::new(shape);
    let images =
        t.x.par_chunks(cut.image())
            .zip(y.par_chunks_mut(cut.image()))
            .zip(statistics.par_chunks_mut(2 * norm.groups))
            .zip(workspace.par_chunks_mut(cut.workspace()))
            .enumerate();
    for_each(!cut.by_slice, images, |(n, (((x, y), stats), workspace))| {
        let (sums, map) = cut.split(workspace);
        let slices = x.par_chunks(cut.slice()).zip(sums.par_chunks_mut(2 * cut.channels));
        for_each(cut.by_slice, slices, |(x, sums)| {
            sums.fill(0.0);
            moments(x, sums);
        });
        let sums = total(sums, 2 * cut.channels);
        forward_map(norm, cut, &t, n, sums, stats, map);
        let map = &*map;
        let slices = x.par_chunks(cut.slice()).zip(y.par_chunks_mut(cut.slice()));
        for_each(cut.by_slice, slices, |(x, y)| apply(x, map, norm.silu, y));
    });
}

/// In parallel, or in order on this thread.
fn for_each<I: IndexedParallelIterator>(parallel: bool, items: I, f: impl Fn(I::Item) + Sync + Send) {
    if parallel {
        items.for_each(f);
    } else {
        // One piece as long as the whole runs in order without a single allocation.
        let len = items.len().max(1);
        items.with_min_len(len).for_each(f);
    }
}

/// Statistics from sums of x and x², and the map `y = gain x + offset` of each channel.
fn forward_map(
    norm: &GroupNorm,
    cut: Cut,
    t: &Forward,
    n: usize,
    sums: &[f64],
    statistics: &mut [f32],
    map: &mut [f32],
) {
    let c = cut.channels;
    let width = c / norm.groups;
    let count = (width * cut.pixels) as f64;
    for (group, stat) in statistics.chunks_mut(2).enumerate() {
        let channels = group * width..(group + 1) * width;
        let mean = sums[..c][channels.clone()].iter().sum::<f64>() / count;
        let square = sums[c..][channels.clone()].iter().sum::<f64>() / count;
        let inv_std = 1.0 / ((square - mean * mean).max(0.0) + norm.eps).sqrt();
        stat.copy_from_slice(&[mean as f32, inv_std as f32]);
        for k in channels {
            let (gain, offset) = t.affine(norm, n, k);
            map[k] = (inv_std * gain) as f32;
            map[c + k] = (offset - mean * inv_std * gain) as f32;
        }
    }
}

/// Adds all rows of `sums` to the first and returns it.
fn total(sums: &mut [f64], width: usize) -> &mut [f64] {
    let (first, rest) = sums.split_at_mut(width);
    for row in rest.chunks(width) {
        first.iter_mut().zip(row).for_each(|(a, b)| *a += b);
    }
    first
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn moments(x: &[f32], sums: &mut [f64]) {
    let c = sums.len() / 2;
    let (first, second) = sums.split_at_mut(c);
    for row in x.chunks_exact(c) {
        for k in 0..c {
            let v = f64::from(row[k]);
            first[k] += v;
            second[k] += v * v;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn apply(x: &[f32], map: &[f32], silu: bool, y: &mut [f32]) {
    let c = map.len() / 4;
    let (gain, offset) = (&map[..c], &map[c..2 * c]);
    for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        for k in 0..c {
            let z = x[k] * gain[k] + offset[k];
            y[k] = if silu { z * sigmoid(z) } else { z };
        }
    }
}

/// Operands of the backward pass.
#[derive(Clone, Copy)]
pub(super) struct Backward<'a> {
    pub dy: &'a [f32],
    pub forward: Forward<'a>,
    pub statistics: &'a [f32],
}

/// Results of the backward pass; `dscale_shift` is empty where the norm is not modulated.
pub(super) struct Gradients<'a> {
    pub dx: &'a mut [f32],
    pub dgamma: &'a mut [f32],
    pub dbeta: &'a mut [f32],
    pub dscale_shift: &'a mut [f32],
}

/// Writes all gradients. `dx` holds the gradient at the norm's output between the passes.
pub(super) fn backward(norm: &GroupNorm, shape: Shape, t: Backward, out: Gradients, workspace: &mut [f64]) {
    let cut = Cut::new(shape);
    let c = cut.channels;
    let images = t
        .forward
        .x
        .par_chunks(cut.image())
        .zip(t.dy.par_chunks(cut.image()))
        .zip(out.dx.par_chunks_mut(cut.image()))
        .zip(workspace.par_chunks_mut(cut.workspace()))
        .enumerate();
    for_each(!cut.by_slice, images, |(n, (((x, dy), dx), workspace))| {
        let (sums, map) = cut.split(workspace);
        output_map(norm, cut, &t, n, map);
        let slices = x
            .par_chunks(cut.slice())
            .zip(dy.par_chunks(cut.slice()))
            .zip(dx.par_chunks_mut(cut.slice()))
            .zip(sums.par_chunks_mut(2 * c));
        let map_ref = &*map;
        for_each(cut.by_slice, slices, |(((x, dy), dz), sums)| {
            sums.fill(0.0);
            at_output(x, dy, map_ref, norm.silu, dz, sums);
        });
        input_map(norm, cut, total(sums, 2 * c), map);
        let map = &*map;
        let slices = x.par_chunks(cut.slice()).zip(dx.par_chunks_mut(cut.slice()));
        for_each(cut.by_slice, slices, |(x, dx)| at_input(x, map, dx));
    });

    out.dgamma.fill(0.0);
    out.dbeta.fill(0.0);
    for (n, sums) in workspace.chunks(cut.workspace()).take(shape.batch()).enumerate() {
        let (plain, weighted) = sums[..2 * c].split_at(c);
        for k in 0..c {
            let (gamma, beta) = (f64::from(t.forward.gamma[k]), f64::from(t.forward.beta[k]));
            let (modulation, _) = t.forward.modulation(norm, n, k);
            out.dgamma[k] += (modulation * weighted[k]) as f32;
            out.dbeta[k] += (modulation * plain[k]) as f32;
            if norm.modulated {
                let row = &mut out.dscale_shift[n * 2 * c..];
                row[k] = (gamma * weighted[k] + beta * plain[k]) as f32;
                row[c + k] = plain[k] as f32;
            }
        }
    }
}

/// The map from x to its normalised value (factor, summand) and from there to the output (gain, offset).
fn output_map(norm: &GroupNorm, cut: Cut, t: &Backward, n: usize, map: &mut [f32]) {
    let c = cut.channels;
    for k in 0..c {
        let group = k / (c / norm.groups);
        let stat = &t.statistics[(n * norm.groups + group) * 2..];
        let (mean, inv_std) = (f64::from(stat[0]), f64::from(stat[1]));
        let (gain, offset) = t.forward.affine(norm, n, k);
        map[k] = inv_std as f32;
        map[c + k] = (-mean * inv_std) as f32;
        map[2 * c + k] = gain as f32;
        map[3 * c + k] = offset as f32;
    }
}

/// Turns the map of [`output_map`] into `dx = gain' dz + slope x + offset'`, kept in its last three quarters.
fn input_map(norm: &GroupNorm, cut: Cut, sums: &[f64], map: &mut [f32]) {
    let c = cut.channels;
    let width = c / norm.groups;
    let count = (width * cut.pixels) as f64;
    let (plain, weighted) = sums.split_at(c);
    for group in 0..norm.groups {
        let channels = group * width..(group + 1) * width;
        let mean = |s: &[f64]| channels.clone().map(|k| s[k] * f64::from(map[2 * c + k])).sum::<f64>() / count;
        let (s0, s1) = (mean(plain), mean(weighted));
        for k in channels {
            let (inv_std, shift) = (f64::from(map[k]), f64::from(map[c + k]));
            map[c + k] = (-inv_std * inv_std * s1) as f32;
            map[2 * c + k] *= inv_std as f32;
            map[3 * c + k] = (-inv_std * (s0 + shift * s1)) as f32;
        }
    }
}

/// dz, the gradient before SiLU, and its sums per channel, plain and weighted with the normalised value.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn at_output(x: &[f32], dy: &[f32], map: &[f32], silu: bool, dz: &mut [f32], sums: &mut [f64]) {
    let c = sums.len() / 2;
    let (plain, weighted) = sums.split_at_mut(c);
    let (inv_std, shift) = (&map[..c], &map[c..2 * c]);
    let (gain, offset) = (&map[2 * c..3 * c], &map[3 * c..4 * c]);
    for ((x, dy), dz) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
        for k in 0..c {
            let normalised = x[k] * inv_std[k] + shift[k];
            let z = normalised * gain[k] + offset[k];
            let s = 1.0 / (1.0 + exp(-z));
            dz[k] = if silu { dy[k] * (s * (1.0 + z * (1.0 - s))) } else { dy[k] };
            plain[k] += f64::from(dz[k]);
            weighted[k] += f64::from(dz[k]) * f64::from(normalised);
        }
    }
}

/// Turns dz into dx with the map of [`input_map`].
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn at_input(x: &[f32], map: &[f32], dx: &mut [f32]) {
    let c = map.len() / 4;
    let (slope, gain, offset) = (&map[c..2 * c], &map[2 * c..3 * c], &map[3 * c..]);
    for (x, dx) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)) {
        for k in 0..c {
            dx[k] = dx[k] * gain[k] + (x[k] * slope[k] + offset[k]);
        }
    }
}
