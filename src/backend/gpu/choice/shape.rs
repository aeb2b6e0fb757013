//! Names of convolutions and linear layers: `n256h32w32c128k128r3s1p1`, `m65536n768k256b256`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::image::ImageProblem;
use super::pixel::PixelProblem;
use crate::graph::ConvGeometry;

/// A shape that cannot be read, or that no tensor has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("shape {text:?}: {reason}; an example is {example}")]
pub struct ShapeError {
    text: String,
    reason: String,
    example: &'static str,
}

impl ShapeError {
    pub(crate) fn new(text: &str, reason: String, example: &'static str) -> Self {
        Self { text: text.into(), reason, example }
    }
}

/// A convolution: `x [n, h, w, c]`, `w [k, r, s, c]`, NHWC.
///
/// Of its name, `r3` (or `r1x3` for a filter one pixel high), stride `s1` and padding `p1` (or `p0.0.1.1` for top, left,
/// bottom, right) may be left out: they are 3, 1 and half of the filter then.
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
    /// What errors show.
    pub const EXAMPLE: &'static str = "n256h32w32c128k128r3s1p1 (p0.0.1.1 pads top, left, bottom, right)";

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

impl FromStr for ConvShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let layer: Layer = text.parse()?;
        match layer.channels[..] {
            [_] => Ok(layer.shape),
            _ => Err(ShapeError { text: text.into(), reason: "c takes one number".into(), example: Self::EXAMPLE }),
        }
    }
}

impl fmt::Display for ConvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, self, &self.c.to_string())
    }
}

/// The name of a convolution whose input channels read `c`.
fn write_name(f: &mut fmt::Formatter<'_>, shape: &ConvShape, c: &str) -> fmt::Result {
    let ConvShape { n, h, w, k, geometry, .. } = *shape;
    let ConvGeometry { kernel: (r, s), stride, padding: (top, left, bottom, right) } = geometry;
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

/// A convolution whose input may be a concatenation: `c64+128`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The convolution, of all sources together.
    pub shape: ConvShape,
    /// Channels of each source.
    pub channels: Vec<usize>,
}

impl Layer {
    /// The forward pass.
    pub fn fprop(&self) -> ImageProblem {
        let s = &self.shape;
        ImageProblem::fprop(&s.geometry, s.n, (s.h, s.w), s.output_size(), &self.channels, s.k)
    }

    /// The data gradient, of all sources together.
    pub fn dgrad(&self) -> ImageProblem {
        let s = &self.shape;
        ImageProblem::dgrad(&s.geometry, s.n, s.output_size(), (s.h, s.w), s.k, s.c)
    }

    /// The weight gradient, of all sources together.
    pub fn wgrad(&self) -> PixelProblem {
        let s = &self.shape;
        PixelProblem::new(&s.geometry, s.n, (s.h, s.w), s.output_size(), s.c, s.k)
    }
}

impl From<ConvShape> for Layer {
    fn from(shape: ConvShape) -> Self {
        Self { shape, channels: vec![shape.c] }
    }
}

impl FromStr for Layer {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason: String| ShapeError { text: text.into(), reason, example: ConvShape::EXAMPLE };
        let fields = Fields::new(text, "nhwckrsp").map_err(fail)?;
        let one = |letter, default| fields.one(letter, default).map_err(fail);
        let (n, h, w) = (one('n', None)?, one('h', None)?, one('w', None)?);
        let channels = fields.positive('c', '+', None).map_err(fail)?;
        let kernel = match fields.positive('r', 'x', Some(3)).map_err(fail)?[..] {
            [side] => (side, side),
            [height, width] => (height, width),
            _ => return Err(fail("r takes one number or two".into())),
        };
        let padding = match fields.numbers('p', '.').map_err(fail)?.as_deref() {
            None => (kernel.0 / 2, kernel.1 / 2, kernel.0 / 2, kernel.1 / 2),
            Some(&[all]) => (all, all, all, all),
            Some(&[top, left, bottom, right]) => (top, left, bottom, right),
            Some(_) => return Err(fail("p takes one number or four".into())),
        };
        let shape = ConvShape {
            n,
            h,
            w,
            c: channels.iter().fold(0, |sum: usize, &c| sum.saturating_add(c)),
            k: one('k', None)?,
            geometry: ConvGeometry { kernel, stride: one('s', Some(1))?, padding },
        };
        if shape.geometry.output_size(shape.h, shape.w).is_none() {
            let ((kh, kw), ConvShape { h, w, .. }) = (kernel, shape);
            return Err(fail(format!("a filter of {kh}x{kw} does not fit {h}x{w} pixels with this padding")));
        }
        check_sizes(&[("input", shape.x()), ("output", shape.y()), ("filter", shape.filter())]).map_err(fail)?;
        Ok(Self { shape, channels })
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<String> = self.channels.iter().map(ToString::to_string).collect();
        write_name(f, &self.shape, &channels.join("+"))
    }
}

