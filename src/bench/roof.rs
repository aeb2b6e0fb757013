//! How fast a product could be: the roofs of a device, and the floors under its time.

use serde::Serialize;

use super::{Pass, Product};
use crate::backend::Precision;

/// What a device reaches at best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// Floating-point operations, 10^12 a second.
    pub tflops: Option<f64>,
    /// Bytes read and written, 10^9 a second.
    pub gbs: Option<f64>,
    /// Where the numbers come from.
    pub source: String,
}

/// Measured roofs of bf16: part of the device's name, TFLOP/s, GB/s.
///
/// The first is an 8192-cubed matrix product of random numbers (on zeros the card is faster, and no network is all zeros),
/// the second a copy within the device, bytes read plus bytes written. Products of this size reached 770 to 800 TFLOP/s on
/// either card.
const MEASURED: [(&str, f64, f64); 2] = [("H200", 790.0, 4300.0), ("H100 80GB HBM3", 790.0, 3000.0)];

impl Roof {
    /// The roof of a device by its name, where one was measured for that precision.
    pub fn measured(device: &str, precision: Precision) -> Self {
        match MEASURED.iter().find(|(name, ..)| device.contains(name)) {
            Some((name, tflops, gbs)) if precision == Precision::Bf16 => Self {
                tflops: Some(*tflops),
                gbs: Some(*gbs),
                source: format!(
                    "measured on an {name}: 8192-cubed bf16 product of random numbers; copy, read plus written"
                ),
            },
            Some((name, _, gbs)) => Self {
                tflops: None,
                gbs: Some(*gbs),
                source: format!("measured on an {name}: copy, read plus written"),
            },
            None => Self { tflops: None, gbs: None, source: "none is known for this device".into() },
        }
    }

    /// The same with numbers of the user in place of the known ones.
    pub fn overridden(self, tflops: Option<f64>, gbs: Option<f64>) -> Self {
        if tflops.is_none() && gbs.is_none() {
            return self;
        }
        Self {
            tflops: tflops.or(self.tflops),
            gbs: gbs.or(self.gbs),
            source: format!("given; otherwise {}", self.source),
        }
    }

    /// The least time of a product: its operations at the first roof or its bytes at the second, whichever takes longer;
    /// `None` where neither roof is known.
    pub fn floor(&self, product: &Product, pass: Pass, precision: Precision) -> Option<Floor> {
        self.least(product.flops() as f64, bytes(product, pass, precision) as f64)
    }

    /// The least time of so many operations on so many bytes; `None` where neither roof is known.
    pub fn least(&self, flops: f64, bytes: f64) -> Option<Floor> {
        let flops = self.tflops.map(|t| Floor { us: flops / t / 1e6, limit: Limit::Flops });
        let bytes = self.gbs.map(|b| Floor { us: bytes / b / 1e3, limit: Limit::Bytes });
        [flops, bytes].into_iter().flatten().max_by(|a, b| a.us.total_cmp(&b.us))
    }

    /// Whether there is a roof at all.
    pub fn is_known(&self) -> bool {
        self.tflops.is_some() || self.gbs.is_some()
    }
}

/// What bounds a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Its operations.
    Flops,
    /// Its bytes.
    Bytes,
}

impl Limit {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flops => "FLOP",
            Self::Bytes => "bytes",
        }
    }
}

/// The least time of a product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Microseconds.
    pub us: f64,
    /// What bounds it.
    pub limit: Limit,
}

/// Bytes of a product with each tensor counted once. Gradients of weights are f32.
pub fn bytes(product: &Product, pass: Pass, precision: Precision) -> usize {
    let [a, b, out] = product.operands(pass);
    (a + b) * act_bytes(precision) + out * result_bytes(pass, precision)
}

/// Bytes of an element of the operands.
pub fn act_bytes(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// Bytes of an element of the result: gradients of weights are f32.
pub fn result_bytes(pass: Pass, precision: Precision) -> usize {
    if pass == Pass::Wgrad { 4 } else { act_bytes(precision) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(name: &str) -> (f64, Limit) {
        let product = name.parse().map(Product::Conv).or_else(|_| name.parse().map(Product::Gemm)).unwrap();
        let floor =
            Roof::measured("NVIDIA H200", Precision::Bf16).floor(&product, Pass::Fprop, Precision::Bf16).unwrap();
        ((floor.us * 10.0).round() / 10.0, floor.limit)
    }

    /// Floors that were worked out apart from this program.
    #[test]
    fn floors_of_the_cifar_network_at_batch_256() {
        assert_eq!(floor("n256h32w32c128k128r3s1p1"), (97.9, Limit::Flops));
        assert_eq!(floor("n256h32w32c256k256r3s1p1"), (391.4, Limit::Flops));
        assert_eq!(floor("n256h32w32c128k128r3s2p0.0.1.1"), (24.5, Limit::Flops));
        assert_eq!(floor("n256h4w4c512k256r3s1p1"), (12.2, Limit::Flops));
        assert_eq!(floor("n256h32w32c3k128r3s1p1"), (16.0, Limit::Bytes));
        assert_eq!(floor("m65536n768k256"), (32.6, Limit::Flops));
        assert_eq!(floor("m262144n128k256"), (46.8, Limit::Bytes));
    }

    #[test]
    fn gradients_of_weights_are_f32() {
        let product = Product::Gemm("m10n3k7".parse().unwrap());
        assert_eq!(bytes(&product, Pass::Fprop, Precision::Bf16), 2 * (70 + 21 + 30));
        assert_eq!(bytes(&product, Pass::Wgrad, Precision::Bf16), 2 * (70 + 30) + 4 * 21);
        assert_eq!(bytes(&product, Pass::Wgrad, Precision::F32), 4 * (70 + 21 + 30));
    }

    #[test]
    fn unknown_roofs_give_no_floor_unless_given() {
        let product = Product::Gemm("m1000n1000k1000".parse().unwrap());
        let none = Roof::measured("simulator", Precision::Bf16);
        assert_eq!(none.floor(&product, Pass::Fprop, Precision::Bf16), None);
        let given = none.overridden(Some(100.0), None).floor(&product, Pass::Fprop, Precision::Bf16).unwrap();
        assert!((given.us - 20.0).abs() < 1e-9 && given.limit == Limit::Flops);
        let f32_roof = Roof::measured("NVIDIA H200", Precision::F32);
        assert_eq!((f32_roof.tflops, f32_roof.gbs), (None, Some(4300.0)));
    }
}
