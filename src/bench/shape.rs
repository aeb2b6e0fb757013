//! The products of a layer, by the names of [`ConvShape`] and [`GemmShape`].

use std::fmt;

use serde::{Serialize, Serializer};

pub use crate::backend::gpu::choice::shape::{ConvShape, GemmShape, ShapeError};

/// Which of the three products of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The layer itself.
    Fprop,
    /// The gradient of its input.
    Dgrad,
    /// The gradient of its weights.
    Wgrad,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fprop, Self::Dgrad, Self::Wgrad];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fprop => "fprop",
            Self::Dgrad => "dgrad",
            Self::Wgrad => "wgrad",
        }
    }
}

/// A convolution or a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// See [`ConvShape`].
    Conv(ConvShape),
    /// See [`GemmShape`].
    Gemm(GemmShape),
}

impl Product {
    /// Elements of x, of the weights and of y.
    pub fn elements(&self) -> [usize; 3] {
        match self {
            Self::Conv(s) => [s.x(), s.filter(), s.y()].map(|dims| dims.iter().product()),
            Self::Gemm(s) => [s.m * s.k, s.n * s.k, s.m * s.n],
        }
    }

    /// Elements of the two operands of a pass and of its result, in the order of [`crate::graph::Op`].
    pub fn operands(&self, pass: Pass) -> [usize; 3] {
        let [x, w, y] = self.elements();
        match pass {
            Pass::Fprop => [x, w, y],
            Pass::Dgrad => [y, w, x],
            Pass::Wgrad => [y, x, w],
        }
    }

    /// Length of the sums: of each element of the result, apart from the borders of an image.
    pub fn depth(&self, pass: Pass) -> usize {
        match (self, pass) {
            (Self::Conv(s), Pass::Fprop) => s.c * s.geometry.kernel.0 * s.geometry.kernel.1,
            (Self::Conv(s), Pass::Dgrad) => s.k * s.geometry.kernel.0 * s.geometry.kernel.1,
            (Self::Conv(s), Pass::Wgrad) => s.n * s.output_size().0 * s.output_size().1,
            (Self::Gemm(s), Pass::Fprop) => s.k,
            (Self::Gemm(s), Pass::Dgrad) => s.n,
            (Self::Gemm(s), Pass::Wgrad) => s.m,
        }
    }

    /// Floating-point operations of a pass, a multiply-add counted as two: the same for all three, products with the
    /// padding counted.
    pub fn flops(&self) -> u64 {
        let [_, _, y] = self.elements();
        2 * y as u64 * self.depth(Pass::Fprop) as u64
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conv(s) => s.fmt(f),
            Self::Gemm(s) => s.fmt(f),
        }
    }
}

impl Serialize for Product {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_documentation() {
        // 77.3 GFLOP: 2 * 256 * 32 * 32 * 128 * 128 * 9.
        assert_eq!(Product::Conv("n256h32w32c128k128r3s1p1".parse().unwrap()).flops(), 77_309_411_328);
        assert_eq!(Product::Gemm("m65536n768k256".parse().unwrap()).flops(), 2 * 65536 * 768 * 256);
    }

    #[test]
    fn every_pass_sums_the_same_number_of_products() {
        for product in [
            Product::Gemm(GemmShape { m: 6, n: 7, k: 3, b: 2 }),
            // A filter without padding meets no border.
            Product::Conv("n2h5w7c3k8r3s1p0".parse().unwrap()),
        ] {
            let sums = |pass| 2 * product.operands(pass)[2] as u64 * product.depth(pass) as u64;
            assert_eq!(sums(Pass::Fprop), product.flops());
            assert_eq!(sums(Pass::Wgrad), product.flops());
        }
    }
}
