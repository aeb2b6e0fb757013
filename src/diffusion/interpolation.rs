//! Between two latents.

/// The point at `share` of the way from `a` to `b` along the arc between them: weights sin((1 - s) angle) / sin(angle) and
/// sin(s angle) / sin(angle). A straight line would lead through points that are shorter than noise ever is.
///
/// Where the arc is not determined, for parallel, opposite and zero vectors, it is the straight line.
///
/// # Panics
/// Slices of different lengths.
pub fn slerp(a: &[f32], b: &[f32], share: f64) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "the latents differ in length");
    let dot = |u: &[f32], v: &[f32]| u.iter().zip(v).map(|(&u, &v)| f64::from(u) * f64::from(v)).sum::<f64>();
    let cosine = (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).clamp(-1.0, 1.0);
    let angle = cosine.acos();
    let (first, second) = if angle.sin() > 1e-6 {
        (((1.0 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin())
    } else {
        (1.0 - share, share)
    };
    a.iter().zip(b).map(|(&a, &b)| (first * f64::from(a) + second * f64::from(b)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arc_keeps_the_length_and_divides_the_angle() {
        let (a, b) = ([2.0f32, 0.0, 0.0], [0.0f32, 0.0, 2.0]);
        for share in [0.0, 0.25, 0.5, 0.8, 1.0] {
            let c = slerp(&a, &b, share);
            let angle = share * std::f64::consts::FRAC_PI_2;
            let expected = [2.0 * angle.cos(), 0.0, 2.0 * angle.sin()];
            assert!(c.iter().zip(expected).all(|(&c, e)| (f64::from(c) - e).abs() < 1e-6), "{c:?}");
        }
    }

    #[test]
    fn where_there_is_no_arc_it_is_the_line() {
        assert_eq!(slerp(&[1.0, 2.0], &[2.0, 4.0], 0.5), [1.5, 3.0]);
        assert_eq!(slerp(&[0.0, 0.0], &[2.0, 4.0], 0.25), [0.5, 1.0]);
    }
}
