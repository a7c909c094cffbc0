//! Reads symmetric matrices from Matrix Market files: coordinate format, real or integer, symmetric or
//! general (Boisvert, Pozo, Remington: "The Matrix Market Exchange Formats", NIST 1996).

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::sparse::{Entry, Sparse};

/// Room is made for at most so many entries before they are read: a file's promise is not to be trusted.
const RESERVED_ENTRIES_MAX: usize = 1 << 20;

/// What is wrong with a file, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Defect {
    /// Counted from 1; `None` where no line is to blame.
    line: Option<usize>,
    what: String,
}

impl Defect {
    fn at(line: usize, what: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            what: what.into(),
        }
    }

    fn of_whole(what: impl Into<String>) -> Self {
        Self {
            line: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// Reads a symmetric matrix from a file.
pub(crate) fn read(path: &Path) -> Result<Sparse, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(BufReader::new(file)).map_err(|defect| format!("{}: {defect}", path.display()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Symmetry {
    General,
    Symmetric,
}

/// Reads a symmetric matrix.
fn parse(reader: impl BufRead) -> Result<Sparse, Defect> {
    let mut lines = reader.lines().enumerate().map(|(index, line)| match line {
        Ok(line) => Ok((index + 1, line)),
        Err(error) => Err(Defect::at(index + 1, format!("cannot be read: {error}"))),
    });
    let (_, header) = lines
        .next()
        .ok_or_else(|| Defect::of_whole("the file is empty"))??;
    let symmetry = parse_header(&header)?;
    let mut lines = lines.filter(|line| match line {
        Ok((_, line)) => !line.trim().is_empty() && !line.starts_with('%'),
        Err(_) => true,
    });
    let (number, sizes) = lines
        .next()
        .ok_or_else(|| Defect::of_whole("the line with the sizes is missing"))??;
    let (rows, count) = parse_sizes(number, &sizes)?;
    let mut entries = Vec::with_capacity(count.min(RESERVED_ENTRIES_MAX));
    for _ in 0..count {
        let (number, line) = lines.next().ok_or_else(|| {
            let read = entries_read(&entries, symmetry);
            Defect::of_whole(format!("the file ends after {read} of {count} entries"))
        })??;
        let entry = parse_entry(number, &line, rows)?;
        if symmetry == Symmetry::Symmetric {
            if entry.column > entry.row {
                return Err(Defect::at(
                    number,
                    format!(
                        "row {}, column {} is above the diagonal, but a symmetric file has the lower triangle only",
                        entry.row + 1,
                        entry.column + 1
                    ),
                ));
            }
            if entry.column < entry.row {
                entries.push(Entry {
                    row: entry.column,
                    column: entry.row,
                    ..entry
                });
            }
        }
        entries.push(entry);
    }
    if let Some(more) = lines.next() {
        let (number, _) = more?;
        return Err(Defect::at(
            number,
            format!("more than the {count} entries promised"),
        ));
    }
    Sparse::symmetric(rows, entries).map_err(Defect::of_whole)
}

/// How many entries of the file these are.
fn entries_read(entries: &[Entry], symmetry: Symmetry) -> usize {
    match symmetry {
        Symmetry::General => entries.len(),
        Symmetry::Symmetric => entries
            .iter()
            .filter(|entry| entry.column <= entry.row)
            .count(),
    }
}

fn parse_header(line: &str) -> Result<Symmetry, Defect> {
    let words: Vec<String> = line.split_whitespace().map(str::to_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["%%matrixmarket", "matrix", format, field, symmetry] = words[..] else {
        return Err(Defect::at(
            1,
            "not the header of a Matrix Market matrix, `%%MatrixMarket matrix …`",
        ));
    };
    if format != "coordinate" {
        return Err(Defect::at(
            1,
            format!("format {format:?} is not supported, only coordinate"),
        ));
    }
    if !matches!(field, "real" | "integer") {
        return Err(Defect::at(
            1,
            format!("field {field:?} is not supported, only real and integer"),
        ));
    }
    match symmetry {
        "general" => Ok(Symmetry::General),
        "symmetric" => Ok(Symmetry::Symmetric),
        _ => Err(Defect::at(
            1,
            format!("symmetry {symmetry:?} is not supported, only symmetric and general"),
        )),
    }
}

/// Rows and number of entries.
fn parse_sizes(number: usize, line: &str) -> Result<(usize, usize), Defect> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [rows, columns, entries] = words[..] else {
        return Err(Defect::at(
            number,
            "expected three sizes: rows, columns, entries",
        ));
    };
    let size = |what: &str, word: &str| {
        word.parse::<usize>()
            .map_err(|error| Defect::at(number, format!("number of {what} {word:?}: {error}")))
    };
    let (rows, columns, entries) = (
        size("rows", rows)?,
        size("columns", columns)?,
        size("entries", entries)?,
    );
    if rows != columns {
        return Err(Defect::at(
            number,
            format!("{rows} rows and {columns} columns: not square"),
        ));
    }
    if rows == 0 {
        return Err(Defect::at(number, "a matrix without rows"));
    }
    Ok((rows, entries))
}

fn parse_entry(number: usize, line: &str, rows: usize) -> Result<Entry, Defect> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [row, column, value] = words[..] else {
        return Err(Defect::at(
            number,
            format!("expected row, column and value, found {line:?}"),
        ));
    };
    let index = |what: &str, word: &str| match word.parse::<usize>() {
        Ok(index) if (1..=rows).contains(&index) => Ok(index - 1),
        Ok(index) => Err(Defect::at(
            number,
            format!("{what} {index} is not between 1 and {rows}"),
        )),
        Err(error) => Err(Defect::at(number, format!("{what} {word:?}: {error}"))),
    };
    let (row, column) = (index("row", row)?, index("column", column)?);
    match value.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Entry { row, column, value }),
        Ok(_) => Err(Defect::at(number, format!("value {value:?} is not finite"))),
        Err(error) => Err(Defect::at(number, format!("value {value:?}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMMETRIC: &str = "%%MatrixMarket matrix coordinate real symmetric\n% a comment\n\n\
                             3 3 4\n1 1 2.0\n2 2 3E0\n2 1 -1\n3 3 +4.5e-1\n";

    fn defect(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_lower_triangle_stands_for_both() {
        let matrix = parse(SYMMETRIC.as_bytes()).unwrap();
        assert_eq!(matrix.rows(), 3);
        assert_eq!(matrix.row(0).collect::<Vec<_>>(), [(0, 2.0), (1, -1.0)]);
        assert_eq!(matrix.row(1).collect::<Vec<_>>(), [(0, -1.0), (1, 3.0)]);
        assert_eq!(matrix.row(2).collect::<Vec<_>>(), [(2, 0.45)]);
    }

    #[test]
    fn a_general_file_has_both_triangles() {
        let text =
            "%%matrixmarket MATRIX Coordinate Integer general\n2 2 4\n1 2 1\n1 1 3\n2 1 1\n2 2 3\n";
        let matrix = parse(text.as_bytes()).unwrap();
        assert_eq!(matrix.row(0).collect::<Vec<_>>(), [(0, 3.0), (1, 1.0)]);
        let text = "%%MatrixMarket matrix coordinate real general\n2 2 3\n1 1 3\n1 2 1\n2 2 3\n";
        assert!(defect(text).contains("not symmetric"), "{}", defect(text));
    }

    #[test]
    fn every_defect_is_named_with_its_line() {
        let with = |from: &str, to: &str| defect(&SYMMETRIC.replace(from, to));
        for (found, expected) in [
            (defect(""), "empty"),
            (defect("1 1 1\n"), "line 1: not the header"),
            (with("coordinate", "array"), "line 1: format \"array\""),
            (with("real", "complex"), "line 1: field \"complex\""),
            (
                with("symmetric", "hermitian"),
                "line 1: symmetry \"hermitian\"",
            ),
            (with("3 3 4", "3 3"), "line 4: expected three sizes"),
            (with("3 3 4", "3 4 4"), "line 4: 3 rows and 4 columns"),
            (with("3 3 4", "3 3 x"), "line 4: number of entries \"x\""),
            (with("3 3 4", "3 3 5"), "ends after 4 of 5 entries"),
            (with("3 3 4", "3 3 3"), "line 8: more than the 3 entries"),
            (
                with("3 3 4", "2 2 4"),
                "line 8: row 3 is not between 1 and 2",
            ),
            (
                with("2 2 3E0", "2 2"),
                "line 6: expected row, column and value",
            ),
            (with("2 2 3E0", "2 0 3"), "line 6: column 0 is not"),
            (with("2 2 3E0", "2 2 three"), "line 6: value \"three\""),
            (
                with("2 2 3E0", "2 2 inf"),
                "line 6: value \"inf\" is not finite",
            ),
            (
                with("2 1 -1", "1 2 -1"),
                "line 7: row 1, column 2 is above the diagonal",
            ),
            (with("2 1 -1", "2 2 -1"), "row 2, column 2 is given twice"),
            (
                defect("%%MatrixMarket matrix coordinate real general\n"),
                "sizes is missing",
            ),
            (
                defect(
                    "%%MatrixMarket matrix coordinate real general\n9999999999999 9999999999999 1\n1 1 1\n",
                ),
                "1 entries cannot fill the diagonal of 9999999999999 rows",
            ),
        ] {
            assert!(found.contains(expected), "{expected:?} is not in {found:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("no/such/matrix.mtx")).unwrap_err();
        assert!(
            error.contains("no/such/matrix.mtx") && error.contains("No such file"),
            "{error}"
        );
    }
}
