//! Operations that move, add or map elements; each is bound by memory.

use rayon::prelude::*;

use super::activation;
use super::fir::Axis;
use crate::graph::op::TimeEmbedding;
use crate::graph::{Op, Shape};
use crate::rng::{Sequence, Stream};

/// Elements of one task.
const CHUNK: usize = 1 << 14;

/// Shapes of the first operand and of the result.
pub(super) struct Shapes {
    pub x: Shape,
    pub out: Shape,
}

/// Runs an operation with up to three operands.
pub(super) fn run(op: &Op, s: Shapes, [a, b, c]: [&[f32]; 3], y: &mut [f32]) {
    let channels = s.out.channels();
    match op {
        Op::TimeEmbedding(e) => {
            y.chunks_mut(e.dim).zip(a).for_each(|(row, &t)| time_embedding(e, f64::from(t), row));
        }
        Op::FourierEmbedding => y.chunks_mut(2 * b.len()).zip(a).for_each(|(row, &t)| {
            let (sin, cos) = row.split_at_mut(b.len());
            for (k, w) in b.iter().enumerate() {
                let angle = std::f64::consts::TAU * f64::from(*w) * f64::from(t).ln();
                (sin[k], cos[k]) = (angle.sin() as f32, angle.cos() as f32);
            }
        }),
        Op::TimestepIndex { count } => {
            let last = (count - 1) as f32;
            let index = bytemuck::cast_slice_mut::<f32, u32>(y);
            index.iter_mut().zip(a).for_each(|(i, t)| *i = t.round_ties_even().clamp(0.0, last) as u32);
        }
        Op::Embedding => {
            for (row, index) in y.chunks_mut(channels).zip(bytemuck::cast_slice::<f32, u32>(b)) {
                row.copy_from_slice(&a[*index as usize * channels..][..channels]);
            }
        }
        Op::EmbeddingGrad { .. } => {
            y.fill(0.0);
            for (row, index) in a.chunks(channels).zip(bytemuck::cast_slice::<f32, u32>(b)) {
                let to = &mut y[*index as usize * channels..][..channels];
                to.iter_mut().zip(row).for_each(|(t, d)| *t += d);
            }
        }
        Op::Upsample2x => rows(s.out, y, |r, row| row.copy_from_slice(pixel(a, s.x, r.half()))),
        Op::AvgPool2xGrad => rows(s.out, y, |r, row| {
            row.iter_mut().zip(pixel(a, s.x, r.half())).for_each(|(y, x)| *y = 0.25 * x);
        }),
        Op::Upsample2xGrad => rows(s.out, y, |r, row| patch(a, s.x, r, 1.0, row)),
        Op::AvgPool2x => rows(s.out, y, |r, row| patch(a, s.x, r, 0.25, row)),
        Op::Fir(f) => {
            let ((h, w), (from_h, from_w)) = (s.out.height_width(), s.x.height_width());
            let (along_h, along_w) = (Axis::new(f, from_h, h), Axis::new(f, from_w, w));
            rows(s.out, y, |r, row| {
                row.fill(0.0);
                for (h, row_weight) in along_h.taps(r.h) {
                    for (w, weight) in along_w.taps(r.w) {
                        let from = pixel(a, s.x, Pixel { n: r.n, h, w });
                        let weight = row_weight * weight;
                        row.iter_mut().zip(from).for_each(|(y, x)| *y += weight * x);
                    }
                }
            });
        }
        Op::Concat => {
            let (ca, cb) = (s.x.channels(), channels - s.x.channels());
            by_rows(y, channels, |r, row| {
                row[..ca].copy_from_slice(&a[r * ca..][..ca]);
                row[ca..].copy_from_slice(&b[r * cb..][..cb]);
            });
        }
        Op::Slice { start, len } => {
            let c = s.x.channels();
            by_rows(y, *len, |r, row| row.copy_from_slice(&a[r * c + start..][..*len]));
        }
        Op::Activation(f) => by_chunks(y, a, a, activation::forward(*f)),
        Op::ActivationGrad(f) => by_chunks(y, a, b, activation::gradient(*f)),
        Op::Add => by_chunks(y, a, b, |y, a, b| y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b)),
        Op::AddPerImage => by_rows(y, channels, |r, row| {
            let vector = &b[r / s.out.pixels() * channels..][..channels];
            for (k, y) in row.iter_mut().enumerate() {
                *y = a[r * channels + k] + vector[k];
            }
        }),
        Op::SumPixels => y.par_chunks_mut(channels).enumerate().for_each(|(n, sums)| {
            sums.fill(0.0);
            for row in a[n * s.x.pixels() * channels..][..s.x.pixels() * channels].chunks(channels) {
                sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            }
        }),
        Op::AbsMax => y[0] = abs_max(a),
        Op::Affine { mul, add } => {
            let (mul, add) = (*mul as f32, *add as f32);
            by_chunks(y, a, a, |y, a, _| y.iter_mut().zip(a).for_each(|(y, a)| *y = a * mul + add));
        }
        Op::DivideByTime => {
            let sample = y.len() / s.out.batch();
            y.iter_mut().zip(a).enumerate().for_each(|(i, (y, a))| *y = a / b[i / sample]);
        }
        Op::Dropout { p, layer } => {
            let key = [c[0].to_bits(), c[1].to_bits()];
            let sample = y.len() / s.out.batch();
            let (p, keep) = (*p as f32, 1.0 / (1.0 - *p as f32));
            y.par_chunks_mut(sample).zip(a.par_chunks(sample)).zip(b).for_each(|((y, a), example)| {
                let sequence = Sequence::with_key(key, Stream::Dropout(*layer), example.to_bits(), 0);
                for (i, (y, a)) in y.chunks_mut(4).zip(a.chunks(4)).enumerate() {
                    let u = sequence.uniforms(i as u32);
                    for k in 0..y.len() {
                        y[k] = if u[k] < p { 0.0 } else { a[k] * keep };
                    }
                }
            });
        }
        Op::Constant { value, .. } => y.fill(*value as f32),
        Op::ToAct => by_chunks(y, a, a, |y, a, _| y.copy_from_slice(a)),
        Op::RepeatBatch => {
            let (first, second) = y.split_at_mut(a.len());
            first.copy_from_slice(a);
            second.copy_from_slice(a);
        }
        op => unreachable!("{} has its own kernel", op.name()),
    }
}

