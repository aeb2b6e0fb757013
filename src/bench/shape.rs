//! Names of convolutions and matrix products: `n256h32w32c128k128r3s1p1`, `m65536n768k256`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::graph::ConvGeometry;

/// Why a text names no shape.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no {kind}: {reason}; write it as {example}")]
pub struct ShapeError {
    text: String,
    kind: &'static str,
    reason: String,
    example: &'static str,
}

/// Elements of one tensor: more fit no device, and products of the dimensions stay far from overflowing.
const MAX_ELEMENTS: u128 = 1 << 40;

/// A convolution: `x [n, h, w, c]`, `w [k, r, s, c]`, NHWC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output channels.
    pub k: usize,
    /// Filter, stride and padding.
    pub geometry: ConvGeometry,
}

impl ConvShape {
    /// Height and width of the output. Shapes that were parsed or collected have one.
    pub fn output_size(&self) -> (usize, usize) {
        self.geometry.output_size(self.h, self.w).unwrap_or((0, 0))
    }

    /// `[n, h, w, c]`.
    pub fn x(&self) -> [usize; 4] {
        [self.n, self.h, self.w, self.c]
    }

    /// `[k, r, s, c]`.
    pub fn filter(&self) -> [usize; 4] {
        [self.k, self.geometry.kernel.0, self.geometry.kernel.1, self.c]
    }

    /// `[n, h', w', k]`.
    pub fn y(&self) -> [usize; 4] {
        let (h, w) = self.output_size();
        [self.n, h, w, self.k]
    }
}

/// `r3`, or `r1x3` for a filter one pixel high; `p1`, or `p0.0.1.1` for top, left, bottom, right.
impl fmt::Display for ConvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n,
            h,
            w,
            c,
            k,
            geometry: ConvGeometry { kernel: (r, s), stride, padding: (top, left, bottom, right) },
        } = *self;
        write!(f, "n{n}h{h}w{w}c{c}k{k}r{r}")?;
        if r != s {
            write!(f, "x{s}")?;
        }
        write!(f, "s{stride}p{top}")?;
        if [left, bottom, right] != [top; 3] {
            write!(f, ".{left}.{bottom}.{right}")?;
        }
        Ok(())
    }
}

impl FromStr for ConvShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason: String| ShapeError {
            text: text.into(),
            kind: "convolution",
            reason,
            example: "n256h32w32c128k128r3s1p1 (p0.0.1.1 pads top, left, bottom, right)",
        };
        let [n, h, w, c, k, r, s, p] = fields(text, ["n", "h", "w", "c", "k", "r", "s", "p"]).map_err(fail)?;
        let one = |name, value| positive(name, value).map_err(fail);
        let (r, width) = r.split_once('x').unwrap_or((r, r));
        let kernel = (one("r", r)?, one("r", width)?);
        let padding: Vec<usize> = p
            .split('.')
            .map(|side| side.parse().ok().filter(|&pad| pad <= 1 << 10))
            .collect::<Option<_>>()
            .ok_or_else(|| fail(format!("p{p} is no padding")))?;
        let padding = match padding[..] {
            [all] => (all, all, all, all),
            [top, left, bottom, right] => (top, left, bottom, right),
            _ => return Err(fail(format!("p{p} must have one number or four"))),
        };
        let shape = Self {
            n: one("n", n)?,
            h: one("h", h)?,
            w: one("w", w)?,
            c: one("c", c)?,
            k: one("k", k)?,
            geometry: ConvGeometry { kernel, stride: one("s", s)?, padding },
        };
        if shape.geometry.output_size(shape.h, shape.w).is_none() {
            return Err(fail("the filter is larger than the padded image".into()));
        }
        if [shape.x(), shape.filter(), shape.y()].iter().any(|dims| too_large(dims)) {
            return Err(fail("a tensor has more than 2^40 elements".into()));
        }
        Ok(shape)
    }
}

/// A linear layer as a product: `y [m, n] = x [m, k] w [n, k]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows: pixels of all images.
    pub m: usize,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
}

impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}n{}k{}", self.m, self.n, self.k)
    }
}

impl FromStr for GemmShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason| ShapeError { text: text.into(), kind: "matrix product", reason, example: "m65536n768k256" };
        let [m, n, k] = fields(text, ["m", "n", "k"]).map_err(fail)?;
        let one = |name, value| positive(name, value).map_err(fail);
        let shape = Self { m: one("m", m)?, n: one("n", n)?, k: one("k", k)? };
        if [[shape.m, shape.n], [shape.m, shape.k], [shape.n, shape.k]].iter().any(|dims| too_large(dims)) {
            return Err(fail("a matrix has more than 2^40 elements".into()));
        }
        Ok(shape)
    }
}

