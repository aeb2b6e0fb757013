//! Conversions between NCHW, in which images cross the API, and NHWC, in which they are computed.

/// `[N, C, H, W]` elements as `[N, H, W, C]`; `shape` is NCHW.
pub fn nchw_to_nhwc<T: Copy>(x: &[T], [n, c, h, w]: [usize; 4]) -> Vec<T> {
    transpose_each(x, n, c, h * w)
}

/// `[N, H, W, C]` elements as `[N, C, H, W]`; `shape` is NCHW.
pub fn nhwc_to_nchw<T: Copy>(x: &[T], [n, c, h, w]: [usize; 4]) -> Vec<T> {
    transpose_each(x, n, h * w, c)
}

/// Transposes `n` matrices of `rows` x `cols`.
fn transpose_each<T: Copy>(x: &[T], n: usize, rows: usize, cols: usize) -> Vec<T> {
    assert_eq!(x.len(), n * rows * cols, "the slice does not fit the shape");
    let mut y = Vec::with_capacity(x.len());
    for m in x.chunks_exact((rows * cols).max(1)) {
        for j in 0..cols {
            y.extend((0..rows).map(|i| m[i * cols + j]));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_convert_both_ways() {
        let shape = [2, 3, 2, 5];
        let nchw: Vec<u32> = (0..60).collect();
        let nhwc = nchw_to_nhwc(&nchw, shape);
        // Element (n 1, c 2, h 0, w 3) of both.
        let at =
            |sizes: [usize; 4], index: [usize; 4]| sizes.iter().zip(index).fold(0, |sum, (size, i)| sum * size + i);
        assert_eq!(nhwc[at([2, 2, 5, 3], [1, 0, 3, 2])], nchw[at(shape, [1, 2, 0, 3])]);
        assert_eq!(nhwc_to_nchw(&nhwc, shape), nchw);
    }
}
