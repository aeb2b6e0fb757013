//! The order in which training visits a dataset, as a pure function of the seed and the number of examples seen.

/// Which image is the `example`-th (from 0) of a run over a set of `len` images.
///
/// Epoch e = `example / len` visits every image once, in an order of its own: position p = `example % len` goes through a keyed
/// permutation. So a run can go on from any example without stored state, and its order does not depend on batch size or workers.
///
/// The permutation is a Feistel network of eight rounds on the smallest 4^k >= len positions; positions that leave `0..len` go
/// through it again ("cycle walking"), less than four times on average.
///
/// # Panics
/// If `len` is 0.
pub fn dataset_index(seed: u64, example: u64, len: usize) -> usize {
    assert!(len > 0, "an empty dataset has no order");
    let len = len as u64;
    let key = mix(mix(seed) ^ (example / len));
    let half_bits = (u64::BITS - (len - 1).leading_zeros()).div_ceil(2).max(1);
    let mut position = example % len;
    loop {
        position = feistel(position, half_bits, key);
        if position < len {
            return position as usize;
        }
    }
}

/// A bijection on `0..4^half_bits`, whatever the round function.
fn feistel(position: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1 << half_bits) - 1;
    let (mut left, mut right) = (position >> half_bits, position & mask);
    for round in 0..8 {
        let scrambled = mix(key ^ mix(right ^ (round << 32))) >> 32;
        (left, right) = (right, left ^ (scrambled & mask));
    }
    (left << half_bits) | right
}

/// SplitMix64's output function: a bijection on u64 in which every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
        let first = epoch * len as u64;
        (first..first + len as u64).map(|example| dataset_index(seed, example, len)).collect()
    }

    #[test]
    fn every_epoch_is_a_permutation_of_its_own() {
        for len in [1, 2, 3, 5, 63, 64, 65, 1797, 4097, 50_000] {
            let mut seen = Vec::new();
            for e in [0, 1, 2, 1 << 40] {
                let order = epoch(7, e, len);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..len));
                if len > 60 {
                    assert!(!seen.contains(&order));
                }
                seen.push(order);
            }
        }
        assert_ne!(epoch(7, 0, 1797), epoch(8, 0, 1797));
        assert_eq!(epoch(7, 3, 1797), epoch(7, 3, 1797));
    }

    /// SplitMix64 seeded with 0 begins with these two values (reference implementation by Vigna).
    #[test]
    fn mix_is_splitmix64() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn all_orders_of_four_images_are_about_equally_frequent() {
        let mut counts = std::collections::BTreeMap::new();
        let epochs = 24_000u64;
        for e in 0..epochs {
            *counts.entry(epoch(1, e, 4)).or_insert(0u64) += 1;
        }
        // 1,000 of each, give or take the sampling deviation of 31.
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn images_fall_anywhere_and_neighbours_are_independent() {
        // Where each image of 97 comes in 4,000 epochs: chi-square with 96 degrees of freedom has mean 96, deviation 13.9.
        let (len, epochs) = (97, 4000);
        let mut counts = vec![0f64; len * len];
        let mut steps = vec![0f64; len];
        for e in 0..epochs {
            let order = epoch(3, e, len);
            order.iter().enumerate().for_each(|(position, &image)| counts[image * len + position] += 1.0);
            order.windows(2).for_each(|pair| steps[(pair[1] + len - pair[0]) % len] += 1.0);
        }
        let expected = epochs as f64 / len as f64;
        for image in counts.chunks(len) {
            let chi: f64 = image.iter().map(|n| (n - expected).powi(2) / expected).sum();
            assert!((45.0..170.0).contains(&chi), "{chi}");
        }
        let expected = (epochs as usize * (len - 1)) as f64 / (len - 1) as f64;
        let chi: f64 = steps[1..].iter().map(|n| (n - expected).powi(2) / expected).sum();
        assert!((45.0..170.0).contains(&chi), "{chi}");
    }
}
