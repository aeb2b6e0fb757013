//! Division by a number that is fixed at launch, without a division on the device.

use bytemuck::{Pod, Zeroable};

/// `struct FastDivide` of `kernels/device/fast_divide.cuh`: `n / divisor = (high(n * multiplier) + n) >> shift` for
/// n below 2^31 (Granlund & Montgomery, "Division by invariant integers using multiplication", 1994).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct FastDivide {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl FastDivide {
    /// The numbers for a divisor from 1 to 2^31.
    pub fn new(divisor: usize) -> Self {
        let shift = divisor.next_power_of_two().trailing_zeros();
        let multiplier = (((1u64 << shift) - divisor as u64) << 32) / divisor as u64 + 1;
        Self { divisor: divisor as u32, multiplier: multiplier as u32, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotient(d: FastDivide, n: u32) -> u32 {
        (((u64::from(n) * u64::from(d.multiplier)) >> 32) as u32 + n) >> d.shift
    }

    #[test]
    fn quotients_are_exact_around_every_multiple_and_at_the_ends() {
        const LAST: u32 = (1 << 31) - 1;
        for divisor in (1..700).chain([1023, 1024, 1025, 65537, 12_345_678, LAST as usize - 1, LAST as usize]) {
            let d = FastDivide::new(divisor);
            let step = (LAST / 977).max(1);
            let numerators = (0..=LAST).step_by(step as usize).map(|n| n / divisor as u32 * divisor as u32);
            for n in numerators.flat_map(|n| [n.saturating_sub(1), n, (n + 1).min(LAST)]).chain([LAST, LAST - 1]) {
                assert_eq!(quotient(d, n), n / divisor as u32, "{n} / {divisor}");
            }
        }
    }
}
