//! Placing data on cache lines.

/// A cache line in floats; scratch areas begin on one.
pub(crate) const LINE: usize = 16;

/// The part of `slice` that begins on a cache line.
pub(crate) fn aligned(slice: &[f32]) -> &[f32] {
    &slice[slice.as_ptr().align_offset(4 * LINE).min(slice.len())..]
}

/// The part of `slice` that begins on a cache line.
pub(crate) fn aligned_mut(slice: &mut [f32]) -> &mut [f32] {
    let skip = slice.as_ptr().align_offset(4 * LINE).min(slice.len());
    &mut slice[skip..]
}

/// The row length that holds `len` floats in an odd number of whole cache lines: rows then spread over all sets of a
/// cache, and whole vectors may be stored up to the last channel.
pub(crate) fn odd_lines(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_their_floats_in_odd_lines() {
        for len in [0, 1, 16, 17, 128, 129, 384] {
            let row = odd_lines(len);
            assert!(row >= len && row < len + 2 * LINE + LINE && row % (2 * LINE) == LINE);
        }
    }

    #[test]
    fn aligned_parts_begin_on_a_line() {
        let mut data = [0.0f32; 64];
        for skip in 0..20 {
            let part = aligned(&data[skip..]);
            assert!(part.as_ptr().addr().is_multiple_of(64) && part.len() + LINE > data.len() - skip);
            assert!(aligned_mut(&mut data[skip..]).as_ptr().addr().is_multiple_of(64));
        }
        assert!(aligned(&data[..0]).is_empty());
    }
}
