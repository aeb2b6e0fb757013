//! Shapes on the command line: `n256h32w32c128k128r3s1p1` of a convolution, `m65536n768k256` of a matrix product.

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

/// A square convolution: `n` images of `h` x `w` pixels and `c` channels to `k` channels, by a kernel of `r` x `r` (3 if not
/// given), stride `s` (1), padding `p` on every side (half of the kernel). `c64+128` is a concatenation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// N.
    pub images: usize,
    /// H of the input.
    pub h: usize,
    /// W of the input.
    pub w: usize,
    /// C of each source.
    pub channels: Vec<usize>,
    /// K.
    pub k: usize,
    /// R = S.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Padding on every side.
    pub padding: usize,
}

impl ConvShape {
    /// What errors show.
    pub const EXAMPLE: &'static str = "n256h32w32c128k128r3s1p1";

    /// Kernel, stride and padding.
    pub fn geometry(&self) -> ConvGeometry {
        let p = self.padding;
        ConvGeometry { kernel: (self.kernel, self.kernel), stride: self.stride, padding: (p, p, p, p) }
    }

    /// Height and width of the output.
    pub fn out_size(&self) -> (usize, usize) {
        // Parsing has refused kernels that do not fit.
        self.geometry().output_size(self.h, self.w).unwrap_or((1, 1))
    }

    /// Channels of all sources.
    pub fn total_channels(&self) -> usize {
        self.channels.iter().sum()
    }

    /// The forward pass.
    pub fn fprop(&self) -> ImageProblem {
        let source = (self.h, self.w);
        ImageProblem::fprop(&self.geometry(), self.images, source, self.out_size(), &self.channels, self.k)
    }

    /// The data gradient, of all sources together.
    pub fn dgrad(&self) -> ImageProblem {
        let (dy, dx) = (self.out_size(), (self.h, self.w));
        ImageProblem::dgrad(&self.geometry(), self.images, dy, dx, self.k, self.total_channels())
    }

    /// The weight gradient, of all sources together.
    pub fn wgrad(&self) -> PixelProblem {
        let (dy, x) = (self.out_size(), (self.h, self.w));
        PixelProblem::new(&self.geometry(), self.images, x, dy, self.total_channels(), self.k)
    }
}

impl FromStr for ConvShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason: String| ShapeError { text: text.into(), reason, example: Self::EXAMPLE };
        let fields = Fields::new(text, "nhwckrsp").map_err(fail)?;
        let kernel = fields.get('r', Some(3)).map_err(fail)?;
        let padding = fields.list('p').map_or(Ok(kernel / 2), |_| fields.get_or_zero('p')).map_err(fail)?;
        let shape = Self {
            images: fields.get('n', None).map_err(fail)?,
            h: fields.get('h', None).map_err(fail)?,
            w: fields.get('w', None).map_err(fail)?,
            channels: fields.positive('c').map_err(fail)?,
            k: fields.get('k', None).map_err(fail)?,
            kernel,
            stride: fields.get('s', Some(1)).map_err(fail)?,
            padding,
        };
        if shape.geometry().output_size(shape.h, shape.w).is_none() {
            let (h, w) = (shape.h, shape.w);
            return Err(fail(format!(
                "a kernel of {kernel}x{kernel} does not fit {h}x{w} pixels with padding {padding}"
            )));
        }
        let (oh, ow) = shape.out_size();
        let depth = kernel.saturating_mul(kernel).saturating_mul(shape.total_channels());
        let tensors = [
            ("input", [shape.images, shape.h, shape.w, shape.total_channels()]),
            ("output", [shape.images, oh, ow, shape.k]),
            ("filter", [shape.k, depth, 1, 1]),
        ];
        check_sizes(&tensors).map_err(fail)?;
        Ok(shape)
    }
}

impl fmt::Display for ConvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<String> = self.channels.iter().map(ToString::to_string).collect();
        write!(f, "n{}h{}w{}c{}k{}", self.images, self.h, self.w, channels.join("+"), self.k)?;
        write!(f, "r{}s{}p{}", self.kernel, self.stride, self.padding)
    }
}

/// A linear layer: `m` rows of `k` numbers to `n` numbers each. The rows are those of `b` images (1 if not given), which
/// matters to how the depth is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Images that the rows belong to.
    pub images: usize,
}

impl GemmShape {
    /// What errors show.
    pub const EXAMPLE: &'static str = "m65536n768k256b256";

    /// The 1x1 convolution that it is.
    pub fn conv(&self) -> ConvShape {
        ConvShape {
            images: self.images,
            h: self.m / self.images,
            w: 1,
            channels: vec![self.k],
            k: self.n,
            kernel: 1,
            stride: 1,
            padding: 0,
        }
    }
}

impl FromStr for GemmShape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |reason: String| ShapeError { text: text.into(), reason, example: Self::EXAMPLE };
        let fields = Fields::new(text, "mnkb").map_err(fail)?;
        let get = |letter, default| fields.get(letter, default).map_err(fail);
        let shape = Self { m: get('m', None)?, n: get('n', None)?, k: get('k', None)?, images: get('b', Some(1))? };
        let (m, n, k) = (shape.m, shape.n, shape.k);
        if !m.is_multiple_of(shape.images) {
            return Err(fail(format!("{m} rows are not those of {} images", shape.images)));
        }
        check_sizes(&[("input", [m, k, 1, 1]), ("output", [m, n, 1, 1]), ("matrix", [n, k, 1, 1])]).map_err(fail)?;
        Ok(shape)
    }
}

impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}n{}k{}b{}", self.m, self.n, self.k, self.images)
    }
}

/// More elements than this are a typing error.
const MOST_ELEMENTS: usize = 1 << 40;
/// More than this does not fit an argument of a kernel.
const MOST_SIDE: usize = i32::MAX as usize;

fn check_sizes(tensors: &[(&str, [usize; 4])]) -> Result<(), String> {
    for (name, sides) in tensors {
        let elements = sides.iter().try_fold(1usize, |all, &side| all.checked_mul(side));
        if elements.is_none_or(|n| n > MOST_ELEMENTS) {
            return Err(format!("its {name} has more than 2^40 elements"));
        }
    }
    Ok(())
}

/// Letters with numbers: `n256h32c64+128`.
struct Fields(Vec<(char, Vec<usize>)>);

impl Fields {
    fn new(text: &str, letters: &str) -> Result<Self, String> {
        let mut fields: Vec<(char, Vec<usize>)> = Vec::new();
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            if !letters.contains(letter) {
                return Err(format!("{letter:?} is none of the letters {letters}"));
            }
            if fields.iter().any(|(seen, _)| *seen == letter) {
                return Err(format!("{letter} is there twice"));
            }
            rest = &rest[letter.len_utf8()..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '+').unwrap_or(rest.len());
            let (numbers, after) = rest.split_at(end);
            let parsed: Result<Vec<usize>, _> = numbers.split('+').map(str::parse).collect();
            let parsed = parsed.map_err(|_| format!("{letter} needs a number, not {numbers:?}"))?;
            if parsed.iter().any(|&n| n > MOST_SIDE) {
                return Err(format!("{letter}{numbers} is more than {MOST_SIDE}"));
            }
            fields.push((letter, parsed));
            rest = after;
        }
        Ok(Self(fields))
    }

    fn list(&self, letter: char) -> Option<&[usize]> {
        self.0.iter().find(|(l, _)| *l == letter).map(|(_, numbers)| numbers.as_slice())
    }

    fn positive(&self, letter: char) -> Result<Vec<usize>, String> {
        match self.list(letter) {
            None => Err(format!("{letter} is missing")),
            Some(numbers) if numbers.contains(&0) => Err(format!("{letter} is 0")),
            Some(numbers) => Ok(numbers.to_vec()),
        }
    }

    fn get(&self, letter: char, default: Option<usize>) -> Result<usize, String> {
        match (self.list(letter), default) {
            (None, Some(default)) => Ok(default),
            _ => match self.positive(letter)?[..] {
                [one] => Ok(one),
                _ => Err(format!("{letter} takes one number")),
            },
        }
    }

    fn get_or_zero(&self, letter: char) -> Result<usize, String> {
        if self.list(letter) == Some(&[0]) { Ok(0) } else { self.get(letter, None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_has_defaults_and_prints_all() {
        let shape: ConvShape = "n256h32w32c128k64".parse().unwrap();
        assert_eq!(shape.to_string(), "n256h32w32c128k64r3s1p1");
        assert_eq!(shape.to_string().parse(), Ok(shape.clone()));
        assert_eq!(shape.out_size(), (32, 32));
        let pointwise: ConvShape = "k5c7w9h11n1r1".parse().unwrap();
        assert_eq!(pointwise.to_string(), "n1h11w9c7k5r1s1p0");
        let down: ConvShape = "n2h33w8c64+128k64s2".parse().unwrap();
        assert_eq!((down.out_size(), down.total_channels()), ((17, 4), 192));
        assert_eq!("n1h5w5c8k8r3p0".parse::<ConvShape>().unwrap().out_size(), (3, 3));
    }

    #[test]
    fn a_product_is_a_convolution() {
        let shape: GemmShape = "m65536n768k256b256".parse().unwrap();
        assert_eq!(shape.conv().to_string(), "n256h256w1c256k768r1s1p0");
        assert_eq!("m7n3k5".parse::<GemmShape>().unwrap().to_string(), "m7n3k5b1");
    }

    #[test]
    fn errors_say_what_is_wrong_and_show_an_example() {
        let cases = [
            ("", "n is missing"),
            ("n2h8w8c64", "k is missing"),
            ("n2h8w8c64k64x3", "'x' is none"),
            ("n2h8w8c64k64n3", "n is there twice"),
            ("n2hw8c64k64", "h needs a number"),
            ("n0h8w8c64k64", "n is 0"),
            ("n2h8w8c64+k64", "c needs a number"),
            ("n2+3h8w8c64k64", "n takes one number"),
            ("n2h8w8c64k64s0", "s is 0"),
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
        let error = "m5n3k2b2".parse::<GemmShape>().unwrap_err().to_string();
        assert!(error.contains("5 rows") && error.contains(GemmShape::EXAMPLE), "{error}");
    }
}
