//! The one-dimensional transforms of Winograd's minimal filtering, F(M, 3), by Toom-Cook interpolation.
//!
//! A tile of T = M + 2 inputs d and a filter g of three taps give M outputs `A^T [(G g) * (B^T d)]`: polynomials are
//! evaluated at T points (infinity among them), multiplied there, and the product is read back. The same bilinear form
//! transposed gives the weight gradient, `G^T [(A dy) * (B^T d)]`. Two-dimensional transforms apply these to rows, then
//! to columns (Lavin and Gray 2016).

use crate::backend::cpu::simd::Simd;

/// F(M, 3) on tiles of T = M + 2.
pub(crate) trait Tile<const T: usize, const M: usize> {
    /// The filter transform.
    const G: [[f64; 3]; T];

    /// `B^T d`.
    unsafe fn input<S: Simd>(d: [S::V; T]) -> [S::V; T];
    /// `A^T m`.
    unsafe fn output<S: Simd>(m: [S::V; T]) -> [S::V; M];
    /// `A dy`.
    unsafe fn gradient<S: Simd>(dy: [S::V; M]) -> [S::V; T];
}

/// F(2, 3) at the points 0, 1, -1, infinity: additions only.
pub(crate) struct F2;

// SAFETY (all methods): arithmetic alone; the instruction set is the caller's to vouch for.
impl Tile<4, 2> for F2 {
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 4]) -> [S::V; 4] {
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[3], d[1])] }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 4]) -> [S::V; 2] {
        unsafe { [S::add(m[0], S::add(m[1], m[2])), S::add(S::sub(m[1], m[2]), m[3])] }
    }

    #[inline(always)]
    unsafe fn gradient<S: Simd>(dy: [S::V; 2]) -> [S::V; 4] {
        unsafe { [dy[0], S::add(dy[0], dy[1]), S::sub(dy[0], dy[1]), dy[1]] }
    }
}

/// F(4, 3) at the points 0, ±a, ±b, infinity.
pub(crate) struct F4;

const A1: f64 = POINT_A;
const A2: f64 = POINT_A * POINT_A;
const B1: f64 = POINT_B;
const B2: f64 = POINT_B * POINT_B;
const POINT_A: f64 = 11.0 / 16.0;
const POINT_B: f64 = 1.5;

// SAFETY (all methods): arithmetic alone; the instruction set is the caller's to vouch for.
impl Tile<6, 4> for F4 {
    const G: [[f64; 3]; 6] = {
        let a = 1.0 / (2.0 * A2 * (A2 - B2));
        let b = 1.0 / (2.0 * B2 * (B2 - A2));
        [
            [1.0 / (A2 * B2), 0.0, 0.0],
            [a, a * A1, a * A2],
            [a, -a * A1, a * A2],
            [b, b * B1, b * B2],
            [b, -b * B1, b * B2],
            [0.0, 0.0, 1.0],
        ]
    };

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
        unsafe {
            let c = |x: f64| S::splat(x as f32);
            let even_a = S::fma(c(-B2), d[2], d[4]);
            let odd_a = S::fma(c(-B2), d[1], d[3]);
            let even_b = S::fma(c(-A2), d[2], d[4]);
            let odd_b = S::fma(c(-A2), d[1], d[3]);
            [
                S::fma(c(A2 * B2), d[0], S::fma(c(-(A2 + B2)), d[2], d[4])),
                S::fma(c(A1), odd_a, even_a),
                S::fma(c(-A1), odd_a, even_a),
                S::fma(c(B1), odd_b, even_b),
                S::fma(c(-B1), odd_b, even_b),
                S::fma(c(A2 * B2), d[1], S::fma(c(-(A2 + B2)), d[3], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
        unsafe {
            let c = |x: f64| S::splat(x as f32);
            let (sum_a, dif_a) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (sum_b, dif_b) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(m[0], S::add(sum_a, sum_b)),
                S::fma(c(A1), dif_a, S::mul(c(B1), dif_b)),
                S::fma(c(A2), sum_a, S::mul(c(B2), sum_b)),
                S::add(m[5], S::fma(c(A1 * A2), dif_a, S::mul(c(B1 * B2), dif_b))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gradient<S: Simd>(dy: [S::V; 4]) -> [S::V; 6] {
        unsafe {
            let c = |x: f64| S::splat(x as f32);
            let (even_a, even_b) = (S::fma(c(A2), dy[2], dy[0]), S::fma(c(B2), dy[2], dy[0]));
            let odd_a = S::mul(c(A1), S::fma(c(A2), dy[3], dy[1]));
            let odd_b = S::mul(c(B1), S::fma(c(B2), dy[3], dy[1]));
            [dy[0], S::add(even_a, odd_a), S::sub(even_a, odd_a), S::add(even_b, odd_b), S::sub(even_b, odd_b), dy[3]]
        }
    }
}