/// A linear layer as a product: `y [m, n] = x [m, k] w [n, k]^T`. The rows are those of `b` images (1 if not given), which
/// matters to how the depth is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows: pixels of all images.
    pub m: usize,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Images that the rows belong to.
    pub b: usize,
}

impl GemmShape {
    /// What errors show.
    pub const EXAMPLE: &'static str = "m65536n768k256b256";

    /// The 1x1 convolution that it is, of images one pixel wide.
    pub fn conv(&self) -> ConvShape {
        let geometry = ConvGeometry { kernel: (1, 1), stride: 1, padding: (0, 0, 0, 0) };
        ConvShape { n: self.b, h: self.m / self.b, w: 1, c: self.k, k: self.n, geometry }
    }
}

impl FromStr for GemmShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason: String| ShapeError { text: text.into(), reason, example: Self::EXAMPLE };
        let fields = Fields::new(text, "mnkb").map_err(fail)?;
        let one = |letter, default| fields.one(letter, default).map_err(fail);
        let shape = Self { m: one('m', None)?, n: one('n', None)?, k: one('k', None)?, b: one('b', Some(1))? };
        let Self { m, n, k, b } = shape;
        if !m.is_multiple_of(b) {
            return Err(fail(format!("{m} rows are not those of {b} images")));
        }
        check_sizes(&[("input", [m, k, 1, 1]), ("output", [m, n, 1, 1]), ("matrix", [n, k, 1, 1])]).map_err(fail)?;
        Ok(shape)
    }
}

impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { m, n, k, b } = self;
        write!(f, "m{m}n{n}k{k}")?;
        if *b == 1 { Ok(()) } else { write!(f, "b{b}") }
    }
}

/// More elements than this are a typing error.
const MOST_ELEMENTS: usize = 1 << 40;
/// More than this does not fit an argument of a kernel.
const MOST_SIDE: usize = i32::MAX as usize;

/// Checks that no tensor is larger than any device.
pub(crate) fn check_sizes(tensors: &[(&str, [usize; 4])]) -> Result<(), String> {
    for (name, sides) in tensors {
        let elements = sides.iter().try_fold(1usize, |all, &side| all.checked_mul(side));
        if elements.is_none_or(|n| n > MOST_ELEMENTS) {
            return Err(format!("its {name} has more than 2^40 elements"));
        }
    }
    Ok(())
}

/// Letters, each with what stands behind it: `n256h32c64+128`.
pub(crate) struct Fields<'a>(Vec<(char, &'a str)>);

