//! How fast an operation could be: the roofs of a device, and the floors under its time.

use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

use super::{Pass, Product};
use crate::backend::Precision;
use crate::graph::{Graph, Node, cost};

/// What a device reaches at best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// Floating-point operations, 10^12 a second.
    pub tflops: Option<f64>,
    /// Bytes read and written, 10^9 a second.
    pub gbs: Option<f64>,
    /// Normal random numbers drawn, 10^9 a second.
    pub gnormals: Option<f64>,
    /// Where the numbers come from.
    pub source: String,
}

/// Measured roofs of bf16: part of the device's name, TFLOP/s, GB/s.
///
/// The first is an 8192-cubed matrix product of random numbers (on zeros the card is faster, and no network is all zeros),
/// the second a copy within the device, bytes read plus bytes written. Products of this size reached 770 to 800 TFLOP/s on
/// either card.
const MEASURED: [(&str, f64, f64); 2] = [("H200", 790.0, 4300.0), ("H100 80GB HBM3", 790.0, 3000.0)];

/// 10^9 normals a second on either card, derived and not measured: a normal takes 75 instructions of Philox and Box-Muller
/// in the machine code of sm_90a, and each of 132 multiprocessors issues four warp instructions a clock at 1.75 GHz.
const DERIVED_GNORMALS: f64 = 400.0;

/// Roofs that the user knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Given {
    /// In place of [`Roof::tflops`].
    pub tflops: Option<f64>,
    /// In place of [`Roof::gbs`].
    pub gbs: Option<f64>,
    /// In place of [`Roof::gnormals`].
    pub gnormals: Option<f64>,
}

/// What an operation has to do at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Floating-point operations of products, a multiply-add counted as two.
    pub flops: u64,
    /// Bytes of operands and results, each once.
    pub bytes: u64,
    /// Normal random numbers.
    pub normals: u64,
}

impl Amount {
    /// What a node of a graph has to do.
    pub fn of(graph: &Graph, node: &Node, precision: Precision) -> Self {
        Self {
            flops: cost::flops(graph, node),
            bytes: cost::bytes(graph, node, precision),
            normals: cost::normals(graph, node),
        }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes, normals: self.normals + other.normals }
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl Roof {
    /// The roof of a device by its name, where one was measured for that precision.
    pub fn measured(device: &str, precision: Precision) -> Self {
        match MEASURED.iter().find(|(name, ..)| device.contains(name)) {
            Some((name, tflops, gbs)) if precision == Precision::Bf16 => Self {
                tflops: Some(*tflops),
                gbs: Some(*gbs),
                gnormals: Some(DERIVED_GNORMALS),
                source: format!(
                    "measured on an {name}: 8192-cubed bf16 product of random numbers; copy, read plus written; normals \
                     derived from their instructions"
                ),
            },
            Some((name, _, gbs)) => Self {
                tflops: None,
                gbs: Some(*gbs),
                gnormals: Some(DERIVED_GNORMALS),
                source: format!(
                    "measured on an {name}: copy, read plus written; normals derived from their instructions"
                ),
            },
            None => Self { tflops: None, gbs: None, gnormals: None, source: "none is known for this device".into() },
        }
    }

    /// The same with numbers of the user in place of the known ones.
    pub fn overridden(self, given: Given) -> Self {
        if given == Given::default() {
            return self;
        }
        Self {
            tflops: given.tflops.or(self.tflops),
            gbs: given.gbs.or(self.gbs),
            gnormals: given.gnormals.or(self.gnormals),
            source: format!("given; otherwise {}", self.source),
        }
    }

    /// The least time of so much work: what takes longest of its operations, bytes and normals, each at its roof; `None`
    /// where none of these roofs is known.
    pub fn least(&self, amount: &Amount) -> Option<Floor> {
        let floor = |work: u64, roof: Option<f64>, unit: f64, limit| {
            roof.map(|roof| Floor { us: work as f64 / roof / unit, limit })
        };
        let floors = [
            floor(amount.flops, self.tflops, 1e6, Limit::Flops),
            floor(amount.normals, self.gnormals, 1e3, Limit::Normals),
            floor(amount.bytes, self.gbs, 1e3, Limit::Bytes),
        ];
        floors.into_iter().flatten().max_by(|a, b| a.us.total_cmp(&b.us))
    }

    /// The least time of all nodes of a graph, one after the other; `None` where no roof is known.
    pub fn least_of_graph(&self, graph: &Graph, precision: Precision) -> Option<f64> {
        let least = |node| self.least(&Amount::of(graph, node, precision)).map_or(0.0, |floor| floor.us);
        self.is_known().then(|| graph.nodes().iter().map(least).sum())
    }

    /// Whether there is a roof at all.
    pub fn is_known(&self) -> bool {
        self.tflops.is_some() || self.gbs.is_some() || self.gnormals.is_some()
    }
}

/// What bounds an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Its operations.
    Flops,
    /// Its bytes.
    Bytes,
    /// The random numbers that it draws.
    Normals,
}

