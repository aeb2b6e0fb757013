//! The head of a classifier: tokens of a pool, and the log-probability of a class.

use super::Tensor;
use crate::graph::{Op, Shape};

/// Results of one of the operations of a classifier's head.
pub(super) fn eval(op: &Op, x: &[Tensor], out: Shape) -> Vec<Vec<f64>> {
    match op {
        Op::PoolTokens => vec![pool_tokens(x[0], x[1].data)],
        Op::PoolTokensGrad { .. } => {
            let (pixels, c) = (out.pixels(), out.channels());
            let image = |i: usize| i / (pixels * c) * (pixels + 1) * c;
            let token = |i: usize, token: usize| x[0].data[image(i) + token * c + i % c];
            vec![(0..out.numel()).map(|i| token(i, i / c % pixels + 1) + token(i, 0) / pixels as f64).collect()]
        }
        Op::SpreadPixels { .. } => {
            let (c, image) = (out.channels(), out.pixels() * out.channels());
            vec![(0..out.numel()).map(|i| x[0].data[i / image * c + i % c]).collect()]
        }
        Op::FirstToken => {
            let tokens = x[0].shape.pixels();
            let c = out.channels();
            vec![(0..out.numel()).map(|i| x[0].data[i / c * tokens * c + i % c]).collect()]
        }
        Op::FirstTokenGrad { tokens } => {
            let c = out.channels();
            let first = |i: usize| (i / c).is_multiple_of(*tokens);
            vec![
                (0..out.numel())
                    .map(|i| if first(i) { x[0].data[i / (tokens * c) * c + i % c] } else { 0.0 })
                    .collect(),
            ]
        }
        _ => log_probability(x[0], x[1].data),
    }
}

fn pool_tokens(x: Tensor, positions: &[f64]) -> Vec<f64> {
    let (pixels, c) = (x.shape.pixels(), x.shape.channels());
    let mut y = Vec::with_capacity(x.shape.batch() * (pixels + 1) * c);
    for image in x.data.chunks(pixels * c) {
        for token in 0..=pixels {
            for k in 0..c {
                let value = match token.checked_sub(1) {
                    Some(pixel) => image[pixel * c + k],
                    None => image.iter().skip(k).step_by(c).sum::<f64>() / pixels as f64,
                };
                y.push(value + positions[k * (pixels + 1) + token]);
            }
        }
    }
    y
}

/// log softmax(logits)[label] and its gradient, onehot(label) - softmax(logits).
fn log_probability(logits: Tensor, labels: &[f64]) -> Vec<Vec<f64>> {
    let (mut log_p, mut gradient) = (Vec::new(), Vec::new());
    for (row, label) in logits.data.chunks(logits.shape.channels()).zip(labels) {
        let label = *label as usize;
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let log_sum = largest + row.iter().map(|v| (v - largest).exp()).sum::<f64>().ln();
        log_p.push(row[label] - log_sum);
        gradient.extend(row.iter().enumerate().map(|(k, v)| f64::from(u8::from(k == label)) - (v - log_sum).exp()));
    }
    vec![log_p, gradient]
}
