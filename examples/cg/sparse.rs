//! Sparse matrices by rows, on one rank.

/// One entry of a matrix; indices count from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) value: f64,
}

/// Rows of a matrix, compressed: one behind the other, columns ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sparse {
    /// Where each row begins; one more for the end.
    starts: Vec<usize>,
    columns: Vec<usize>,
    values: Vec<f64>,
}

/// How far two entries that should be equal may differ, relatively: what printing and reading may cost.
const ASYMMETRY_MAX: f64 = 1e-12;

impl Sparse {
    /// A square matrix, checked to be symmetric.
    pub(crate) fn symmetric(rows: usize, entries: Vec<Entry>) -> Result<Self, String> {
        if entries.len() < rows {
            return Err(format!(
                "{} entries cannot fill the diagonal of {rows} rows: not positive definite",
                entries.len()
            ));
        }
        let matrix = Self::from_entries(rows, entries)?;
        for row in 0..rows {
            for (column, value) in matrix.row(row) {
                let mirrored = matrix.at(column, row);
                if (value - mirrored).abs() > ASYMMETRY_MAX * value.abs().max(mirrored.abs()) {
                    return Err(format!(
                        "not symmetric: row {}, column {} is {value}, row {}, column {} is {mirrored}",
                        row + 1,
                        column + 1,
                        column + 1,
                        row + 1
                    ));
                }
            }
        }
        Ok(matrix)
    }

    fn from_entries(rows: usize, mut entries: Vec<Entry>) -> Result<Self, String> {
        entries.sort_unstable_by_key(|entry| (entry.row, entry.column));
        let same = |pair: &&[Entry]| (pair[0].row, pair[0].column) == (pair[1].row, pair[1].column);
        if let Some(twice) = entries.windows(2).find(same) {
            return Err(format!(
                "row {}, column {} is given twice",
                twice[0].row + 1,
                twice[0].column + 1
            ));
        }
        let mut lengths = vec![0; rows];
        entries.iter().for_each(|entry| lengths[entry.row] += 1);
        Ok(Self::from_parts(
            &lengths,
            entries.iter().map(|entry| entry.column).collect(),
            entries.iter().map(|entry| entry.value).collect(),
        ))
    }

    /// Rows of these lengths out of columns and values.
    pub(crate) fn from_parts(lengths: &[usize], columns: Vec<usize>, values: Vec<f64>) -> Self {
        let mut starts = Vec::with_capacity(lengths.len() + 1);
        starts.push(0);
        let mut end = 0;
        starts.extend(lengths.iter().map(|length| {
            end += length;
            end
        }));
        assert_eq!(
            (end, end),
            (columns.len(), values.len()),
            "as many entries as the rows are long"
        );
        Self {
            starts,
            columns,
            values,
        }
    }

    /// Rows `rows` of the five-point Laplacian on a square of `side` by `side` points.
    pub(crate) fn poisson(side: usize, rows: std::ops::Range<usize>) -> Self {
        let (mut lengths, mut columns, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let (y, x) = (row / side, row % side);
            let neighbours = [
                (y > 0).then(|| row - side),
                (x > 0).then(|| row - 1),
                Some(row),
                (x + 1 < side).then(|| row + 1),
                (y + 1 < side).then(|| row + side),
            ];
            let before = columns.len();
            for column in neighbours.into_iter().flatten() {
                columns.push(column);
                values.push(if column == row { 4.0 } else { -1.0 });
            }
            lengths.push(columns.len() - before);
        }
        Self::from_parts(&lengths, columns, values)
    }

    pub(crate) fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Columns and values of a row.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> {
        let range = self.starts[row]..self.starts[row + 1];
        self.columns[range.clone()]
            .iter()
            .copied()
            .zip(self.values[range].iter().copied())
    }

    /// The lengths of all rows.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.starts
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect()
    }

    /// The columns of all entries.
    pub(crate) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The columns of all entries, to number them anew.
    pub(crate) fn columns_mut(&mut self) -> &mut [usize] {
        &mut self.columns
    }

    /// The values of all entries.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// An entry; 0 where there is none.
    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        let range = self.starts[row]..self.starts[row + 1];
        match self.columns[range.clone()].binary_search(&column) {
            Ok(at) => self.values[range][at],
            Err(_) => 0.0,
        }
    }

    /// The sum of a row's entries in a column, in a matrix whose columns were numbered anew.
    pub(crate) fn at_unordered(&self, row: usize, column: usize) -> f64 {
        self.row(row)
            .filter(|&(found, _)| found == column)
            .map(|(_, value)| value)
            .sum()
    }

    /// A row times a vector.
    #[inline]
    pub(crate) fn row_times(&self, row: usize, vector: &[f64]) -> f64 {
        let range = self.starts[row]..self.starts[row + 1];
        let columns = &self.columns[range.clone()];
        columns
            .iter()
            .zip(&self.values[range])
            .map(|(&column, value)| value * vector[column])
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laplacian_has_four_neighbours_and_is_symmetric() {
        let side = 4;
        let matrix = Sparse::poisson(side, 0..side * side);
        assert_eq!(matrix.len(), 5 * side * side - 4 * side);
        let entries = (0..matrix.rows())
            .flat_map(|row| {
                matrix
                    .row(row)
                    .map(move |(column, value)| Entry { row, column, value })
            })
            .collect();
        assert_eq!(
            Sparse::symmetric(side * side, entries).as_ref(),
            Ok(&matrix)
        );
        assert_eq!(
            matrix.row(0).collect::<Vec<_>>(),
            [(0, 4.0), (1, -1.0), (4, -1.0)]
        );
        // A row's end is not a neighbour of the next row's beginning.
        assert_eq!(matrix.at(3, 4), 0.0);
    }

    #[test]
    fn parts_of_a_matrix_are_its_rows() {
        let whole = Sparse::poisson(5, 0..25);
        let part = Sparse::poisson(5, 7..12);
        for row in 0..part.rows() {
            assert!(part.row(row).eq(whole.row(row + 7)));
        }
    }

    #[test]
    fn a_row_times_a_vector_is_their_dot_product() {
        let matrix = Sparse::from_parts(&[2, 0, 1], vec![0, 2, 1], vec![2.0, -1.0, 5.0]);
        let vector = [10.0, 20.0, 30.0];
        assert_eq!(matrix.row_times(0, &vector), -10.0);
        assert_eq!(matrix.row_times(1, &vector), 0.0);
        assert_eq!(matrix.row_times(2, &vector), 100.0);
    }
}