fn by_chunks(y: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync) {
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((y, a), b)| f(y, a, b));
}

/// Calls `f(row, channels)` for every row, many rows to a task.
fn by_rows(y: &mut [f32], channels: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let per_task = (CHUNK / channels).max(1);
    y.par_chunks_mut(per_task * channels).enumerate().for_each(|(task, block)| {
        for (i, row) in block.chunks_mut(channels).enumerate() {
            f(task * per_task + i, row);
        }
    });
}

/// A pixel of a batch.
#[derive(Clone, Copy)]
struct Pixel {
    n: usize,
    h: usize,
    w: usize,
}

impl Pixel {
    fn half(self) -> Self {
        Self { n: self.n, h: self.h / 2, w: self.w / 2 }
    }
}

fn rows(shape: Shape, y: &mut [f32], f: impl Fn(Pixel, &mut [f32]) + Sync) {
    let (h, w) = shape.height_width();
    by_rows(y, shape.channels(), |r, row| f(Pixel { n: r / (h * w), h: r / w % h, w: r % w }, row));
}

fn pixel(x: &[f32], shape: Shape, p: Pixel) -> &[f32] {
    let (h, w) = shape.height_width();
    let c = shape.channels();
    &x[((p.n * h + p.h) * w + p.w) * c..][..c]
}

/// `scale` times the sum of the 2x2 patch of x that belongs to an output pixel.
fn patch(x: &[f32], shape: Shape, p: Pixel, scale: f32, out: &mut [f32]) {
    let at = |dh, dw| pixel(x, shape, Pixel { n: p.n, h: 2 * p.h + dh, w: 2 * p.w + dw });
    let (a, b, c, d) = (at(0, 0), at(0, 1), at(1, 0), at(1, 1));
    for (k, y) in out.iter_mut().enumerate() {
        *y = scale * ((a[k] + b[k]) + (c[k] + d[k]));
    }
}

/// Angles in f64: in f32 those of large t would be wrong in the fifth digit.
fn time_embedding(e: &TimeEmbedding, t: f64, row: &mut [f32]) {
    let half = e.dim / 2;
    row.fill(0.0);
    for i in 0..half {
        let angle = e.scale * t * (-(10_000f64.ln()) * i as f64 / (half as f64 - e.freq_shift)).exp();
        let (sin, cos) = if e.flip_sin_to_cos { (half + i, i) } else { (i, half + i) };
        row[sin] = angle.sin() as f32;
        row[cos] = angle.cos() as f32;
    }
}
/// The largest magnitude: magnitudes are ordered as the integers of their bits, NaN above all.
fn abs_max(x: &[f32]) -> f32 {
    f32::from_bits(x.par_iter().map(|v| v.abs().to_bits()).max().unwrap_or(0))
}
