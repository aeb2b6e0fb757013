//! The embedded handwritten digits: 1,797 grey images of 8x8 pixels with 17 levels, ten classes.
//!
//! Credit: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998,
//! <https://doi.org/10.24432/C50P49>, licensed under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). This is the repository's
//! test part, as scikit-learn's `load_digits` ships it; `scripts/make-digits` packs it without changing a value.

use std::io::Read;
use std::path::PathBuf;

use flate2::read::ZlibDecoder;

use super::{DataError, Dataset, check_request};

const PACKED: &[u8] = include_bytes!("digits.bin.z");
const COUNT: usize = 1797;
const SIDE: usize = 8;
const PIXELS: usize = SIDE * SIDE;

/// The handwritten digits; see the [source of the data](https://doi.org/10.24432/C50P49).
///
/// By E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0.
#[derive(Debug)]
pub struct Digits {
    /// All images, then all labels.
    bytes: Vec<u8>,
}

impl Digits {
    /// Unpacks the set.
    ///
    /// # Errors
    /// [`DataError::Length`] if the embedded data were damaged in the build.
    pub fn load() -> Result<Self, DataError> {
        let expected = COUNT * (PIXELS + 1);
        let mut bytes = Vec::with_capacity(expected);
        let file = || PathBuf::from("(embedded) digits.bin.z");
        ZlibDecoder::new(PACKED).take(expected as u64 + 1).read_to_end(&mut bytes).map_err(|source| DataError::Os {
            action: "unpack",
            path: file(),
            source,
        })?;
        if bytes.len() != expected {
            return Err(DataError::Length {
                path: file(),
                what: "the set".into(),
                expected: expected as u64,
                actual: bytes.len() as u64,
            });
        }
        Ok(Self { bytes })
    }
}

impl Dataset for Digits {
    fn name(&self) -> &str {
        "digits"
    }

    fn len(&self) -> usize {
        COUNT
    }

    fn channels(&self) -> usize {
        1
    }

    fn height(&self) -> usize {
        SIDE
    }

    fn width(&self) -> usize {
        SIDE
    }

    fn num_classes(&self) -> Option<usize> {
        Some(10)
    }

    fn class_names(&self) -> Vec<String> {
        (0..10).map(|digit| digit.to_string()).collect()
    }

    fn levels(&self) -> u32 {
        17
    }

    fn pixels(&self, index: usize, out: &mut [u8]) -> Result<Option<u32>, DataError> {
        check_request(self, index, out);
        out.copy_from_slice(&self.bytes[index * PIXELS..(index + 1) * PIXELS]);
        Ok(Some(u32::from(self.bytes[COUNT * PIXELS + index])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_the_published_one() {
        let set = Digits::load().unwrap();
        // Printed by scikit-learn 1.9.1: load_digits().images[0] and [1796], the sum of all values and the counts of the classes.
        let mut image = [0; PIXELS];
        assert_eq!(set.pixels(0, &mut image).unwrap(), Some(0));
        assert_eq!(image[..16], [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]);
        assert_eq!(set.pixels(1796, &mut image).unwrap(), Some(8));
        assert_eq!(image[48..], [0, 8, 16, 10, 8, 16, 8, 0, 0, 1, 8, 12, 14, 12, 1, 0]);
        let mut sum = 0u64;
        let mut counts = [0; 10];
        for index in 0..set.len() {
            let label = set.pixels(index, &mut image).unwrap().unwrap();
            counts[label as usize] += 1;
            sum += image.iter().map(|&v| u64::from(v)).sum::<u64>();
            assert!(image.iter().all(|&v| u32::from(v) < set.levels()));
        }
        assert_eq!(sum, 561_718);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_eq!(crc32fast::hash(&set.bytes), 0xb89d_aea8);
    }
}
