//! Activation functions and their gradients.

use std::f32::consts::FRAC_1_SQRT_2;

use multiversion::multiversion;

use super::math::{exp, sigmoid, silu_slope};
use crate::graph::Activation;

/// `y = f(x)`, or `dx` from `(dy, x)`; the second operand of the former is not read.
type Map = fn(&mut [f32], &[f32], &[f32]);

pub(super) fn forward(f: Activation) -> Map {
    match f {
        Activation::Silu => silu,
        Activation::Mish => |y, x, _| y.iter_mut().zip(x).for_each(|(y, x)| *y = x * mish_gate(*x)),
        Activation::Gelu => |y, x, _| y.iter_mut().zip(x).for_each(|(y, x)| *y = x * normal_distribution(*x)),
        Activation::Relu => |y, x, _| y.iter_mut().zip(x).for_each(|(y, x)| *y = if *x < 0.0 { 0.0 } else { *x }),
    }
}

pub(super) fn gradient(f: Activation) -> Map {
    match f {
        Activation::Silu => silu_grad,
        Activation::Mish => |dx, dy, x| chain(dx, dy, x, mish_slope),
        Activation::Gelu => |dx, dy, x| chain(dx, dy, x, gelu_slope),
        Activation::Relu => |dx, dy, x| chain(dx, dy, x, |x| f32::from(u8::from(x > 0.0))),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn silu(y: &mut [f32], x: &[f32], _: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x * sigmoid(*x);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma"))]
fn silu_grad(y: &mut [f32], dy: &[f32], x: &[f32]) {
    for ((y, dy), x) in y.iter_mut().zip(dy).zip(x) {
        *y = dy * silu_slope(*x);
    }
}

fn chain(dx: &mut [f32], dy: &[f32], x: &[f32], slope: impl Fn(f32) -> f32) {
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        *dx = dy * slope(*x);
    }
}

/// `tanh(ln(1 + e^x)) = n / (n + 2)` with `n = e^x (e^x + 2)`, which loses nothing where x is very negative. Beyond 20 the
/// square of e^x would overflow long before the quotient moves again.
fn mish_gate(x: f32) -> f32 {
    let e = exp(x.min(20.0));
    let n = e * (e + 2.0);
    n / (n + 2.0)
}

fn mish_slope(x: f32) -> f32 {
    let t = mish_gate(x);
    t + x * (1.0 - t * t) * sigmoid(x)
}

/// The complement keeps its digits where the function is close to 0.
fn normal_distribution(x: f32) -> f32 {
    0.5 * libm::erfcf(-x * FRAC_1_SQRT_2)
}

fn gelu_slope(x: f32) -> f32 {
    const DENSITY_AT_0: f32 = 0.398_942_3;
    normal_distribution(x) + x * DENSITY_AT_0 * exp(-0.5 * x * x)
}
