//! Multi-head self-attention without materialising all scores: blocks of queries against all keys.
//!
//! The blocks depend only on the number of tokens, so an image gets the same bits in any batch.

use multiversion::multiversion;

use super::gemm::{Epilogue, Gemm, Matrix, Operand, Threads, gemm};
use super::math::exp;
use super::parallel::{SharedMut, for_each_task};
use crate::graph::Shape;

/// Queries of one block: enough rows to amortise packing the keys, few enough that a single image fills two cores.
const QUERIES: usize = 128;

/// The sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    batch: usize,
    tokens: usize,
    heads: usize,
    /// Channels of one head.
    width: usize,
}

impl Geometry {
    pub fn new(qkv: Shape, heads: usize) -> Self {
        Self { batch: qkv.batch(), tokens: qkv.pixels(), heads, width: qkv.channels() / 3 / heads }
    }

    fn channels(&self) -> usize {
        self.heads * self.width
    }

    fn rows(&self) -> usize {
        QUERIES.min(self.tokens)
    }

    /// Blocks of queries: `(first, count)`.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (tokens, rows) = (self.tokens, self.rows());
        (0..tokens).step_by(rows).map(move |q| (q, rows.min(tokens - q)))
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    fn products_workspace(&self) -> usize {
        let (r, t, d) = (self.rows(), self.tokens, self.width);
        [(r, t, d), (r, d, t), (t, d, r)]
            .iter()
            .map(|&(m, n, k)| Gemm::new(m, n, k).workspace(false, 1))
            .max()
            .unwrap_or(0)
    }

    fn forward_scratch(&self) -> usize {
        self.rows() * (self.tokens + self.width) + self.products_workspace()
    }

    fn backward_scratch(&self) -> usize {
        let gradients = (2 * self.tokens + self.rows()) * self.width;
        2 * self.rows() * self.tokens + gradients + self.products_workspace()
    }

    /// Floats of workspace of [`forward`].
    pub fn forward_workspace(&self, threads: usize) -> usize {
        threads * self.forward_scratch()
    }

    /// Floats of workspace of [`backward`].
    pub fn backward_workspace(&self, threads: usize) -> usize {
        threads * self.backward_scratch()
    }

    /// q, k or v (`part` 0, 1, 2) of a head from token `token` on.
    fn part<'a>(&self, qkv: &'a [f32], sample: usize, head: usize, part: usize, token: usize) -> &'a [f32] {
        let row = 3 * self.channels();
        &qkv[(sample * self.tokens + token) * row + part * self.channels() + head * self.width..]
    }

    /// The channels of a head in a tensor of the output's shape, from token `token` on.
    fn slice<'a>(&self, y: &'a [f32], sample: usize, head: usize, token: usize) -> &'a [f32] {
        &y[(sample * self.tokens + token) * self.channels() + head * self.width..]
    }
}

fn product(g: Gemm, a: Matrix, b: Matrix, c: &mut [f32], workspace: &mut [f32]) {
    gemm(&g, a, Operand::Plain(b), c, &Epilogue::NONE, Threads::Serial, workspace);
}

/// Writes `y = softmax(q k^T / sqrt(width)) v` and the log-sum-exp of every row of scores.
pub(super) fn forward(g: Geometry, qkv: &[f32], y: &mut [f32], lse: &mut [f32], workspace: &mut [f32]) {
    let per_head = g.blocks().count();
    let tasks = g.batch * g.heads * per_head;
    let (y, lse) = (SharedMut::new(y), SharedMut::new(lse));
    let row = 3 * g.channels();
    for_each_task(rayon::current_num_threads(), tasks, workspace, g.forward_scratch(), &|task, scratch| {
        let (unit, block) = (task / per_head, task % per_head);
        let (sample, head) = (unit / g.heads, unit % g.heads);
        let first = block * g.rows();
        let rows = g.rows().min(g.tokens - first);
        let (scores, rest) = scratch.split_at_mut(g.rows() * g.tokens);
        let (out, products) = rest.split_at_mut(g.rows() * g.width);
        let scores = &mut scores[..rows * g.tokens];
        let keys = Matrix::transposed(g.part(qkv, sample, head, 1, 0), row);
        let scaled = Gemm { alpha: g.scale(), ..Gemm::new(rows, g.tokens, g.width) };
        product(scaled, Matrix::row_major(g.part(qkv, sample, head, 0, first), row), keys, scores, products);
        for (i, scores) in scores.chunks_exact_mut(g.tokens).enumerate() {
            let total = softmax(scores);
            // SAFETY: each task writes its own rows of its own head, within the tensor.
            unsafe { *lse.ptr().add(unit * g.tokens + first + i) = total };
        }
        let values = Matrix::row_major(g.part(qkv, sample, head, 2, 0), row);
        product(Gemm::new(rows, g.width, g.tokens), Matrix::row_major(scores, g.tokens), values, out, products);
        for (i, out) in out.chunks_exact(g.width).take(rows).enumerate() {
            let at = (sample * g.tokens + first + i) * g.channels() + head * g.width;
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(y.ptr().add(at), g.width) }.copy_from_slice(out);
        }
    });
}

