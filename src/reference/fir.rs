//! Resampling by a separable filter, as the matrix that it is along each axis.

use super::Tensor;
use super::pointwise::gather;
use crate::graph::{Border, Fir, Shape};

/// `A_h x A_w^T` for every channel.
pub(super) fn resample(f: &Fir, x: Tensor, out: Shape) -> Vec<f64> {
    let ((h, w), (from_h, from_w)) = (out.height_width(), x.shape.height_width());
    let (rows, columns) = (axis(f, from_h, h), axis(f, from_w, w));
    gather(out, |n, y, z, c| {
        let row = |i: usize| (0..from_w).map(|j| columns[z][j] * x.at(n, i, j, c)).sum::<f64>();
        (0..from_h).filter(|&i| rows[y][i] != 0.0).map(|i| rows[y][i] * row(i)).sum()
    })
}

/// The matrix `[out][from]` of the operation along one axis.
fn axis(f: &Fir, from: usize, out: usize) -> Vec<Vec<f64>> {
    if f.border == Border::Fold {
        let forward = axis(&f.transposed(), out, from);
        return (0..out).map(|o| (0..from).map(|i| forward[i][o]).collect()).collect();
    }
    let mut matrix = vec![vec![0.0; from]; out];
    for i in 0..from {
        let impulse: Vec<f64> = (0..from).map(|k| f64::from(u8::from(k == i))).collect();
        for (row, value) in matrix.iter_mut().zip(filtered(f, &impulse)) {
            row[i] = value;
        }
    }
    matrix
}

/// Pads, inserts zeros, convolves and drops pixels, one after the other.
fn filtered(f: &Fir, x: &[f64]) -> Vec<f64> {
    let n = x.len() as isize;
    // Four pixels of padding on each side are more than any tap reaches.
    let padded = (-4..n + 4).map(|i| match f.border {
        Border::Mirror if i == -1 => x[1],
        Border::Mirror if i == n => x[x.len() - 2],
        _ => x.get(usize::try_from(i).unwrap_or(usize::MAX)).copied().unwrap_or(0.0),
    });
    let spread: Vec<f64> = if f.up { padded.flat_map(|v| [v, 0.0]).collect() } else { padded.collect() };
    let (origin, step, before, len) = if f.up { (8, 1, 2, 2 * x.len()) } else { (4, 2, 1, x.len() / 2) };
    let scale = f.gain / f.taps.iter().sum::<f64>();
    let tap = |o: usize, i: usize| f.taps[3 - i] * scale * spread[origin + step * o + i - before];
    (0..len).map(|o| (0..4).map(|i| tap(o, i)).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(f: Fir, (h, w): (usize, usize), data: &[f64]) -> Vec<f64> {
        let size = |v: usize| if f.up { 2 * v } else { v / 2 };
        let x = Tensor { shape: [1, h, w, 1].into(), data };
        resample(&f, x, [1, size(h), size(w), 1].into())
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

    /// Rows of a mirrored image, worked out by hand: x[-1] = x[1] and x[n] = x[n - 2].
    #[test]
    fn a_mirrored_image() {
        let taps = [1.0, 3.0, 3.0, 1.0];
        let x = [8.0, 16.0, -8.0, 24.0];
        // Down: (16 + 24 + 48 - 8) / 8 and (16 - 24 + 72 - 8) / 8; two equal rows mirrored are four equal rows.
        assert_eq!(filter(Fir::down(taps).mirrored(), (2, 4), &[x, x].concat()), [10.0, 7.0]);
        // Up: (x[1] + 3 x[0]) / 4 at one end and (3 x[1] + x[0]) / 4 at the other, both rows alike.
        let row = [5.0, 5.0, 7.0, 7.0];
        let up = filter(Fir::up(taps).mirrored(), (2, 2), &[4.0, 8.0, 4.0, 8.0]);
        assert_eq!(up, [row; 4].concat());
    }

    /// A constant image stays one, up to the border.
    #[test]
    fn a_mirrored_constant_is_kept_everywhere() {
        for f in [Fir::up([1.0, 3.0, 3.0, 1.0]), Fir::down([1.0, 3.0, 3.0, 1.0])] {
            assert!(filter(f.mirrored(), (6, 4), &[1.5; 24]).iter().all(|&v| v == 1.5));
        }
    }
}
