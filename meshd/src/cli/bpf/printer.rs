//! Rows that are printed as they come.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::ops::ControlFlow;

use serde::Serialize;

use super::super::failure::Failure;
use super::super::options::Format;
use super::super::output;

/// Rows whose widths decide those of the columns, until longer cells come.
const PAGE: usize = 1_024;

/// What can be printed in columns.
pub(super) trait Row {
    /// Headings of all columns.
    const HEADING: &'static [&'static str];
    /// How many of them the short form has.
    const SHORT: usize;

    /// As many cells.
    fn cells(&self) -> Vec<String>;
}

/// Prints rows in a format, and stops after so many.
pub(super) struct Printer {
    out: BufWriter<Stdout>,
    format: Format,
    limit: u64,
    count: u64,
    pending: Vec<Vec<String>>,
    widths: Vec<usize>,
    failure: Option<Failure>,
}

impl Printer {
    /// `limit` 0 prints all.
    pub(super) fn new(format: Format, limit: u64) -> Self {
        Self {
            out: BufWriter::new(io::stdout()),
            format,
            limit,
            count: 0,
            pending: Vec::new(),
            widths: Vec::new(),
            failure: None,
        }
    }

    /// Prints a row; breaks when there is no use in another one.
    pub(super) fn put<T: Row + Serialize>(&mut self, row: &T) -> ControlFlow<()> {
        let printed = self.print(row);
        self.count += 1;
        if let Err(failure) = printed {
            self.failure = Some(failure);
            return ControlFlow::Break(());
        }
        if self.limit != 0 && self.count >= self.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Prints the rest and tells how many rows there were.
    pub(super) fn finish<T: Row>(mut self) -> Result<u64, Failure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        match self.format {
            Format::Table | Format::Wide => self.page::<T>()?,
            Format::Json if self.count == 0 => self.out.write_all(b"[]\n")?,
            Format::Json => self.out.write_all(b"\n]\n")?,
            Format::Yaml if self.count == 0 => self.out.write_all(b"[]\n")?,
            Format::Yaml => {}
        }
        self.out.flush()?;
        Ok(self.count)
    }

    fn print<T: Row + Serialize>(&mut self, row: &T) -> Result<(), Failure> {
        let broken = |error: String| Failure::message(format!("failed to print the result: {error}"));
        match self.format {
            Format::Table | Format::Wide => {
                let mut cells = row.cells();
                cells.truncate(self.columns::<T>());
                self.pending.push(cells);
                if self.pending.len() >= PAGE {
                    self.page::<T>()?;
                }
            }
            Format::Json => {
                self.out.write_all(if self.count == 0 { b"[\n  " } else { b",\n  " })?;
                let text = serde_json::to_string_pretty(row).map_err(|error| broken(error.to_string()))?;
                self.out.write_all(text.replace('\n', "\n  ").as_bytes())?;
            }
            Format::Yaml => self.out.write_all(output::yaml_text(&[row]).map_err(broken)?.as_bytes())?,
        }
        Ok(())
    }

    fn columns<T: Row>(&self) -> usize {
        if self.format == Format::Wide { T::HEADING.len() } else { T::SHORT }
    }

    /// Prints what is pending, under the heading when it is the first page.
    fn page<T: Row>(&mut self) -> Result<(), Failure> {
        let columns = self.columns::<T>();
        let mut rows = std::mem::take(&mut self.pending);
        if self.widths.is_empty() {
            rows.insert(0, T::HEADING[..columns].iter().map(|name| (*name).to_owned()).collect());
            self.widths = vec![0; columns];
        }
        for row in &mut rows {
            for (cell, width) in row.iter_mut().zip(&mut self.widths) {
                // An empty cell would make the columns hard to read by eye and by awk.
                if cell.is_empty() {
                    cell.push('-');
                }
                *width = cell.chars().count().max(*width);
            }
        }
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&self.widths) {
                line.push_str(&format!("{cell:<width$}   "));
            }
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