/// Replaces scores by their softmax; returns their log-sum-exp.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn softmax(scores: &mut [f32]) -> f32 {
    let max = maximum(scores);
    for s in scores.iter_mut() {
        *s = exp(*s - max);
    }
    let total = sum(scores);
    let inverse = 1.0 / total;
    for s in scores.iter_mut() {
        *s *= inverse;
    }
    max + total.ln()
}

/// Sixteen partial results keep the reduction's order independent of the vector width.
#[inline(always)]
fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (l, v) in lanes.iter_mut().zip(chunk) {
            *l = f(*l, *v);
        }
    }
    for (l, v) in lanes.iter_mut().zip(rest) {
        *l = f(*l, *v);
    }
    lanes.into_iter().fold(start, f)
}

#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    lanes(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    lanes(x, 0.0, |a, b| a + b)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for i in 0..a.len() {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum()
}

/// Operands of the backward pass: the gradient at the output, the forward operand and both forward results.
#[derive(Clone, Copy)]
pub(super) struct Backward<'a> {
    pub dy: &'a [f32],
    pub qkv: &'a [f32],
    pub y: &'a [f32],
    pub lse: &'a [f32],
}

/// Writes the gradient of qkv; the probabilities are recomputed from the log-sum-exp.
pub(super) fn backward(g: Geometry, t: Backward, dqkv: &mut [f32], workspace: &mut [f32]) {
    let (row, c) = (3 * g.channels(), g.channels());
    let (block, head_len) = (g.rows() * g.tokens, g.tokens * g.width);
    let out = SharedMut::new(dqkv);
    for_each_task(
        rayon::current_num_threads(),
        g.batch * g.heads,
        workspace,
        g.backward_scratch(),
        &|task, scratch| {
            let (sample, head) = (task / g.heads, task % g.heads);
            let (p, rest) = scratch.split_at_mut(block);
            let (ds, rest) = rest.split_at_mut(block);
            let (dk, rest) = rest.split_at_mut(head_len);
            let (dv, rest) = rest.split_at_mut(head_len);
            let (dq, products) = rest.split_at_mut(g.rows() * g.width);
            let store = |part: usize, first: usize, rows: &[f32]| {
                for (i, values) in rows.chunks_exact(g.width).enumerate() {
                    let at = (sample * g.tokens + first + i) * row + part * c + head * g.width;
                    // SAFETY: each task writes the channels of its own head of its own sample.
                    unsafe { std::slice::from_raw_parts_mut(out.ptr().add(at), g.width) }.copy_from_slice(values);
                }
            };
            let part = |part: usize, first: usize| g.part(t.qkv, sample, head, part, first);
            for (first, rows) in g.blocks() {
                let (p, ds) = (&mut p[..rows * g.tokens], &mut ds[..rows * g.tokens]);
                let q = Matrix::row_major(part(0, first), row);
                let scaled = Gemm { alpha: g.scale(), ..Gemm::new(rows, g.tokens, g.width) };
                product(scaled, q, Matrix::transposed(part(1, 0), row), p, products);
                let dy = Matrix::row_major(g.slice(t.dy, sample, head, first), c);
                let plain = Gemm::new(rows, g.tokens, g.width);
                product(plain, dy, Matrix::transposed(part(2, 0), row), ds, products);
                for i in 0..rows {
                    let lse = t.lse[task * g.tokens + first + i];
                    let (y, dy) = (g.slice(t.y, sample, head, first + i), g.slice(t.dy, sample, head, first + i));
                    let range = i * g.tokens..(i + 1) * g.tokens;
                    let mean = dot(&y[..g.width], &dy[..g.width]);
                    score_gradients(lse, mean, g.scale(), &mut p[range.clone()], &mut ds[range]);
                }
                let dq = &mut dq[..rows * g.width];
                let keys = Matrix::row_major(part(1, 0), row);
                product(Gemm::new(rows, g.width, g.tokens), Matrix::row_major(ds, g.tokens), keys, dq, products);
                store(0, first, dq);
                let sum = Gemm { accumulate: first > 0, ..Gemm::new(g.tokens, g.width, rows) };
                product(sum, Matrix::transposed(ds, g.tokens), q, dk, products);
                product(sum, Matrix::transposed(p, g.tokens), dy, dv, products);
            }
            store(1, 0, dk);
            store(2, 0, dv);
        },
    );
}

/// Turns scores into probabilities, and gradients of probabilities into gradients of (unscaled) scores.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn score_gradients(lse: f32, mean: f32, scale: f32, p: &mut [f32], ds: &mut [f32]) {
    for (p, d) in p.iter_mut().zip(ds) {
        *p = exp(*p - lse);
        *d = *p * (*d - mean) * scale;
    }
}
