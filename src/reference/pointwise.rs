//! Operations that move, add or map elements.

use super::{Tensor, activation, fir};
use crate::graph::op::TimeEmbedding;
use crate::graph::{Op, Shape};
use crate::rng::{Sequence, Stream};

pub(super) fn eval(op: &Op, x: &[Tensor], out: Shape) -> Vec<f64> {
    match op {
        Op::TimeEmbedding(e) => time_embedding(e, x[0].data),
        Op::FourierEmbedding => fourier(x[0].data, x[1].data),
        Op::TimestepIndex { count } => {
            let last = (count - 1) as f64;
            x[0].data.iter().map(|t| t.round_ties_even().clamp(0.0, last)).collect()
        }
        Op::Constant { len, value } => vec![*value; *len],
        Op::Embedding => {
            let width = out.channels();
            let row = |i: &f64| &x[0].data[*i as usize * width..][..width];
            x[1].data.iter().flat_map(row).copied().collect()
        }
        Op::EmbeddingGrad { .. } => {
            let width = out.channels();
            let mut table = vec![0.0; out.numel()];
            for (row, index) in x[1].data.iter().enumerate() {
                for d in 0..width {
                    table[*index as usize * width + d] += x[0].data[row * width + d];
                }
            }
            table
        }
        Op::Upsample2x => gather(out, |n, h, w, c| x[0].at(n, h / 2, w / 2, c)),
        Op::Upsample2xGrad => gather(out, |n, h, w, c| patch(x[0], n, h, w, c)),
        Op::AvgPool2x => gather(out, |n, h, w, c| patch(x[0], n, h, w, c) / 4.0),
        Op::AvgPool2xGrad => gather(out, |n, h, w, c| x[0].at(n, h / 2, w / 2, c) / 4.0),
        Op::Fir(f) => fir::resample(f, x[0], out),
        Op::Concat => {
            let (a, b) = (x[0].shape.channels(), x[1].shape.channels());
            (0..out.rows())
                .flat_map(|r| x[0].data[r * a..][..a].iter().chain(&x[1].data[r * b..][..b]))
                .copied()
                .collect()
        }
        Op::Slice { start, len } => {
            let c = x[0].shape.channels();
            (0..out.rows()).flat_map(|r| &x[0].data[r * c + start..][..*len]).copied().collect()
        }
        Op::Activation(f) => x[0].data.iter().map(|&z| activation::value(*f, z)).collect(),
        Op::ActivationGrad(f) => zip(x, |dy, z| dy * activation::slope(*f, z)),
        Op::Add => zip(x, |a, b| a + b),
        Op::AddPerImage => {
            let (c, sample) = (out.channels(), out.pixels() * out.channels());
            let vector = |i: usize| x[1].data[i / sample * c + i % c];
            x[0].data.iter().enumerate().map(|(i, v)| v + vector(i)).collect()
        }
        Op::SumPixels => {
            let (c, pixels) = (out.channels(), x[0].shape.pixels());
            (0..out.numel()).map(|i| (0..pixels).map(|p| x[0].data[(i / c * pixels + p) * c + i % c]).sum()).collect()
        }
        Op::AbsMax => vec![abs_max(x[0].data)],
        Op::Affine { mul, add } => x[0].data.iter().map(|v| mul * v + add).collect(),
        Op::DivideByTime => {
            let sample = out.numel() / out.batch();
            x[0].data.iter().enumerate().map(|(i, v)| v / x[1].data[i / sample]).collect()
        }
        Op::Dropout { p, layer } => dropout(*p, *layer, x),
        Op::ToAct => x[0].data.to_vec(),
        Op::RepeatBatch => x[0].data.iter().chain(x[0].data).copied().collect(),
        _ => unreachable!("{} is not a pointwise operation", op.name()),
    }
}

fn zip(x: &[Tensor], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    x[0].data.iter().zip(x[1].data).map(|(&a, &b)| f(a, b)).collect()
}

/// NaN if there is one.
fn abs_max(x: &[f64]) -> f64 {
    if x.iter().any(|v| v.is_nan()) { f64::NAN } else { x.iter().fold(0.0, |m, v| v.abs().max(m)) }
}

pub(super) fn gather(out: Shape, f: impl Fn(usize, usize, usize, usize) -> f64) -> Vec<f64> {
    let [n, h, w, c] = out.dims()[..] else { unreachable!("an image has four dimensions") };
    let mut y = Vec::with_capacity(out.numel());
    for i in 0..n * h * w * c {
        y.push(f(i / (h * w * c), i / (w * c) % h, i / c % w, i % c));
    }
    y
}

fn patch(x: Tensor, n: usize, h: usize, w: usize, c: usize) -> f64 {
    let at = |dh, dw| x.at(n, 2 * h + dh, 2 * w + dw, c);
    at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)
}

fn time_embedding(e: &TimeEmbedding, t: &[f64]) -> Vec<f64> {
    let half = e.dim / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / (half as f64 - e.freq_shift)).exp();
    let angle = |t: f64, i: usize| e.scale * t * frequency(i);
    t.iter()
        .flat_map(|&t| {
            (0..e.dim).map(move |i| match (i / half.max(1), e.flip_sin_to_cos) {
                (0, true) | (1, false) => angle(t, i % half).cos(),
                (0, false) | (1, true) => angle(t, i % half).sin(),
                _ => 0.0,
            })
        })
        .collect()
}

fn fourier(t: &[f64], w: &[f64]) -> Vec<f64> {
    let angle = |t: f64, w: f64| std::f64::consts::TAU * w * t.ln();
    t.iter()
        .flat_map(|&t| {
            let sin = w.iter().map(move |&w| angle(t, w).sin());
            sin.chain(w.iter().map(move |&w| angle(t, w).cos()))
        })
        .collect()
}

/// Inputs: x, example_index, key.
fn dropout(p: f64, layer: u32, x: &[Tensor]) -> Vec<f64> {
    let sample = x[0].data.len() / x[1].data.len();
    let key = [x[2].data[0] as u32, x[2].data[1] as u32];
    x[0].data
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let example = x[1].data[i / sample] as u32;
            let u = Sequence::with_key(key, Stream::Dropout(layer), example, 0).uniform(i % sample);
            if f64::from(u) < f64::from(p as f32) { 0.0 } else { v / (1.0 - p) }
        })
        .collect()
}
