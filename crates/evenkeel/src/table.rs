//! Tables for people: columns as wide as their widest cell, numbers to the right.

/// Lays out rows under a head. A column whose cells below the head are all numbers is right-aligned.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    let mut numeric: Vec<bool> = (0..head.len())
        .map(|column| rows.iter().any(|row| row.get(column).is_some_and(|cell| cell != "-")))
        .collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate().take(head.len()) {
            widths[column] = widths[column].max(cell.chars().count());
            numeric[column] &=
                cell == "-" || cell.trim_start_matches('~').starts_with(|c: char| c.is_ascii_digit());
        }
    }
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().enumerate().take(widths.len()).map(|(column, cell)| {
            let width = widths[column];
            if numeric[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_words_to_the_left() {
        let rows =
            [vec![String::from("a"), String::from("7")], vec![String::from("long"), String::from("1200")]];
        assert_eq!(table(&["server", "count"], &rows), "server  count\na           7\nlong     1200\n");
    }
}
