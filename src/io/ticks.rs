//! Where the ticks of an axis go and how they are written.

/// An axis from `low` to `high`, in data units, linear or logarithmic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    /// Empty for a mark without a number.
    pub(super) label: String,
}

impl Scale {
    /// An axis that shows all of `low..=high` with a little air. A logarithmic one needs positive bounds.
    pub(super) fn around(low: f64, high: f64, air: f64, log: bool) -> Self {
        let (low, high) = if log { (low.log10(), high.log10()) } else { (low, high) };
        let extent = high - low;
        let margin = if extent > 0.0 { extent * air } else { low.abs().max(1.0) * 0.05 };
        let (low, high) = (low - margin, high + margin);
        if log {
            return Self { low: 10f64.powf(low), high: 10f64.powf(high), log };
        }
        Self { low, high, log }
    }

    /// Position along the axis: 0 at its low end, 1 at its high end.
    pub(super) fn position(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// At most about `wanted` numbered marks, at round values inside the axis, and on a logarithmic axis unnumbered ones between.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<Tick> {
        if self.log { self.log_ticks(wanted) } else { self.linear_ticks(wanted) }
    }

    fn linear_ticks(&self, wanted: usize) -> Vec<Tick> {
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        let largest = self.low.abs().max(self.high.abs());
        (first..=last)
            .map(|k| k as f64 * step)
            .map(|value| Tick { value, label: number(value, decimals, step, largest) })
            .collect()
    }

    fn log_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let decades = (self.high / self.low).log10();
        let every = (decades / wanted.max(1) as f64).ceil().max(1.0) as i32;
        // Over less than two decades powers of ten alone would leave an axis with one number or none.
        let numbered: &[i32] = match decades {
            d if d < 0.7 => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            d if d < 2.5 => &[1, 2, 5],
            _ => &[1],
        };
        let mut ticks = Vec::new();
        for decade in first..=last {
            for digit in 1..=9 {
                let value = f64::from(digit) * 10f64.powi(decade);
                let number = numbered.contains(&digit) && decade.rem_euclid(every) == 0;
                if value >= self.low && value <= self.high {
                    let label = if number { short(value) } else { String::new() };
                    ticks.push(Tick { value, label });
                }
            }
        }
        ticks
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A tick of a linear axis whose numbers go up to `largest`: 0.25, 1500, 20k, 1.5M.
fn number(value: f64, decimals: usize, step: f64, largest: f64) -> String {
    if value.abs() < step * 1e-6 {
        return "0".into();
    }
    if largest >= 1e10 || decimals > 5 {
        return short(value);
    }
    let (unit, suffix) = match largest {
        v if v >= 1e6 => (1e6, "M"),
        v if v >= 1e4 => (1e3, "k"),
        _ => return format!("{value:.decimals$}"),
    };
    let decimals = (unit / step).log10().ceil().max(0.0) as usize;
    format!("{:.decimals$}{suffix}", value / unit)
}

/// A number with few characters: 0.002, 50, 1e-7.
fn short(value: f64) -> String {
    if (1e-3..1e4).contains(&value.abs()) {
        // Ticks have one digit before the zeros, so that six decimals show them exactly.
        let text = format!("{value:.6}");
        return text.trim_end_matches('0').trim_end_matches('.').to_string();
    }
    let text = format!("{value:.2e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|tick| tick.label).filter(|label| !label.is_empty()).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        let axis = |low, high| Scale { low, high, log: false };
        assert_eq!(labels(axis(0.0, 1.0), 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(axis(-0.013, 0.031), 5), ["-0.01", "0", "0.01", "0.02", "0.03"]);
        assert_eq!(labels(axis(0.0, 100_000.0), 5), ["0", "20k", "40k", "60k", "80k", "100k"]);
        assert_eq!(labels(axis(0.0, 2.4e6), 5), ["0", "0.5M", "1.0M", "1.5M", "2.0M"]);
        assert_eq!(labels(axis(0.0, 3.1e-9), 4), ["0", "1e-9", "2e-9", "3e-9"]);
        assert_eq!(labels(axis(5000.0, 7000.0), 4), ["5000", "5500", "6000", "6500", "7000"]);
    }

    #[test]
    fn log_ticks_are_powers_of_ten_and_their_parts() {
        let axis = |low, high| Scale { low, high, log: true };
        assert_eq!(labels(axis(0.001, 100.0), 6), ["0.001", "0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(axis(0.011, 0.9), 6), ["0.02", "0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(labels(axis(0.21, 0.45), 6), ["0.3", "0.4"]);
        assert_eq!(labels(axis(1e-9, 1e9), 6), ["1e-9", "1e-6", "0.001", "1", "1000", "1e6", "1e9"]);
        assert_eq!(axis(0.1, 10.0).position(1.0), 0.5);
        assert_eq!(axis(0.1, 10.0).ticks(5).len(), 19);
    }

    #[test]
    fn a_constant_gets_an_axis_around_it() {
        for (value, log) in [(0.0, false), (-3.0, false), (5e8, false), (0.02, true)] {
            let axis = Scale::around(value, value, 0.05, log);
            assert!((axis.position(value) - 0.5).abs() < 1e-6);
            assert!(!axis.ticks(5).is_empty());
        }
    }
}
