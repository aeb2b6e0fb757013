//! The lines of a report together.

use serde::Serialize;

use super::row::Row;
use crate::bench::statistics::geometric_mean;

/// Lines of one family, network, batch and pass together.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    family: &'static str,
    network: Option<String>,
    batch: Option<usize>,
    pass: &'static str,
    /// Lines that were measured, and those with a ratio.
    lines: usize,
    compared: usize,
    /// Of all lines alike.
    geometric_mean_ratio: Option<f64>,
    geometric_mean_roof_percent: Option<f64>,
    /// The line with the lowest ratio; without a peer, the one farthest from its floor.
    worst: Option<String>,
    /// Sums over the lines, each as often as the network computes it. The second and third hold lines with a ratio alone.
    sum_us: f64,
    compared_us: Option<f64>,
    peer_us: Option<f64>,
    floor_us: Option<f64>,
}

impl Summary {
    /// The summaries of all lines, in the order of each one's first line.
    pub fn all(rows: &[Row]) -> Vec<Self> {
        let key = |row: &Row| (row.family, row.network.clone(), row.batch, row.pass);
        let mut groups: Vec<Vec<&Row>> = Vec::new();
        for row in rows {
            match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
                Some(group) => group.push(row),
                None => groups.push(vec![row]),
            }
        }
        groups.iter().map(|group| Self::of(group)).collect()
    }

    /// Of lines that belong together; there is one.
    fn of(rows: &[&Row]) -> Self {
        let measured: Vec<(&Row, f64)> =
            rows.iter().filter_map(|&row| Some((row, row.us?.median * row.count as f64))).collect();
        let compared: Vec<(&Row, f64, f64)> =
            measured.iter().filter_map(|&(row, us)| Some((row, us, row.ratio?.median))).collect();
        let roofs = || measured.iter().filter_map(|(row, _)| Some((*row, row.roof_percent()?)));
        let lowest = |it: &mut dyn Iterator<Item = (&Row, f64)>| {
            it.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(row, _)| row.name.clone())
        };
        let theirs = |row: &Row| row.peer.as_ref()?.us.map(|s| s.median * row.count as f64);
        let floors: Vec<f64> = measured.iter().filter_map(|(row, _)| Some(row.floor?.us * row.count as f64)).collect();
        Self {
            family: rows[0].family,
            network: rows[0].network.clone(),
            batch: rows[0].batch,
            pass: rows[0].pass,
            lines: measured.len(),
            compared: compared.len(),
            geometric_mean_ratio: geometric_mean(compared.iter().map(|(.., ratio)| (*ratio, 1.0))),
            geometric_mean_roof_percent: geometric_mean(roofs().map(|(_, percent)| (percent, 1.0))),
            worst: lowest(&mut compared.iter().map(|(row, _, ratio)| (*row, *ratio))).or_else(|| lowest(&mut roofs())),
            sum_us: measured.iter().map(|(_, us)| us).sum(),
            compared_us: (!compared.is_empty()).then(|| compared.iter().map(|(_, us, _)| us).sum()),
            peer_us: (!compared.is_empty()).then(|| compared.iter().filter_map(|(row, ..)| theirs(row)).sum()),
            floor_us: (!floors.is_empty()).then(|| floors.iter().sum()),
        }
    }

    pub fn print(&self) {
        let batch = self.batch.map_or(String::new(), |n| format!("batch {n}, "));
        print!("{} {batch}{}: {} lines, {:.1} us in all", self.family, self.pass, self.lines, self.sum_us);
        if let Some(floor) = self.floor_us {
            print!(" (floor {floor:.1})");
        }
        if let (Some(ours), Some(theirs), Some(mean)) = (self.compared_us, self.peer_us, self.geometric_mean_ratio) {
            print!("; {} compared: {ours:.1} against {theirs:.1} us, mean ratio {mean:.3}", self.compared);
        }
        println!("{}", self.worst.as_ref().map_or(String::new(), |shape| format!("; worst: {shape}")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn sums_are_weighted_and_means_are_not() {
        let rows =
            [row("m10n10k10", 3, 2.0, Some(4.0)), row("m20n10k10", 1, 8.0, Some(4.0)), row("m30n10k10", 2, 5.0, None)];
        let all = Summary::all(&rows);
        let s = &all[0];
        assert_eq!((all.len(), s.family, s.batch, s.pass), (1, "gemm", Some(4), "fprop"));
        assert_eq!((s.lines, s.compared), (3, 2));
        assert_eq!((s.sum_us, s.compared_us, s.peer_us, s.floor_us), (24.0, Some(14.0), Some(16.0), Some(6.0)));
        assert!((s.geometric_mean_ratio.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(s.worst.as_deref(), Some("m20n10k10"));
        let alone = Summary::of(&[&rows[2]]);
        assert_eq!((alone.compared, alone.peer_us, alone.worst.as_deref()), (0, None, Some("m30n10k10")));
    }

    #[test]
    fn lines_of_other_batches_are_summed_apart() {
        let mut rows = [row("m10n10k10", 3, 2.0, None), row("m20n10k10", 1, 8.0, None), row("m30n10k10", 2, 5.0, None)];
        rows[1].batch = Some(16);
        let sums: Vec<_> = Summary::all(&rows).iter().map(|s| (s.batch, s.lines, s.sum_us)).collect();
        assert_eq!(sums, [(Some(4), 2, 16.0), (Some(16), 1, 8.0)]);
    }
}
