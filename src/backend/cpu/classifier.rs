//! The head of a classifier: tokens of a pool, and the log-probability of a class. Small beside its network.

use rayon::prelude::*;

use crate::graph::{Op, Shape};

/// Moves pixels to tokens or back, and vectors to pixels; `x` and `out` are the shapes of the first operand and of the result.
pub(super) fn tokens(op: &Op, x: Shape, out: Shape, [a, positions]: [&[f32]; 2], y: &mut [f32]) {
    let c = out.channels();
    let images = a.par_chunks(a.len() / x.batch()).zip(y.par_chunks_mut(y.len() / out.batch()));
    match op {
        Op::PoolTokens => images.for_each(|(image, tokens)| pool(image, positions, c, tokens)),
        Op::PoolTokensGrad { .. } => images.for_each(|(tokens, image)| {
            let (mean, tokens) = tokens.split_at(c);
            let share = 1.0 / out.pixels() as f32;
            for (pixel, token) in image.chunks_mut(c).zip(tokens.chunks(c)) {
                pixel.iter_mut().zip(token).zip(mean).for_each(|((pixel, token), mean)| *pixel = token + share * mean);
            }
        }),
        Op::SpreadPixels { .. } => {
            images.for_each(|(vector, image)| image.chunks_mut(c).for_each(|pixel| pixel.copy_from_slice(vector)));
        }
        Op::FirstToken => images.for_each(|(tokens, first)| first.copy_from_slice(&tokens[..c])),
        _ => images.for_each(|(first, tokens)| {
            tokens[..c].copy_from_slice(first);
            tokens[c..].fill(0.0);
        }),
    }
}

fn pool(image: &[f32], positions: &[f32], c: usize, tokens: &mut [f32]) {
    let (mean, rest) = tokens.split_at_mut(c);
    let count = rest.len() / c;
    mean.fill(0.0);
    for pixel in image.chunks(c) {
        mean.iter_mut().zip(pixel).for_each(|(mean, x)| *mean += x);
    }
    mean.iter_mut().for_each(|mean| *mean /= count as f32);
    rest.copy_from_slice(image);
    for (token, values) in tokens.chunks_mut(c).enumerate() {
        values.iter_mut().enumerate().for_each(|(k, value)| *value += positions[k * (count + 1) + token]);
    }
}

/// log softmax(logits)[label] of each row, and its gradient.
pub(super) fn log_probability(logits: &[f32], labels: &[u32], log_p: &mut [f32], gradient: &mut [f32]) {
    let classes = logits.len() / labels.len();
    let rows = logits.chunks(classes).zip(gradient.chunks_mut(classes));
    for ((label, log_p), (row, gradient)) in labels.iter().zip(log_p).zip(rows) {
        let label = *label as usize;
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
        *log_p = (f64::from(row[label] - largest) - sum.ln()) as f32;
        for (k, (g, v)) in gradient.iter_mut().zip(row).enumerate() {
            *g = f32::from(u8::from(k == label)) - (f64::from(v - largest).exp() / sum) as f32;
        }
    }
}