impl Limit {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flops => "FLOP",
            Self::Bytes => "bytes",
            Self::Normals => "rng",
        }
    }
}

/// The least time of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Microseconds.
    pub us: f64,
    /// What bounds it.
    pub limit: Limit,
}

/// What a product has to do, each tensor counted once. Gradients of weights are f32.
pub fn amount(product: &Product, pass: Pass, precision: Precision) -> Amount {
    let [a, b, out] = product.operands(pass);
    let bytes = (a + b) * act_bytes(precision) + out * result_bytes(pass, precision);
    Amount { flops: product.flops(), bytes: bytes as u64, normals: 0 }
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
        let floor = Roof::measured("NVIDIA H200", Precision::Bf16)
            .least(&amount(&product, Pass::Fprop, Precision::Bf16))
            .unwrap();
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
        let bytes = |pass, precision| amount(&product, pass, precision).bytes;
        assert_eq!(bytes(Pass::Fprop, Precision::Bf16), 2 * (70 + 21 + 30));
        assert_eq!(bytes(Pass::Wgrad, Precision::Bf16), 2 * (70 + 30) + 4 * 21);
        assert_eq!(bytes(Pass::Wgrad, Precision::F32), 4 * (70 + 21 + 30));
    }

    #[test]
    fn unknown_roofs_give_no_floor_unless_given() {
        let amount = Amount { flops: 2_000_000_000, bytes: 6_000_000, normals: 0 };
        let none = Roof::measured("simulator", Precision::Bf16);
        assert_eq!(none.least(&amount), None);
        let given = none.overridden(Given { tflops: Some(100.0), ..Given::default() }).least(&amount).unwrap();
        assert!((given.us - 20.0).abs() < 1e-9 && given.limit == Limit::Flops);
        let f32_roof = Roof::measured("NVIDIA H200", Precision::F32);
        assert_eq!((f32_roof.tflops, f32_roof.gbs), (None, Some(4300.0)));
    }

    /// Noising CIFAR-10 in bf16 (docs/kernels/diffusion.md): 6 bytes an element take half as long as its random number.
    #[test]
    fn random_numbers_may_take_longer_than_bytes() {
        let elements = 256 * 32 * 32 * 3;
        let roof = Roof::measured("NVIDIA H200", Precision::Bf16);
        let noising = Amount { flops: 0, bytes: 6 * elements, normals: elements };
        let floor = roof.least(&noising).unwrap();
        assert!((floor.us - 1.97).abs() < 0.01 && floor.limit == Limit::Normals, "{floor:?}");
        let bytes = roof.least(&Amount { normals: 0, ..noising }).unwrap();
        assert!((bytes.us - 1.10).abs() < 0.01 && bytes.limit == Limit::Bytes, "{bytes:?}");
    }
}
