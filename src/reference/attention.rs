//! Multi-head self-attention (Vaswani et al. 2017) over the pixels of an image.

use super::Tensor;

/// The q, k and v of one head of one sample.
struct Head<'a> {
    qkv: Tensor<'a>,
    sample: usize,
    first_channel: usize,
    width: usize,
}

impl Head<'_> {
    fn tokens(&self) -> usize {
        self.qkv.shape.pixels()
    }

    /// `part` 0 is q, 1 is k, 2 is v.
    fn index(&self, part: usize, token: usize, d: usize) -> usize {
        let row = self.qkv.shape.channels();
        (self.sample * self.tokens() + token) * row + part * row / 3 + self.first_channel + d
    }

    fn get(&self, part: usize, token: usize, d: usize) -> f64 {
        self.qkv.data[self.index(part, token, d)]
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// Softmax of the scores of query `i`, and their log-sum-exp.
    fn probabilities(&self, i: usize) -> (Vec<f64>, f64) {
        let scores: Vec<f64> = (0..self.tokens())
            .map(|j| self.scale() * (0..self.width).map(|d| self.get(0, i, d) * self.get(1, j, d)).sum::<f64>())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let lse = max + total.ln();
        (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
    }
}

fn heads(qkv: Tensor<'_>, heads: usize) -> impl Iterator<Item = Head<'_>> {
    let width = qkv.shape.channels() / 3 / heads;
    (0..qkv.shape.batch())
        .flat_map(move |sample| (0..heads).map(move |head| Head { qkv, sample, first_channel: head * width, width }))
}

pub(super) fn attention(n: usize, qkv: Tensor) -> Vec<Vec<f64>> {
    let c = qkv.shape.channels() / 3;
    let mut out = vec![0.0; qkv.data.len() / 3];
    let mut lse = Vec::new();
    for head in heads(qkv, n) {
        for i in 0..head.tokens() {
            let (p, l) = head.probabilities(i);
            lse.push(l);
            for d in 0..head.width {
                out[(head.sample * head.tokens() + i) * c + head.first_channel + d] =
                    (0..head.tokens()).map(|j| p[j] * head.get(2, j, d)).sum();
            }
        }
    }
    vec![out, lse]
}

/// Operands: dout, qkv, out. The mean of a row of score gradients is dout * out, with `out` as it was stored.
pub(super) fn attention_grad(n: usize, dout: Tensor, qkv: Tensor, out: Tensor) -> Vec<f64> {
    let c = qkv.shape.channels() / 3;
    let mut dqkv = vec![0.0; qkv.data.len()];
    for head in heads(qkv, n) {
        for i in 0..head.tokens() {
            let (p, _) = head.probabilities(i);
            let at = (head.sample * head.tokens() + i) * c + head.first_channel;
            let dy = |d: usize| dout.data[at + d];
            let dp: Vec<f64> =
                (0..head.tokens()).map(|j| (0..head.width).map(|d| dy(d) * head.get(2, j, d)).sum()).collect();
            let mean: f64 = (0..head.width).map(|d| dy(d) * out.data[at + d]).sum();
            for j in 0..head.tokens() {
                let dscore = p[j] * (dp[j] - mean) * head.scale();
                for d in 0..head.width {
                    dqkv[head.index(0, i, d)] += dscore * head.get(1, j, d);
                    dqkv[head.index(1, j, d)] += dscore * head.get(0, i, d);
                    dqkv[head.index(2, j, d)] += p[j] * dy(d);
                }
            }
        }
    }
    dqkv
}
