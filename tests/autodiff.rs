//! Finite differences against the gradient rules, on the f64 reference.

mod common;

use common::cases::differentiable;
use common::{Built, build};
use warpdiff::backend::Precision;
use warpdiff::reference::Reference;

/// The scalar sum of y * dy as it depends on one operand.
fn objective(b: &mut Built, operand: usize, x: &[f32], dy: &[f64]) -> f64 {
    b.exe.write_f32(b.operands[operand], x).unwrap();
    b.exe.run().unwrap();
    b.exe.read_f64(b.outputs[0]).unwrap().iter().zip(dy).map(|(y, d)| y * d).sum()
}

#[test]
fn every_operation_matches_finite_differences() {
    let mut checked = 0;
    for (seed, case) in differentiable(1).iter().enumerate() {
        let mut b = build(case, &Reference::default(), true, seed as u64, Precision::F32);
        let dy = b.exe.read_f64(b.dy.unwrap()).unwrap();
        for operand in 0..b.operands.len() {
            let Some(gradient) = b.gradients[operand] else { continue };
            b.exe.run().unwrap();
            let gradient = b.exe.read_f64(gradient).unwrap();
            let x: Vec<f32> = b.exe.read_f64(b.operands[operand]).unwrap().iter().map(|&v| v as f32).collect();
            // Operands are multiples of 2^-16, so f32 holds them plus a multiple of this step exactly.
            let h = 2.0f32.powi(-10);
            let stride = x.len().div_ceil(40);
            for i in (0..x.len()).step_by(stride) {
                let mut moved = x.clone();
                let mut at = |offset: f32| {
                    moved[i] = x[i] + offset;
                    objective(&mut b, operand, &moved, &dy)
                };
                let (near, far) = (at(h) - at(-h), at(2.0 * h) - at(-2.0 * h));
                let expected = (8.0 * near - far) / (12.0 * f64::from(h));
                let scale = gradient.iter().fold(1e-3f64, |m, g| m.max(g.abs()));
                assert!(
                    (gradient[i] - expected).abs() < 2e-6 * scale,
                    "{}: operand {operand}, element {i}: {} instead of {expected}",
                    case.id,
                    gradient[i]
                );
                checked += 1;
            }
            b.exe.write_f32(b.operands[operand], &x).unwrap();
        }
    }
    assert!(checked > 2000, "{checked}");
}
