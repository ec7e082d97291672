//! Rows under a heading, in columns.

use super::printable;

/// A table as it grows.
#[derive(Debug)]
pub struct Table {
    /// The narrowest that each column may be.
    least: &'static [usize],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with `heading`; its columns are as wide as what they hold, with
    /// two blanks between them, but no narrower than `least` says.
    pub fn new(heading: &[&str], least: &'static [usize]) -> Self {
        Self { least, rows: vec![heading.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row. What a terminal would obey is taken out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The text, with a line for the heading and one for each row.
    pub fn text(&self) -> String {
        let mut widths = self.least.to_vec();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count() + 2);
            }
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            format!("{}\n", cells.collect::<String>().trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_what_they_hold() {
        let mut table = Table::new(&["A", "B", "C"], &[0, 6]);
        table.row(["long\x1b[2J".to_owned(), "x".to_owned(), "y".to_owned()]);
        table.row(["é".to_owned(), String::new(), String::new()]);
        assert_eq!(table.text(), "A         B     C\nlong\u{fffd}[2J  x     y\né\n");
    }
}