fn too_large(dims: &[usize]) -> bool {
    dims.iter().map(|&d| d as u128).product::<u128>() > MAX_ELEMENTS
}

fn positive(name: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|&v| (1..=1 << 30).contains(&v));
    number.ok_or_else(|| format!("{name}{value} must have a number from 1 to 2^30"))
}

/// The texts behind each of the names, which stand in this order and begin with a letter.
fn fields<'a, const F: usize>(text: &'a str, names: [&str; F]) -> Result<[&'a str; F], String> {
    let mut rest = text;
    let mut out = [""; F];
    for (i, name) in names.iter().enumerate() {
        rest = rest.strip_prefix(name).ok_or_else(|| format!("{name} is missing before {rest:?}"))?;
        let end = match names.get(i + 1) {
            Some(next) => rest.find(next).ok_or_else(|| format!("{next} is missing in {rest:?}"))?,
            None => rest.len(),
        };
        (out[i], rest) = rest.split_at(end);
    }
    Ok(out)
}

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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_names_of_the_documentation_are_read() {
        let conv: ConvShape = "n256h32w32c128k128r3s1p1".parse().unwrap();
        assert_eq!(conv.x(), [256, 32, 32, 128]);
        assert_eq!(conv.filter(), [128, 3, 3, 128]);
        assert_eq!(conv.geometry, ConvGeometry::SAME_3X3);
        // 77.3 GFLOP: 2 * 256 * 32 * 32 * 128 * 128 * 9.
        assert_eq!(Product::Conv(conv).flops(), 77_309_411_328);
        let down: ConvShape = "n1h32w32c128k128r3s2p0.0.1.1".parse().unwrap();
        assert_eq!((down.y(), down.geometry.padding), ([1, 16, 16, 128], (0, 0, 1, 1)));
        let gemm: GemmShape = "m65536n768k256".parse().unwrap();
        assert_eq!((gemm.m, gemm.n, gemm.k), (65536, 768, 256));
        assert_eq!(Product::Gemm(gemm).flops(), 2 * 65536 * 768 * 256);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let conv = |text: &str| text.parse::<ConvShape>().unwrap_err().to_string();
        assert!(conv("n1h8w8c8k8r3p1").contains("s is missing"), "{}", conv("n1h8w8c8k8r3p1"));
        assert!(conv("n0h8w8c8k8r3s1p1").contains("n0"));
        assert!(conv("n1h8w8c8k8r3s1p1.1").contains("one number or four"));
        assert!(conv("n1h2w2c8k8r5s1p0").contains("larger than the padded image"));
        assert!(conv("n1000000h9999w9999c8k8r3s1p1").contains("2^40"));
        assert!(conv("").contains("n256h32w32c128k128r3s1p1"));
        assert!("m1n2".parse::<GemmShape>().unwrap_err().to_string().contains("k is missing"));
        assert!("m1n2k3 ".parse::<GemmShape>().is_err());
    }

    #[test]
    fn every_pass_sums_the_same_number_of_products() {
        for product in [
            Product::Gemm(GemmShape { m: 5, n: 7, k: 3 }),
            // A filter without padding meets no border.
            Product::Conv("n2h5w7c3k8r3s1p0".parse().unwrap()),
        ] {
            let sums = |pass| 2 * product.operands(pass)[2] as u64 * product.depth(pass) as u64;
            assert_eq!(sums(Pass::Fprop), product.flops());
            assert_eq!(sums(Pass::Wgrad), product.flops());
        }
    }

    proptest! {
        #[test]
        fn names_of_convolutions_round_trip(
            (n, h, w, c, k) in (1usize..300, 8usize..300, 8usize..300, 1usize..1000, 1usize..1000),
            (r, s, stride) in (1usize..8, 1usize..8, 1usize..4),
            pads in prop::array::uniform4(0usize..4),
        ) {
            let [top, left, bottom, right] = pads;
            let geometry = ConvGeometry { kernel: (r, s), stride, padding: (top, left, bottom, right) };
            let shape = ConvShape { n, h, w, c, k, geometry };
            prop_assert_eq!(shape.to_string().parse::<ConvShape>().unwrap(), shape);
        }

        #[test]
        fn names_of_products_round_trip(m in 1usize..1 << 20, n in 1usize..5000, k in 1usize..5000) {
            let shape = GemmShape { m, n, k };
            prop_assert_eq!(shape.to_string().parse::<GemmShape>().unwrap(), shape);
        }

        #[test]
        fn no_text_panics(text in "[nhwckrspmx0-9.]{0,40}") {
            let _ = (text.parse::<ConvShape>(), text.parse::<GemmShape>());
        }
    }
}
