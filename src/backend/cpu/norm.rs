//! Group normalisation on NHWC, forward and backward.
//!
//! Two passes over fixed slices of rows: sums per channel, then the map. The slices depend only on the shape of one
//! image, so that results do not depend on the batch or on the threads; sums are kept in f64.

use multiversion::multiversion;
use rayon::prelude::*;

use super::math::{exp, sigmoid};
use crate::graph::{GroupNorm, Shape};

/// Rows of one slice: enough to amortise a task, few enough that a single image fills two cores.
fn slice_rows(shape: Shape) -> usize {
    (16_384 / shape.channels()).clamp(1, shape.pixels())
}

fn slices(shape: Shape) -> usize {
    shape.pixels().div_ceil(slice_rows(shape))
}

/// f64 numbers of workspace that either direction needs.
pub(super) fn workspace(shape: Shape) -> usize {
    shape.batch() * (slices(shape) + 2) * 2 * shape.channels()
}

/// Operands of the forward pass; `scale_shift` is empty where the norm is not modulated.
pub(super) struct Forward<'a> {
    pub x: &'a [f32],
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub scale_shift: &'a [f32],
}

/// Writes y and the statistics (mean, 1/std) of each (sample, group).
pub(super) fn forward(
    norm: &GroupNorm,
    shape: Shape,
    t: Forward,
    y: &mut [f32],
    statistics: &mut [f32],
    workspace: &mut [f64],
) {
    let (c, n) = (shape.channels(), shape.batch());
    let (sums, maps) = workspace.split_at_mut(n * slices(shape) * 2 * c);
    per_slice(shape, sums, |rows, sums| moments(&t.x[rows.0 * c..rows.1 * c], sums));
    let per_sample = c * shape.pixels();
    let group_stats = statistics.chunks_mut(2 * norm.groups);
    let maps = &mut maps[..n * 2 * c];
    for (sample, (stats, map)) in group_stats.zip(maps.chunks_mut(2 * c)).enumerate() {
        let sums = total(&mut sums[sample * slices(shape) * 2 * c..][..slices(shape) * 2 * c], 2 * c);
        let width = c / norm.groups;
        for (group, stat) in stats.chunks_mut(2).enumerate() {
            let channels = group * width..(group + 1) * width;
            let count = (width * shape.pixels()) as f64;
            let mean = sums[..c][channels.clone()].iter().sum::<f64>() / count;
            let square = sums[c..][channels.clone()].iter().sum::<f64>() / count;
            let inv_std = 1.0 / ((square - mean * mean).max(0.0) + norm.eps).sqrt();
            stat.copy_from_slice(&[mean as f32, inv_std as f32]);
            for k in channels {
                let (gain, offset) = affine(norm, &t, c, sample, k);
                map[k] = inv_std * gain;
                map[c + k] = offset - mean * inv_std * gain;
            }
        }
    }
    let maps = &*maps;
    y.par_chunks_mut(slice_rows(shape) * c).zip(t.x.par_chunks(slice_rows(shape) * c)).enumerate().for_each(
        |(task, (y, x))| {
            // A slice that crosses samples is cut; only images whose size the slice does not divide have them.
            let mut start = task * slice_rows(shape) * c;
            let (mut y, mut x) = (y, x);
            while !x.is_empty() {
                let sample = start / per_sample;
                let len = x.len().min((sample + 1) * per_sample - start);
                let (y_here, y_rest) = y.split_at_mut(len);
                let map = &maps[sample * 2 * c..][..2 * c];
                apply(&x[..len], map, norm.silu, y_here);
                (x, y, start) = (&x[len..], y_rest, start + len);
            }
        },
    );
}

/// The factor and summand that follow normalisation at one channel.
fn affine(norm: &GroupNorm, t: &Forward, c: usize, sample: usize, k: usize) -> (f64, f64) {
    let (gamma, beta) = (f64::from(t.gamma[k]), f64::from(t.beta[k]));
    if !norm.modulated {
        return (gamma, beta);
    }
    let row = &t.scale_shift[sample * 2 * c..];
    let (scale, shift) = (1.0 + f64::from(row[k]), f64::from(row[c + k]));
    (gamma * scale, beta * scale + shift)
}

/// Runs `f(rows of the whole tensor, the slice's sums)` for every slice of every sample, in parallel.
fn per_slice(shape: Shape, sums: &mut [f64], f: impl Fn((usize, usize), &mut [f64]) + Sync) {
    let (per_image, rows, pixels) = (slices(shape), slice_rows(shape), shape.pixels());
    sums.par_chunks_mut(2 * shape.channels()).enumerate().for_each(|(task, sums)| {
        let (sample, slice) = (task / per_image, task % per_image);
        let begin = slice * rows;
        sums.fill(0.0);
        f((sample * pixels + begin, sample * pixels + (begin + rows).min(pixels)), sums);
    });
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
fn apply(x: &[f32], map: &[f64], silu: bool, y: &mut [f32]) {
    let c = map.len() / 2;
    let (gain, offset) = map.split_at(c);
    for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
        for k in 0..c {
            y[k] = x[k] * gain[k] as f32 + offset[k] as f32;
        }
        if silu {
            for v in y.iter_mut() {
                *v *= sigmoid(*v);
            }
        }
    }
}

