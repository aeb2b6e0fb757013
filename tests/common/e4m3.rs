//! e4m3 by its definition: a table of all values, searched for the nearest.

/// The value of a byte.
pub fn decode(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest byte, the even one of two; what is larger than 448 becomes 448.
pub fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(x.abs()).min(448.0);
    let distance = |bits: u8| (decode(bits) - magnitude).abs();
    let closer = |&a: &u8, &b: &u8| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)));
    let nearest = (0..0x7f).min_by(closer).unwrap_or(0);
    if x.is_sign_negative() { nearest | 0x80 } else { nearest }
}
