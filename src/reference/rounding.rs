//! Rounding to bf16.

use half::bf16;

/// The bf16 nearest to `x`, ties to even, in one rounding.
pub(super) fn bf16_nearest(x: f64) -> f64 {
    bf16::from_f32(round_to_odd(x)).to_f64()
}

/// One of the two f32 next to `x`: itself if it is one, else the one with an odd last bit.
///
/// That bit keeps an `x` beside a tie of bf16 from becoming the tie, which `x as f32` would not.
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let is_odd = nearest.to_bits() & 1 == 1;
    if is_odd || x.is_nan() || f64::from(nearest) == x {
        return nearest;
    }
    let away = f64::from(nearest).abs() > x.abs();
    f32::from_bits(if away { nearest.to_bits() - 1 } else { nearest.to_bits() + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_is_itself() {
        for bits in 0..=u16::MAX {
            let x = bf16::from_bits(bits);
            let y = bf16_nearest(x.to_f64());
            assert!(y.to_bits() == x.to_f64().to_bits() || (x.is_nan() && y.is_nan()), "{x}");
        }
    }

    #[test]
    fn neighbours_of_a_tie_go_their_own_way() {
        let ulp = 2f64.powi(-7);
        for (x, expected) in [
            (1.0 + ulp / 2.0, 1.0),
            (1.0 + ulp * 1.5, 1.0 + 2.0 * ulp),
            // Closer to the tie than f32 can tell, and closer than 32 bits of an f64 can.
            (1.0 + ulp / 2.0 + 2f64.powi(-40), 1.0 + ulp),
            (1.0 + ulp / 2.0 - 2f64.powi(-40), 1.0),
            (1.0 + ulp * 1.5 - 2f64.powi(-50), 1.0 + ulp),
            (1.0 + ulp / 2.0 + f64::from(f32::EPSILON), 1.0 + ulp),
            (1e39, f64::INFINITY),
            (3.3e38, f64::from(bf16::from_f32(3.3e38).to_f32())),
            (0.0, 0.0),
        ] {
            assert_eq!(bf16_nearest(x), expected, "{x}");
            assert_eq!(bf16_nearest(-x), -expected, "{x}");
        }
        assert!(bf16_nearest(f64::NAN).is_nan());
    }

    #[test]
    fn nothing_representable_is_closer() {
        let mut x = 1e-3;
        while x < 1e3 {
            let y = bf16_nearest(x);
            let bits = bf16::from_f64(y).to_bits();
            for other in [bits - 1, bits + 1].map(|b| bf16::from_bits(b).to_f64()) {
                assert!((y - x).abs() <= (other - x).abs(), "{x}: {y}, {other}");
            }
            x *= 1.000_37;
        }
    }
}
