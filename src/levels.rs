//! From the values of a model to the grey levels of a picture.

/// How a model's values become bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Levels {
    /// By [`to_byte`]: diffusers.
    #[default]
    Rounded,
    /// By [`to_byte_truncated`]: guided-diffusion.
    Truncated,
    /// By [`unit_to_byte`]: samplers whose x ends in [0, 1].
    Unit,
}

impl Levels {
    /// The byte of a value.
    pub fn byte(self, value: f32) -> u8 {
        match self {
            Self::Rounded => to_byte(value),
            Self::Truncated => to_byte_truncated(value),
            Self::Unit => unit_to_byte(value),
        }
    }
}

/// A model's value in [-1, 1] as a byte, as diffusers has it: 255 * clamp(x / 2 + 1/2, 0, 1), rounded half to even. NaN
/// becomes 0.
pub fn to_byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// A model's value in [-1, 1] as a byte, as guided-diffusion has it: (x + 1) * 127.5 cut down to an integer, between 0 and
/// 255. NaN becomes 0.
pub fn to_byte_truncated(value: f32) -> u8 {
    // The conversion saturates and cuts down.
    ((value + 1.0) * 127.5) as u8
}

/// A value in [0, 1] as a byte: 255 * clamp(x, 0, 1), rounded half to even. NaN becomes 0.
pub fn unit_to_byte(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_bytes_are_cut_down_and_saturate() {
        assert_eq!([-1.0, 1.0, -7.0, 9.0, f32::NAN, f32::INFINITY].map(to_byte_truncated), [0, 255, 0, 255, 0, 255]);
        for byte in 0..255u8 {
            let border = f32::from(byte) / 127.5 - 1.0;
            assert_eq!(to_byte_truncated(border + 1e-6), byte);
            assert_eq!(to_byte_truncated(border + 1.0 / 127.5 - 1e-6), byte);
        }
    }

    #[test]
    fn bytes_round_half_to_even() {
        assert_eq!([-1.0, 1.0, -7.0, 9.0, f32::NAN].map(to_byte), [0, 255, 0, 255, 0]);
        // x = 0 is the exact half 127.5, between 127 and 128.
        assert_eq!(to_byte(0.0), 128);
        let mut halves = 0;
        for k in 0..255u32 {
            let border = f64::from(2 * k + 1) / 255.0 - 1.0;
            if k != 127 {
                assert_eq!(u32::from(to_byte((border - 1e-5) as f32)), k);
                assert_eq!(u32::from(to_byte((border + 1e-5) as f32)), k + 1);
            }
            // Where the f32 product is exactly k + 1/2, as NumPy would have it too, the even neighbour wins.
            if (border as f32 / 2.0 + 0.5) * 255.0 == k as f32 + 0.5 {
                halves += 1;
                assert_eq!(u32::from(to_byte(border as f32)), k + k % 2);
            }
        }
        assert_eq!([-1.0, 7.0, f32::NAN].map(unit_to_byte), [0, 255, 0]);
        assert!(halves > 50, "{halves}");
        for byte in 0..=255u8 {
            assert_eq!(to_byte(f32::from(byte) / 127.5 - 1.0), byte);
            assert_eq!(unit_to_byte(f32::from(byte) / 255.0), byte);
        }
    }
}