/// Operands of the backward pass.
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
    let (c, n) = (shape.channels(), shape.batch());
    let (sums, maps) = workspace.split_at_mut(n * slices(shape) * 2 * c);
    let maps = &mut maps[..n * 4 * c];
    for (sample, map) in maps.chunks_mut(4 * c).enumerate() {
        for k in 0..c {
            let group = k / (c / norm.groups);
            let stat = &t.statistics[(sample * norm.groups + group) * 2..];
            let (mean, inv_std) = (f64::from(stat[0]), f64::from(stat[1]));
            let (gain, offset) = affine(norm, &t.forward, c, sample, k);
            map[k] = inv_std;
            map[c + k] = -mean * inv_std;
            map[2 * c + k] = gain;
            map[3 * c + k] = offset;
        }
    }
    let (rows, pixels, per_image) = (slice_rows(shape), shape.pixels(), slices(shape));
    let maps_ref = &*maps;
    let dz_slices = super::parallel::SharedMut::new(out.dx);
    per_slice(shape, sums, |(begin, end), sums| {
        // SAFETY: slices of rows are disjoint, and `out.dx` is borrowed mutably until they all ended.
        let dz = unsafe { std::slice::from_raw_parts_mut(dz_slices.ptr().add(begin * c), (end - begin) * c) };
        let map = &maps_ref[begin / pixels * 4 * c..][..4 * c];
        at_output(&t.forward.x[begin * c..end * c], &t.dy[begin * c..end * c], map, norm.silu, dz, sums);
    });
    out.dgamma.fill(0.0);
    out.dbeta.fill(0.0);
    let width = c / norm.groups;
    for (sample, map) in maps.chunks_mut(4 * c).enumerate() {
        let sums = total(&mut sums[sample * per_image * 2 * c..][..per_image * 2 * c], 2 * c);
        let (plain, weighted) = sums.split_at(c);
        for k in 0..c {
            let (gamma, beta) = (f64::from(t.forward.gamma[k]), f64::from(t.forward.beta[k]));
            let modulation = if norm.modulated {
                let row = &mut out.dscale_shift[sample * 2 * c..];
                row[k] = (gamma * weighted[k] + beta * plain[k]) as f32;
                row[c + k] = plain[k] as f32;
                1.0 + f64::from(t.forward.scale_shift[sample * 2 * c + k])
            } else {
                1.0
            };
            out.dgamma[k] += (modulation * weighted[k]) as f32;
            out.dbeta[k] += (modulation * plain[k]) as f32;
        }
        let count = (width * pixels) as f64;
        for group in 0..norm.groups {
            let channels = group * width..(group + 1) * width;
            let mean = |s: &[f64]| channels.clone().map(|k| s[k] * map[2 * c + k]).sum::<f64>() / count;
            let (s0, s1) = (mean(plain), mean(weighted));
            for k in channels {
                map[3 * c + k] = -map[k] * (s0 + map[c + k] * s1);
                map[c + k] = -map[k] * map[k] * s1;
                map[2 * c + k] *= map[k];
            }
        }
    }
    let maps = &*maps;
    (0..n * per_image).into_par_iter().for_each(|task| {
        let (sample, begin) = (task / per_image, task % per_image * rows);
        let (begin, end) = (sample * pixels + begin, sample * pixels + (begin + rows).min(pixels));
        // SAFETY: as above.
        let dx = unsafe { std::slice::from_raw_parts_mut(dz_slices.ptr().add(begin * c), (end - begin) * c) };
        at_input(&t.forward.x[begin * c..end * c], &maps[sample * 4 * c..][..4 * c], dx);
    });
}

/// dz, the gradient before SiLU, and its sums per channel, plain and weighted with the normalised value.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn at_output(x: &[f32], dy: &[f32], map: &[f64], silu: bool, dz: &mut [f32], sums: &mut [f64]) {
    let c = sums.len() / 2;
    let (plain, weighted) = sums.split_at_mut(c);
    let (inv_std, shift) = (&map[..c], &map[c..2 * c]);
    let (gain, offset) = (&map[2 * c..3 * c], &map[3 * c..4 * c]);
    for ((x, dy), dz) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dz.chunks_exact_mut(c)) {
        if silu {
            for k in 0..c {
                let z = (x[k] * inv_std[k] as f32 + shift[k] as f32) * gain[k] as f32 + offset[k] as f32;
                let s = 1.0 / (1.0 + exp(-z));
                dz[k] = dy[k] * (s * (1.0 + z * (1.0 - s)));
            }
        } else {
            dz.copy_from_slice(dy);
        }
        for k in 0..c {
            let normalised = f64::from(x[k]) * inv_std[k] + shift[k];
            plain[k] += f64::from(dz[k]);
            weighted[k] += f64::from(dz[k]) * normalised;
        }
    }
}

/// Turns dz into dx: `dx = gain' dz + slope x + offset` per channel, with what [`backward`] put into the map.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn at_input(x: &[f32], map: &[f64], dx: &mut [f32]) {
    let c = map.len() / 4;
    let (slope, gain, offset) = (&map[c..2 * c], &map[2 * c..3 * c], &map[3 * c..]);
    for (x, dx) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)) {
        for k in 0..c {
            dx[k] = dx[k] * gain[k] as f32 + (x[k] * slope[k] as f32 + offset[k] as f32);
        }
    }
}
