//! Operations that move, add or map elements.

use super::Tensor;
use super::norm::{sigmoid, silu_slope};
use crate::graph::op::TimeEmbedding;
use crate::graph::{Fir, Op, Shape};
use crate::rng::{Sequence, Stream};

pub(super) fn eval(op: &Op, x: &[Tensor], out: Shape) -> Vec<f64> {
    match op {
        Op::TimeEmbedding(e) => time_embedding(e, x[0].data),
        Op::FourierEmbedding => fourier(x[0].data, x[1].data),
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
        Op::Fir(f) => fir(f, x[0], out),
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
        Op::Silu => x[0].data.iter().map(|&z| z * sigmoid(z)).collect(),
        Op::SiluGrad => zip(x, |dy, z| dy * silu_slope(z)),
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

fn gather(out: Shape, f: impl Fn(usize, usize, usize, usize) -> f64) -> Vec<f64> {
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

/// Inserts zeros, pads, convolves with the outer product of the taps and drops pixels, one after the other.
fn fir(f: &Fir, x: Tensor, out: Shape) -> Vec<f64> {
    let (factor_up, factor_down, before) = if f.up { (2, 1, 2) } else { (1, 2, 1) };
    let (h, w) = x.shape.height_width();
    let spread = |n: usize, y: Option<usize>, x_: Option<usize>, c: usize| -> f64 {
        let (Some(y), Some(x_)) = (y, x_) else { return 0.0 };
        let inside = y < h * factor_up && x_ < w * factor_up;
        if inside && y % factor_up == 0 && x_ % factor_up == 0 {
            x.at(n, y / factor_up, x_ / factor_up, c)
        } else {
            0.0
        }
    };
    let scale = (f.gain / f.taps.iter().sum::<f64>()).powi(2);
    gather(out, |n, y, x, c| {
        let mut sum = 0.0;
        for i in 0..4 {
            for j in 0..4 {
                let (p, q) = (y * factor_down + i, x * factor_down + j);
                let value = spread(n, p.checked_sub(before), q.checked_sub(before), c);
                sum += f.taps[3 - i] * f.taps[3 - j] * scale * value;
            }
        }
        sum
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(f: Fir, (h, w): (usize, usize), data: &[f64]) -> Vec<f64> {
        let size = |v: usize| if f.up { 2 * v } else { v / 2 };
        let x = Tensor { shape: [1, h, w, 1].into(), data };
        fir(&f, x, [1, size(h), size(w), 1].into())
    }

    /// The rows of both operators along one axis, worked out by hand; the other axis is an impulse's.
    #[test]
    fn the_filter_of_the_released_models() {
        let taps = [1.0, 3.0, 3.0, 1.0];
        // Of one row, up: (x[m-1] + 3 x[m]) / 4 and (3 x[m] + x[m+1]) / 4; the two rows meet 3/4 of it.
        let up = filter(Fir::up(taps), (1, 3), &[4.0, 8.0, -16.0]);
        let row: Vec<f64> = [3.0, 5.0, 7.0, 2.0, -10.0, -12.0].iter().map(|v| 0.75 * v).collect();
        assert_eq!(up, [row.clone(), row].concat());
        // Down: (x[2o-1] + 3 x[2o] + 3 x[2o+1] + x[2o+2]) / 8, of two equal rows 6/8.
        let x = [8.0, 16.0, -8.0, 24.0];
        let down = filter(Fir::down(taps), (2, 4), &[x, x].concat());
        assert_eq!(down, [8.0, 8.0].map(|v| 0.75 * v));
    }

    /// A convolution turns its filter around: the first tap meets the pixel farthest to the right.
    #[test]
    fn a_filter_that_is_not_symmetric() {
        let taps = [1.0, 10.0, 100.0, 889.0];
        let mut x = vec![0.0; 64];
        x[3 * 8 + 3] = 1e6;
        // Down, pixel 3 lies at 4 of the padded axis: third of the four of column 1, first of those of column 2.
        let down = filter(Fir::down(taps), (8, 8), &x);
        let expected = |o: usize| [0.0, 10.0, 889.0, 0.0][o];
        // Up, it lies at 8 of the padded axis: last of the four of column 5, first of those of column 8.
        let up = filter(Fir::up(taps), (8, 8), &x);
        let spread = |o: usize| if (5..9).contains(&o) { 2.0 * taps[o - 5] } else { 0.0 };
        for y in 0..16 {
            for x in 0..16 {
                if y < 4 && x < 4 {
                    assert!((down[y * 4 + x] - expected(y) * expected(x)).abs() < 1e-9, "down {y} {x}");
                }
                assert!((up[y * 16 + x] - spread(y) * spread(x)).abs() < 1e-8, "up {y} {x}: {}", up[y * 16 + x]);
            }
        }
    }

    #[test]
    fn constants_are_kept_away_from_the_border() {
        for f in [Fir::up([1.0, 3.0, 3.0, 1.0]), Fir::down([1.0, 3.0, 3.0, 1.0])] {
            let y = filter(f, (8, 8), &[1.5; 64]);
            let side = if f.up { 16 } else { 4 };
            for i in 1..side - 1 {
                for j in 1..side - 1 {
                    assert_eq!(y[i * side + j], 1.5);
                }
            }
            assert!(y[0] < 1.5);
        }
    }
}
