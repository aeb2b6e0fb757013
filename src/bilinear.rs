//! Bilinear upsampling of images: how super-resolution models are given their condition.

/// Images `[N, H, W, C]` of `from` = (H, W) in the size `to`, a pixel's centre at half its width, borders repeated: what
/// PyTorch calls `bilinear` without `align_corners`.
///
/// # Panics
/// A length that is no multiple of an image's, and images without pixels.
pub fn resize(images: &[f32], channels: usize, from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let image = from.0 * from.1 * channels;
    assert!(image > 0 && images.len().is_multiple_of(image), "the images do not have the size they are said to have");
    let (rows, columns) = (weights(from.0, to.0), weights(from.1, to.1));
    let mut out = Vec::with_capacity(images.len() / image * to.0 * to.1 * channels);
    for image in images.chunks_exact(image) {
        let pixel = |row: usize, column: usize, c: usize| f64::from(image[(row * from.1 + column) * channels + c]);
        for &(y, fy) in &rows {
            for &(x, fx) in &columns {
                let (y1, x1) = ((y + 1).min(from.0 - 1), (x + 1).min(from.1 - 1));
                out.extend((0..channels).map(|c| {
                    let above = (1.0 - fx) * pixel(y, x, c) + fx * pixel(y, x1, c);
                    let below = (1.0 - fx) * pixel(y1, x, c) + fx * pixel(y1, x1, c);
                    ((1.0 - fy) * above + fy * below) as f32
                }));
            }
        }
    }
    out
}

/// For each place along an axis, the place before it in the original and the weight of the one after.
fn weights(from: usize, to: usize) -> Vec<(usize, f64)> {
    (0..to)
        .map(|i| {
            let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
            let before = (at.floor() as usize).min(from - 1);
            (before, at - before as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_two_pixels_in_four_and_in_three() {
        // Centres at 1/4, 3/4, 5/4, 7/4 of the original pixels, whose own are at 1/2 and 3/2.
        assert_eq!(resize(&[0.0, 4.0], 1, (1, 2), (1, 4)), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(resize(&[0.0, 6.0], 1, (1, 2), (1, 3)), [0.0, 3.0, 6.0]);
    }

    #[test]
    fn a_plane_stays_a_plane_between_the_outer_centres() {
        let (h, w, c) = (3, 5, 2);
        let plane = |y: f64, x: f64, c: usize| 0.5 * y - 0.25 * x + c as f64;
        let images: Vec<f32> =
            (0..2 * h * w * c).map(|i| plane((i / (w * c) % h) as f64, (i / c % w) as f64, i % c) as f32).collect();
        let out = resize(&images, c, (h, w), (12, 15));
        for (i, v) in out.iter().enumerate() {
            let (y, x) = (i / (15 * c) % 12, i / c % 15);
            let at = |i: usize, scale: f64, last: usize| ((i as f64 + 0.5) / scale - 0.5).clamp(0.0, last as f64);
            let expected = plane(at(y, 4.0, h - 1), at(x, 3.0, w - 1), i % c);
            assert!((f64::from(*v) - expected).abs() < 1e-6, "{i}: {v} instead of {expected}");
        }
    }
}
