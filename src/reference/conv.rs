//! Convolutions and linear layers as loops over their defining sums.

use super::Tensor;
use crate::graph::{ConvGeometry, Epilogue, Shape};

/// Calls `f(output pixel (n, p, q), tap (r, s), input pixel (h, w))` for every pair that the padding does not hide.
fn for_each_tap(
    g: &ConvGeometry,
    input: Shape,
    output: Shape,
    mut f: impl FnMut((usize, usize, usize), (usize, usize), (usize, usize)),
) {
    let (h, w) = input.height_width();
    let (oh, ow) = output.height_width();
    for n in 0..output.batch() {
        for p in 0..oh {
            for q in 0..ow {
                for r in 0..g.kernel.0 {
                    for s in 0..g.kernel.1 {
                        let y = (p * g.stride + r).checked_sub(g.padding.0);
                        let x = (q * g.stride + s).checked_sub(g.padding.1);
                        if let (Some(y), Some(x)) = (y, x)
                            && y < h
                            && x < w
                        {
                            f((n, p, q), (r, s), (y, x));
                        }
                    }
                }
            }
        }
    }
}

fn offset(s: Shape, n: usize, y: usize, x: usize) -> usize {
    let (h, w) = s.height_width();
    ((n * h + y) * w + x) * s.channels()
}

pub(super) fn fprop(g: &ConvGeometry, e: &Epilogue, x: &[Tensor], out: Shape) -> Vec<f64> {
    let (image, weight) = (x[0], x[1]);
    let mut y = vec![0.0; out.numel()];
    let (c, k) = (image.shape.channels(), out.channels());
    for_each_tap(g, image.shape, out, |(n, p, q), (r, s), (h, w)| {
        for ki in 0..k {
            let sum: f64 = (0..c).map(|ci| image.at(n, h, w, ci) * weight.at(ki, r, s, ci)).sum();
            y[offset(out, n, p, q) + ki] += sum;
        }
    });
    epilogue(e, &x[2..], out, y)
}

fn epilogue(e: &Epilogue, mut extra: &[Tensor], out: Shape, mut y: Vec<f64>) -> Vec<f64> {
    let k = out.channels();
    let mut next = |used: bool| {
        used.then(|| {
            let (first, rest) = extra.split_at(1);
            extra = rest;
            first[0].data
        })
    };
    let (bias, per_image, residual) = (next(e.bias), next(e.per_image), next(e.residual));
    for (i, v) in y.iter_mut().enumerate() {
        *v += bias.map_or(0.0, |b| b[i % k]);
        *v += per_image.map_or(0.0, |b| b[i / (out.pixels() * k) * k + i % k]);
        *v += residual.map_or(0.0, |b| b[i]);
        *v *= e.scale;
    }
    y
}

pub(super) fn dgrad(g: &ConvGeometry, x: &[Tensor], out: Shape) -> Vec<f64> {
    let (dy, weight) = (x[0], x[1]);
    let mut dx = vec![0.0; out.numel()];
    let (c, k) = (out.channels(), dy.shape.channels());
    for_each_tap(g, out, dy.shape, |(n, p, q), (r, s), (h, w)| {
        for ci in 0..c {
            let sum: f64 = (0..k).map(|ki| dy.at(n, p, q, ki) * weight.at(ki, r, s, ci)).sum();
            dx[offset(out, n, h, w) + ci] += sum;
        }
    });
    add_residual(dx, x.get(2))
}

fn add_residual(mut dx: Vec<f64>, residual: Option<&Tensor>) -> Vec<f64> {
    if let Some(r) = residual {
        dx.iter_mut().zip(r.data).for_each(|(d, r)| *d += r);
    }
    dx
}

pub(super) fn wgrad(g: &ConvGeometry, bias: bool, x: &[Tensor], out: Shape) -> Vec<Vec<f64>> {
    let (dy, image) = (x[0], x[1]);
    let mut dw = vec![0.0; out.numel()];
    let [k, rr, ss, c] = out.dims()[..] else { unreachable!("a weight has four dimensions") };
    for_each_tap(g, image.shape, dy.shape, |(n, p, q), (r, s), (h, w)| {
        for ki in 0..k {
            for ci in 0..c {
                dw[((ki * rr + r) * ss + s) * c + ci] += dy.at(n, p, q, ki) * image.at(n, h, w, ci);
            }
        }
    });
    let db = bias.then(|| column_sums(dy));
    std::iter::once(dw).chain(db).collect()
}

fn column_sums(t: Tensor) -> Vec<f64> {
    let c = t.shape.channels();
    let mut sums = vec![0.0; c];
    for (i, v) in t.data.iter().enumerate() {
        sums[i % c] += v;
    }
    sums
}

pub(super) fn linear(e: &Epilogue, x: &[Tensor], out: Shape) -> Vec<f64> {
    let (a, w) = (x[0], x[1]);
    let (i, o) = (a.shape.channels(), out.channels());
    let y = (0..out.numel())
        .map(|index| {
            let (row, col) = (index / o, index % o);
            (0..i).map(|k| a.data[row * i + k] * w.data[col * i + k]).sum()
        })
        .collect();
    epilogue(e, &x[2..], out, y)
}

pub(super) fn linear_dgrad(x: &[Tensor], out: Shape) -> Vec<f64> {
    let (dy, w) = (x[0], x[1]);
    let (i, o) = (out.channels(), dy.shape.channels());
    let dx = (0..out.numel())
        .map(|index| {
            let (row, col) = (index / i, index % i);
            (0..o).map(|k| dy.data[row * o + k] * w.data[k * i + col]).sum()
        })
        .collect();
    add_residual(dx, x.get(2))
}

pub(super) fn linear_wgrad(bias: bool, x: &[Tensor]) -> Vec<Vec<f64>> {
    let (dy, a) = (x[0], x[1]);
    let (i, o) = (a.shape.channels(), dy.shape.channels());
    let dw = (0..o * i)
        .map(|index| {
            let (row, col) = (index / i, index % i);
            (0..a.shape.rows()).map(|n| dy.data[n * o + row] * a.data[n * i + col]).sum()
        })
        .collect();
    let db = bias.then(|| column_sums(dy));
    std::iter::once(dw).chain(db).collect()
}
