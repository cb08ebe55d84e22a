//! Aligned columns.

use std::fmt;

/// Rows of equally many cells under a title.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(title: [&str; N]) -> Self {
        Self { rows: vec![title.map(str::to_owned)] }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    /// Columns are left-aligned and two spaces apart; lines end with their last character.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: &String| cell.chars().count();
        let widths: [usize; N] =
            std::array::from_fn(|column| self.rows.iter().map(|row| width(&row[column])).max().unwrap_or(0));
        for row in &self.rows {
            let line: String = row
                .iter()
                .zip(widths)
                .map(|(cell, most)| format!("{cell}{:pad$}", "", pad = most - width(cell) + 2))
                .collect();
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["A", "LONG", "B"]);
        table.row(["wide\u{e9}".to_owned(), "x".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "A      LONG  B\nwide\u{e9}  x\n");
    }
}
