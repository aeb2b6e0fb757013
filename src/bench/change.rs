//! Whether two reports of the same lines differ by more than their noise.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::statistics::{Spread, geometric_mean};

/// The newest schema of a report that is understood; the first had products alone.
const NEWEST: u32 = 2;
/// Fewer measurements say nothing about noise.
const LEAST_SAMPLES: usize = 3;

/// What a line of a report measured: the same in both reports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// The command that measures it.
    pub family: String,
    /// The network that it belongs to, if it was read from one.
    pub network: Option<String>,
    /// Images at once.
    pub batch: Option<usize>,
    /// Its shape.
    pub name: String,
    /// Which of the operations of that shape.
    pub pass: String,
}

/// A report, as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Name of the device.
    pub device: String,
    /// Arithmetic.
    pub precision: String,
    /// Of the program.
    pub commit: Option<String>,
    /// When.
    pub date: String,
    /// Lines that have a time, each once.
    pub lines: Vec<(Key, Spread)>,
}

/// A file that is no report of `bench`.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Not the JSON of a report.
    #[error("is no report of warpdiff bench --json: {0}")]
    Format(#[from] serde_json::Error),
    /// Of another version of this program.
    #[error("has schema {0}; this program reads 1 to {NEWEST}: use the one that wrote it, or a newer one")]
    Schema(u32),
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

#[derive(Deserialize)]
struct Document {
    kind: String,
    network: Option<String>,
    device: Device,
    precision: String,
    commit: Option<String>,
    date: String,
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
}

#[derive(Deserialize)]
struct Row {
    family: Option<String>,
    network: Option<String>,
    #[serde(alias = "product")]
    name: String,
    pass: String,
    batch: Option<usize>,
    us: Option<Spread>,
}

impl Measured {
    /// Reads a report of any known schema.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        let Version { schema } = serde_json::from_str(text)?;
        if !(1..=NEWEST).contains(&schema) {
            return Err(ReportError::Schema(schema));
        }
        let document: Document = serde_json::from_str(text)?;
        let mut lines: Vec<(Key, Spread)> = Vec::new();
        for row in document.results {
            let Some(us) = row.us else { continue };
            let key = Key {
                family: row.family.unwrap_or_else(|| document.kind.clone()),
                network: row.network.or_else(|| document.network.clone()),
                batch: row.batch,
                name: row.name,
                pass: row.pass,
            };
            if lines.iter().all(|(known, _)| *known != key) {
                lines.push((key, us));
            }
        }
        Ok(Self {
            device: document.device.name,
            precision: document.precision,
            commit: document.commit,
            date: document.date,
            lines,
        })
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It takes longer, beyond the noise.
    Slower,
    /// It takes less, beyond the noise.
    Faster,
    /// Neither can be said.
    Same,
}

/// A line of both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// Microseconds, in the first report.
    pub before: Spread,
    /// In the second.
    pub after: Spread,
    /// Second median by first: above 1 it takes longer.
    pub ratio: f64,
    /// Whether that is more than noise.
    pub verdict: Verdict,
}

impl Change {
    /// Compares two measurements. They differ if their medians are more than `threshold` apart (0.03 is three percent) and
    /// the ranges from the lower to the upper quartile have no time in common.
    pub fn new(key: Key, before: Spread, after: Spread, threshold: f64) -> Self {
        let ratio = after.median / before.median;
        let known = before.samples.min(after.samples) >= LEAST_SAMPLES;
        let verdict = if known && ratio > 1.0 + threshold && after.lower_quartile > before.upper_quartile {
            Verdict::Slower
        } else if known && ratio < 1.0 / (1.0 + threshold) && after.upper_quartile < before.lower_quartile {
            Verdict::Faster
        } else {
            Verdict::Same
        };
        Self { key, before, after, ratio, verdict }
    }
}

/// Both reports, line by line.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Lines of both, the largest ratio first.
    pub changes: Vec<Change>,
    /// Lines of the first alone.
    pub gone: Vec<Key>,
    /// Lines of the second alone.
    pub new: Vec<Key>,
}

impl Comparison {
    /// Matches the lines of two reports.
    pub fn new(before: &Measured, after: &Measured, threshold: f64) -> Self {
        let find = |lines: &[(Key, Spread)], key: &Key| lines.iter().find(|(k, _)| k == key).map(|(_, us)| *us);
        let alone = |of: &[(Key, Spread)], other: &[(Key, Spread)]| -> Vec<Key> {
            of.iter().filter(|(key, _)| find(other, key).is_none()).map(|(key, _)| key.clone()).collect()
        };
        let both = before
            .lines
            .iter()
            .filter_map(|(key, us)| find(&after.lines, key).map(|then| Change::new(key.clone(), *us, then, threshold)));
        let mut changes: Vec<Change> = both.collect();
        changes.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
        Self { changes, gone: alone(&before.lines, &after.lines), new: alone(&after.lines, &before.lines) }
    }

