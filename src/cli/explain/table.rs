//! Aligned columns.

/// Rows of equal length with a heading; the first `left` columns to the left, the rest to the right. Each line begins with
/// two blanks or its mark.
pub(in crate::cli) fn table<const N: usize>(heading: [&str; N], rows: &[(char, [String; N])], left: usize) -> String {
    let heading = (' ', heading.map(String::from));
    let lines: Vec<&(char, [String; N])> = std::iter::once(&heading).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|(_, line)| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for (mark, line) in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        text += format!("{mark} {}", cells.collect::<Vec<_>>().join("  ")).trim_end();
        text += "\n";
    }
    text
}