impl<'a> Fields<'a> {
    pub(crate) fn new(text: &'a str, letters: &str) -> Result<Self, String> {
        let mut fields: Vec<(char, &str)> = Vec::new();
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            if !letters.contains(letter) {
                return Err(format!("{letter:?} is none of the letters {letters}"));
            }
            if fields.iter().any(|(seen, _)| *seen == letter) {
                return Err(format!("{letter} is there twice"));
            }
            rest = &rest[letter.len_utf8()..];
            // Numbers, and what may stand between two.
            let end = rest.find(|c: char| !c.is_ascii_digit() && !"+.x".contains(c)).unwrap_or(rest.len());
            let (numbers, after) = rest.split_at(end);
            fields.push((letter, numbers));
            rest = after;
        }
        Ok(Self(fields))
    }

    /// The numbers behind a letter.
    fn numbers(&self, letter: char, separator: char) -> Result<Option<Vec<usize>>, String> {
        let Some((_, text)) = self.0.iter().find(|(l, _)| *l == letter) else { return Ok(None) };
        let parsed: Result<Vec<usize>, _> = text.split(separator).map(str::parse).collect();
        let parsed = parsed.map_err(|_| format!("{letter} needs a number, not {text:?}"))?;
        if parsed.iter().any(|&n| n > MOST_SIDE) {
            return Err(format!("{letter}{text} is more than {MOST_SIDE}"));
        }
        Ok(Some(parsed))
    }

    fn positive(&self, letter: char, separator: char, default: Option<usize>) -> Result<Vec<usize>, String> {
        let numbers = self.numbers(letter, separator)?.or_else(|| default.map(|n| vec![n]));
        let numbers = numbers.ok_or_else(|| format!("{letter} is missing"))?;
        if numbers.contains(&0) { Err(format!("{letter} is 0")) } else { Ok(numbers) }
    }

    /// The only number behind a letter.
    pub(crate) fn one(&self, letter: char, default: Option<usize>) -> Result<usize, String> {
        // No number holds this separator, so that two numbers are none.
        Ok(self.positive(letter, ' ', default)?[0])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_convolution_has_defaults_and_prints_all() {
        let shape: ConvShape = "n256h32w32c128k64".parse().unwrap();
        assert_eq!(shape.to_string(), "n256h32w32c128k64r3s1p1");
        assert_eq!((shape.x(), shape.filter(), shape.y()), ([256, 32, 32, 128], [64, 3, 3, 128], [256, 32, 32, 64]));
        assert_eq!(shape.geometry, ConvGeometry::SAME_3X3);
        let pointwise: ConvShape = "k5c7w9h11n1r1".parse().unwrap();
        assert_eq!(pointwise.to_string(), "n1h11w9c7k5r1s1p0");
        assert_eq!("n1h5w5c8k8r3p0".parse::<ConvShape>().unwrap().output_size(), (3, 3));
        let down: ConvShape = "n1h32w32c128k128r3s2p0.0.1.1".parse().unwrap();
        assert_eq!((down.y(), down.geometry.padding), ([1, 16, 16, 128], (0, 0, 1, 1)));
    }

    #[test]
    fn a_layer_may_read_a_concatenation() {
        let down: Layer = "n2h33w8c64+128k64s2".parse().unwrap();
        assert_eq!((down.shape.output_size(), down.shape.c, &down.channels[..]), ((17, 4), 192, &[64, 128][..]));
        assert_eq!(down.to_string(), "n2h33w8c64+128k64r3s2p1");
        assert_eq!(down.to_string().parse(), Ok(down));
    }

    #[test]
    fn a_product_is_a_convolution() {
        let shape: GemmShape = "m65536n768k256b256".parse().unwrap();
        assert_eq!((shape.m, shape.n, shape.k, shape.b), (65536, 768, 256, 256));
        assert_eq!(shape.conv().to_string(), "n256h256w1c256k768r1s1p0");
        assert_eq!("m7n3k5".parse::<GemmShape>().unwrap().to_string(), "m7n3k5");
    }

    #[test]
    fn errors_say_what_is_wrong_and_show_an_example() {
        let cases = [
            ("", "n is missing"),
            ("n2h8w8c64", "k is missing"),
            ("n2h8w8c64k64z3", "'z' is none"),
            ("n2h8w8c64k64n3", "n is there twice"),
            ("n2hw8c64k64", "h needs a number"),
            ("n0h8w8c64k64", "n is 0"),
            ("n2h8w8c64+k64", "c needs a number"),
            ("n2h8w8c64+64k64", "c takes one number"),
            ("n2+3h8w8c64k64", "n needs a number"),
            ("n2h8w8c64k64s0", "s is 0"),
            ("n2h8w8c64k64p1.1", "one number or four"),
            ("n2h8w8c64k64r1x2x3", "one number or two"),
            ("n2h2w2c64k64r5p0", "does not fit"),
            ("n99999999999h8w8c64k64", "more than 2147483647"),
            ("n2147483647h8w8c64k64", "2^40"),
            ("n1h1w1c64k64r2000000000p1000000000", "2^40"),
            ("ä", "is none"),
        ];
        for (text, part) in cases {
            let error = text.parse::<ConvShape>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(ConvShape::EXAMPLE), "{text}: {error}");
        }
        for (text, part) in [("m5n3k2b2", "5 rows"), ("m1n2", "k is missing"), ("m1n2k3 ", "' ' is none")] {
            let error = text.parse::<GemmShape>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(GemmShape::EXAMPLE), "{error}");
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
        fn names_of_products_round_trip(b in 1usize..300, rows in 1usize..9999, n in 1usize..5000, k in 1usize..5000) {
            let shape = GemmShape { m: b * rows, n, k, b };
            prop_assert_eq!(shape.to_string().parse::<GemmShape>().unwrap(), shape);
        }

        #[test]
        fn no_text_panics(text in "[nhwckrspmxb0-9.+]{0,40}") {
            let _ = (text.parse::<Layer>(), text.parse::<GemmShape>());
        }
    }
}
