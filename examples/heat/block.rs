//! A rank's block of rows, and a step of it.

use std::ops::Range;

use examples::History;
use examples::history::hash_of_floats;
use examples::random::mix;
use libckpt::prelude::*;

/// How far a point moves towards its neighbours in a step: `a dt / dx²`, stable up to a quarter.
const RATE: f64 = 0.2;

/// Temperature of the edge above the first row; the other edges are at 0.
const UPPER_EDGE: f64 = 1.0;

/// A row on its way to the rank above, or below.
const UPWARDS: Tag = 1;
const DOWNWARDS: Tag = 2;

/// A block of whole rows with one row more above and below: the neighbours' or the edge.
#[derive(Debug)]
pub(crate) struct Block {
    rows: usize,
    columns: usize,
    /// Are there ranks with rows above and below?
    above: bool,
    below: bool,
    now: Vec<f64>,
    next: Vec<f64>,
}

/// The rows of a rank: as equal as can be, the first ranks have one more.
pub(crate) fn rows_of(rank: usize, ranks: usize, rows: usize) -> Range<usize> {
    let (each, more) = (rows / ranks, rows % ranks);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

impl Block {
    /// The block of a rank at the start: warm spots strewn over the grid.
    pub(crate) fn new(rows: usize, columns: usize, rank: usize, ranks: usize) -> Self {
        let own = rows_of(rank, ranks, rows);
        let mut now = vec![0.0; (own.len() + 2) * columns];
        for (points, row) in now[columns..].chunks_exact_mut(columns).zip(own.clone()) {
            for (column, point) in points.iter_mut().enumerate() {
                let word = mix((row * columns + column) as u64);
                // Every thousandth point or so.
                *point = if word.is_multiple_of(1024) {
                    (word >> 40) as f64 / 1e6
                } else {
                    0.0
                };
            }
        }
        // The edges never change, so both grids have them for good.
        if own.start == 0 {
            now[..columns].fill(UPPER_EDGE);
        }
        let next = now.clone();
        let (above, below) = (own.start > 0 && !own.is_empty(), own.end < rows);
        Self {
            rows: own.len(),
            columns,
            above,
            below,
            now,
            next,
        }
    }

    /// One step in time; what it made of the block goes into the history.
    pub(crate) fn step(&mut self, world: &World, history: &mut History) -> libckpt::Result<()> {
        self.exchange_and_relax(world)?;
        for row in self.next[self.columns..]
            .chunks_exact(self.columns)
            .take(self.rows)
        {
            history.fold(hash_of_floats(row));
        }
        std::mem::swap(&mut self.now, &mut self.next);
        Ok(())
    }

    /// Computes `next` from `now` and the neighbours' rows.
    fn exchange_and_relax(&mut self, world: &World) -> libckpt::Result<()> {
        let (rows, columns) = (self.rows, self.columns);
        let next = &mut self.next;
        {
            let (row_above, rest) = self.now.split_at_mut(columns);
            let (own, row_below) = rest.split_at_mut(rows * columns);
            let own = &*own;
            request::scope(|scope| {
                let mut receives = Vec::with_capacity(2);
                if self.above {
                    let above = world.process_at_rank(world.rank() - 1);
                    receives
                        .push(above.immediate_receive_into_with_tag(scope, row_above, DOWNWARDS)?);
                    let first = &own[..columns];
                    drop(above.immediate_send_with_tag(scope, first, UPWARDS)?);
                }
                if self.below {
                    let below = world.process_at_rank(world.rank() + 1);
                    receives
                        .push(below.immediate_receive_into_with_tag(scope, row_below, UPWARDS)?);
                    let last = &own[(rows - 1) * columns..];
                    drop(below.immediate_send_with_tag(scope, last, DOWNWARDS)?);
                }
                if rows > 2 {
                    relax(own, &mut next[2 * columns..rows * columns], columns);
                }
                request::wait_all(receives).map(drop)
            })?;
        }
        // What needs the neighbours' rows.
        if rows > 0 {
            relax(
                &self.now[..3 * columns],
                &mut next[columns..2 * columns],
                columns,
            );
        }
        if rows > 1 {
            let last = rows * columns;
            relax(
                &self.now[last - columns..],
                &mut next[last..last + columns],
                columns,
            );
        }
        Ok(())
    }

    /// The sum of all temperatures.
    pub(crate) fn warmth(&self) -> f64 {
        self.now[self.columns..(self.rows + 1) * self.columns]
            .iter()
            .sum()
    }
}

/// Relaxes all rows of `grid` but the first and the last into `out`.
fn relax(grid: &[f64], out: &mut [f64], columns: usize) {
    for (at, out) in out.chunks_exact_mut(columns).enumerate() {
        let (above, rest) = grid[at * columns..].split_at(columns);
        let (row, rest) = rest.split_at(columns);
        relax_row(above, row, &rest[..columns], out);
    }
}

/// Relaxes one row. The points left and right of it are the edge, at 0.
fn relax_row(above: &[f64], row: &[f64], below: &[f64], out: &mut [f64]) {
    let columns = row.len();
    let at = |left: f64, point: f64, right: f64, above: f64, below: f64| {
        point + RATE * ((left + right) + (above + below) - 4.0 * point)
    };
    if columns == 1 {
        out[0] = at(0.0, row[0], 0.0, above[0], below[0]);
        return;
    }
    let last = columns - 1;
    out[0] = at(0.0, row[0], row[1], above[0], below[0]);
    out[last] = at(row[last - 1], row[last], 0.0, above[last], below[last]);
    // Slices of one length let the compiler leave out the checks and use vector instructions.
    let inner = columns - 2;
    let (left, point, right) = (&row[..inner], &row[1..=inner], &row[2..]);
    let (above, below, out) = (&above[1..=inner], &below[1..=inner], &mut out[1..=inner]);
    for i in 0..inner {
        out[i] = at(left[i], point[i], right[i], above[i], below[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_out_evenly_and_completely() {
        for rows in [0, 1, 3, 17, 64] {
            for ranks in 1..9 {
                let mut end = 0;
                for rank in 0..ranks {
                    let own = rows_of(rank, ranks, rows);
                    assert_eq!(own.start, end);
                    assert!((rows / ranks..=rows / ranks + 1).contains(&own.len()));
                    end = own.end;
                }
                assert_eq!(end, rows);
            }
        }
    }

    #[test]
    fn blocks_together_are_the_whole_grid() {
        let (rows, columns) = (11, 1000);
        let whole = Block::new(rows, columns, 0, 1);
        assert!(whole.warmth() > 0.0);
        for rank in 0..3 {
            let own = rows_of(rank, 3, rows);
            let block = Block::new(rows, columns, rank, 3);
            assert_eq!(block.above, rank > 0);
            assert_eq!(block.below, rank < 2);
            let of_whole = &whole.now[(own.start + 1) * columns..(own.end + 1) * columns];
            assert_eq!(&block.now[columns..(own.len() + 1) * columns], of_whole);
        }
    }

    #[test]
    fn a_rank_without_rows_has_no_neighbours() {
        let block = Block::new(2, 5, 3, 4);
        assert_eq!((block.rows, block.above, block.below), (0, false, false));
        let last = Block::new(2, 5, 1, 4);
        assert_eq!((last.rows, last.above, last.below), (1, true, false));
    }

    #[test]
    fn a_warm_point_warms_its_four_neighbours() {
        let columns = 5;
        let mut grid = vec![0.0; 5 * columns];
        grid[2 * columns + 2] = 1.0;
        let mut out = vec![9.0; 3 * columns];
        relax(&grid, &mut out, columns);
        for (at, &found) in out.iter().enumerate() {
            let (row, column) = (at / columns + 1, at % columns);
            let expected = match row.abs_diff(2) + column.abs_diff(2) {
                0 => 1.0 - 4.0 * RATE,
                1 => RATE,
                _ => 0.0,
            };
            assert_eq!(found, expected, "row {row} column {column}");
        }
    }

    #[test]
    fn narrow_grids_have_edges_on_both_sides() {
        let mut out = [0.0];
        relax_row(&[1.0], &[2.0], &[3.0], &mut out);
        assert_eq!(out, [2.0 + RATE * (4.0 - 8.0)]);
        let mut out = [0.0; 2];
        relax_row(&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0], &mut out);
        assert_eq!(
            out,
            [
                3.0 + RATE * (4.0 + 6.0 - 12.0),
                4.0 + RATE * (3.0 + 8.0 - 16.0)
            ]
        );
    }
}