    /// How many lines have that verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.changes.iter().filter(|change| change.verdict == verdict).count()
    }

    /// Geometric mean of the ratios of each family, in the order of their names, with the number of its lines.
    pub fn families(&self) -> Vec<(String, usize, f64)> {
        let mut names: Vec<&String> = self.changes.iter().map(|change| &change.key.family).collect();
        names.sort();
        names.dedup();
        let mean = |name: &String| {
            let ratios = || self.changes.iter().filter(|c| c.key.family == *name).map(|c| (c.ratio, 1.0));
            Some((name.clone(), ratios().count(), geometric_mean(ratios())?))
        };
        names.into_iter().filter_map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(lower_quartile: f64, median: f64, upper_quartile: f64) -> Spread {
        Spread { median, lower_quartile, upper_quartile, samples: 9 }
    }

    fn key(name: &str) -> Key {
        Key { family: "conv".into(), network: None, batch: Some(4), name: name.into(), pass: "fprop".into() }
    }

    fn verdict(before: Spread, after: Spread) -> Verdict {
        Change::new(key("x"), before, after, 0.03).verdict
    }

    #[test]
    fn a_change_is_larger_than_the_threshold_and_than_the_noise() {
        let before = spread(9.0, 10.0, 11.0);
        assert_eq!(verdict(before, before), Verdict::Same);
        assert_eq!(verdict(before, spread(11.5, 12.0, 13.0)), Verdict::Slower);
        assert_eq!(verdict(before, spread(10.9, 12.0, 13.0)), Verdict::Same, "the quartiles overlap");
        assert_eq!(verdict(before, spread(7.0, 8.0, 8.9)), Verdict::Faster);
        assert_eq!(verdict(before, spread(7.0, 8.0, 9.1)), Verdict::Same, "the quartiles overlap");
        let sharp = |us| spread(us, us, us);
        assert_eq!(verdict(sharp(100.0), sharp(103.1)), Verdict::Slower);
        assert_eq!(verdict(sharp(100.0), sharp(102.9)), Verdict::Same, "within the threshold");
        assert_eq!(verdict(sharp(100.0), sharp(97.0)), Verdict::Faster);
        let few = Spread { samples: 2, ..sharp(200.0) };
        assert_eq!(verdict(sharp(100.0), few), Verdict::Same, "too few measurements");
    }

    #[test]
    fn lines_are_matched_by_what_they_measure() {
        let measured = |names: &[(&str, f64)]| Measured {
            device: "a".into(),
            precision: "f32".into(),
            commit: None,
            date: String::new(),
            lines: names.iter().map(|&(name, us)| (key(name), spread(us, us, us))).collect(),
        };
        let comparison = Comparison::new(
            &measured(&[("old", 1.0), ("same", 10.0), ("worse", 10.0), ("better", 8.0)]),
            &measured(&[("worse", 20.0), ("better", 4.0), ("new", 5.0), ("same", 10.0)]),
            0.03,
        );
        let names: Vec<_> = comparison.changes.iter().map(|c| (c.key.name.as_str(), c.ratio, c.verdict)).collect();
        let expected =
            [("worse", 2.0, Verdict::Slower), ("same", 1.0, Verdict::Same), ("better", 0.5, Verdict::Faster)];
        assert_eq!(names, expected);
        assert_eq!((comparison.gone, comparison.new), (vec![key("old")], vec![key("new")]));
        assert_eq!(comparison.changes.len(), 3);
    }

    #[test]
    fn both_schemas_are_read_and_no_other() {
        let us = r#"{"median": 2.0, "lower_quartile": 1.0, "upper_quartile": 3.0, "samples": 5}"#;
        let report = |schema: u32, row: &str| {
            format!(
                r#"{{"schema": {schema}, "kind": "conv", "network": "n", "device": {{"name": "d"}}, "precision": "f32",
                     "commit": null, "date": "then", "more": 1, "results": [{{{row}, "pass": "fprop", "batch": 4, "us": {us}}},
                     {{"name": "failed", "pass": "fprop", "batch": 4, "us": null}}]}}"#
            )
        };
        let first = Measured::parse(&report(1, r#""product": "x""#)).unwrap();
        let expected = Spread { samples: 5, ..spread(1.0, 2.0, 3.0) };
        assert_eq!(first.lines, [(Key { network: Some("n".into()), ..key("x") }, expected)]);
        let second = Measured::parse(&report(2, r#""family": "norm", "network": "m", "name": "x""#)).unwrap();
        assert_eq!((second.lines[0].0.family.as_str(), second.lines[0].0.network.as_deref()), ("norm", Some("m")));
        assert!(matches!(Measured::parse(&report(3, r#""name": "x""#)), Err(ReportError::Schema(3))));
        assert!(matches!(Measured::parse("[]"), Err(ReportError::Format(_))));
        assert!(matches!(Measured::parse(r#"{"schema": 1}"#), Err(ReportError::Format(_))));
    }
}
