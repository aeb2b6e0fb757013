//! Checks of whole graphs that no single case describes.

use warpdiff::backend::cpu::Cpu;
use warpdiff::backend::gpu::Gpu;
use warpdiff::backend::{Backend, Precision};
use warpdiff::graph::DType;
use warpdiff::reference::Reference;
use warpdiff::rng::{Sequence, Stream};

use crate::common::gpu::devices;
use crate::common::tolerance;

/// A named result: its element type, whether it is a gradient, and its elements.
pub struct Measured {
    pub name: String,
    pub dtype: DType,
    pub gradient: bool,
    pub data: Vec<f64>,
}

impl Measured {
    pub fn new(name: impl Into<String>, dtype: DType, data: Vec<f64>) -> Self {
        Self { name: name.into(), dtype, gradient: false, data }
    }

    pub fn gradient(self) -> Self {
        Self { gradient: true, ..self }
    }
}

/// Judges each result by the tolerance rule, in both precisions; all devices must agree in every bit.
pub fn judge(name: &str, run: impl Fn(&dyn Backend) -> Vec<Measured>) {
    let expected = run(&Reference::default());
    assert!(!expected.is_empty());
    for precision in [Precision::F32, Precision::Bf16] {
        let rounded = (precision == Precision::Bf16).then(|| run(&Reference::new(precision)));
        let mut first: Option<Vec<Vec<f64>>> = None;
        for driver in devices() {
            let actual = run(&Gpu::new(driver, precision));
            for (i, (e, a)) in expected.iter().zip(&actual).enumerate() {
                let rounded = rounded.as_ref().map(|r| r[i].data.as_slice());
                let verdict = tolerance::judge(e.dtype, e.gradient, &a.data, &e.data, rounded);
                verdict.unwrap_or_else(|reason| panic!("{name} in {precision}: {}: {reason}", e.name));
            }
            let first = first.get_or_insert_with(|| actual.iter().map(|a| a.data.clone()).collect());
            let same = first.iter().flatten().zip(actual.iter().flat_map(|a| &a.data));
            assert!(same.into_iter().all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: the schedule changes the bits");
        }
    }
}

/// Results of a graph on every device in one precision, for checks that need no reference.
pub fn on_devices(precision: Precision, run: impl Fn(&dyn Backend)) {
    for driver in devices() {
        run(&Gpu::new(driver, precision));
    }
}

/// As [`on_devices`], and on the CPU and the reference.
pub fn everywhere(run: impl Fn(&dyn Backend)) {
    run(&Cpu::new(Some(2)).unwrap());
    run(&Reference::default());
    on_devices(Precision::F32, run);
}

/// Seeded standard normals.
pub fn normals(n: usize, sample: u32) -> Vec<f32> {
    let mut out = vec![0.0; n];
    Sequence::new(77, Stream::Weights, sample, 0).fill_normal(&mut out);
    out
}

/// The nearest bf16: operands that both references and the kernels can hold.
pub fn held_by_bf16(data: Vec<f32>) -> Vec<f32> {
    data.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect()
}
