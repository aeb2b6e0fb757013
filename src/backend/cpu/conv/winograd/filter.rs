//! The filter transform, done when weights are packed.

use super::tile::Tile;
use crate::backend::cpu::conv::shape::{ConvShape, Pass};
use crate::backend::cpu::gemm::microkernel::PANEL;
use crate::backend::cpu::lines::LINE;
use crate::backend::cpu::parallel::{SharedMut, for_each_task};
use crate::backend::cpu::simd::{Kernel, Simd, isa};
use std::marker::PhantomData;

/// Input channels gathered at a time: one cache line of canonical weights.
const CHANNELS: usize = LINE;

/// Floats of the filters of one panel at one point, a line more than they fill: without it, a filter's points would
/// all fall into one cache set when they are written.
pub(super) fn point_stride(inputs: usize) -> usize {
    inputs * PANEL + LINE
}

/// Writes `U = G g G^T` as `[ceil(out / 32)][T * T][in][32]`, points [`point_stride`] apart, for dgrad of the flipped, transposed filter.
///
/// The transform runs in f64 and rounds once: that costs little and leaves the error of F(4x4) to the data.
pub(super) fn pack<W: Tile<T, M>, const T: usize, const M: usize>(
    shape: &ConvShape,
    pass: Pass,
    weights: &[f32],
    out: &mut [f32],
) {
    let (inputs, outputs) = match pass {
        Pass::Fprop => (shape.c, shape.k),
        Pass::Dgrad => (shape.k, shape.c),
    };
    let groups = inputs.div_ceil(CHANNELS);
    let shared = SharedMut::new(out);
    let isa = isa();
    for_each_task(rayon::current_num_threads(), outputs.div_ceil(PANEL) * groups, &mut [], 0, &|task, _| {
        let (panel, group) = (task / groups, task % groups);
        let first = group * CHANNELS;
        let channels = (inputs - first).min(CHANNELS);
        let cols = (outputs - panel * PANEL).min(PANEL);
        let mut taps = [[[0.0f32; PANEL]; CHANNELS]; 9];
        for (tap, taps) in taps.iter_mut().enumerate() {
            match pass {
                Pass::Fprop => {
                    for j in 0..cols {
                        let at = ((panel * PANEL + j) * 9 + tap) * shape.c + first;
                        for (row, &w) in taps.iter_mut().zip(&weights[at..at + channels]) {
                            row[j] = w;
                        }
                    }
                }
                Pass::Dgrad => {
                    for (i, row) in taps.iter_mut().take(channels).enumerate() {
                        let at = ((first + i) * 9 + 8 - tap) * shape.c + panel * PANEL;
                        row[..cols].copy_from_slice(&weights[at..at + cols]);
                    }
                }
            }
        }
        for c in 0..channels {
            let at = panel * T * T * point_stride(inputs) + (first + c) * PANEL;
            // SAFETY: each task writes its own channels of its own panel, and `out` holds all of them.
            unsafe {
                let out = shared.ptr().add(at);
                isa.run(Filter::<W, T, M> {
                    taps: &taps,
                    channel: c,
                    out,
                    point_stride: point_stride(inputs),
                    tile: PhantomData,
                });
            }
        }
    });
}

struct Filter<'a, W, const T: usize, const M: usize> {
    taps: &'a [[[f32; PANEL]; CHANNELS]; 9],
    channel: usize,
    out: *mut f32,
    point_stride: usize,
    tile: PhantomData<W>,
}

impl<W: Tile<T, M>, const T: usize, const M: usize> Kernel for Filter<'_, W, T, M> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for half in (0..PANEL).step_by(8) {
            let tap =
                |i: usize| -> [f64; 8] { std::array::from_fn(|j| f64::from(self.taps[i][self.channel][half + j])) };
            let mut columns = [[[0.0f64; 8]; 3]; T];
            for s in 0..3 {
                let g = [tap(s), tap(3 + s), tap(6 + s)];
                for (i, row) in columns.iter_mut().enumerate() {
                    row[s] = combine(&W::G[i], &g);
                }
            }
            for (i, row) in columns.iter().enumerate() {
                for j in 0..T {
                    let u = combine(&W::G[j], row);
                    // SAFETY: the caller vouches for 32 floats at each of the T * T points.
                    unsafe {
                        let out = self.out.add((i * T + j) * self.point_stride + half);
                        out.cast::<[f32; 8]>().write_unaligned(u.map(|v| v as f32));
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn combine(g: &[f64; 3], v: &[[f64; 8]; 3]) -> [f64; 8] {
    std::array::from_fn(|l| g[0] * v[0][l] + g[1] * v[1][l] + g[2] * v[2][l])
}
