//! A rank's block of rows, and a step of it.

use std::ops::Range;

use examples::History;
use examples::history::hash_of_floats;
use examples::random::mix;
use libckpt::prelude::*;

use crate::grid::{Grid, PAGE_POINTS};
use crate::patches::{Patch, Patches, Share};
use crate::times::Times;

/// How far a point moves towards its neighbours in a step: `a dt / dx²`, stable up to a quarter.
const RATE: f64 = 0.2;

/// Temperature of the edge above the first row; the other edges are at 0.
const UPPER_EDGE: f64 = 1.0;

/// By how much a patch between held ones is warmed in a step, at most: it would come to rest otherwise.
const POWER: f64 = 1e-3;

/// A row on its way to the rank above, or below.
const UPWARDS: Tag = 1;
const DOWNWARDS: Tag = 2;

/// A block of whole rows with one row more above and below: the neighbours' or the edge.
#[derive(Debug)]
pub(crate) struct Block {
    /// The rows of the whole grid that are this block's.
    own: Range<usize>,
    rows: usize,
    columns: usize,
    changing: Share,
    patches: Patches,
    steps: u64,
    /// Are there ranks with rows above and below?
    above: bool,
    below: bool,
    now: Grid,
    next: Grid,
}

/// The rows of a rank: as equal as can be, the first ranks have one more.
pub(crate) fn rows_of(rank: usize, ranks: usize, rows: usize) -> Range<usize> {
    let (each, more) = (rows / ranks, rows % ranks);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

impl Block {
    /// The block of a rank at the start, with the shares of the grid that change, and that are warm: spots strewn over
    /// the grid.
    pub(crate) fn new(
        rows: usize,
        columns: usize,
        [changing, warm]: [Share; 2],
        rank: usize,
        ranks: usize,
    ) -> Self {
        let own = rows_of(rank, ranks, rows);
        let mut now = Grid::new((own.len() + 2) * columns);
        for (points, row) in now[columns..].chunks_exact_mut(columns).zip(own.clone()) {
            for (column, point) in points.iter_mut().enumerate() {
                let word = mix((row * columns + column) as u64);
                *point = if warm.has(word) {
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
            own,
            columns,
            changing,
            patches: Patches::new(columns, changing),
            steps: 0,
            above,
            below,
            now,
            next,
        }
    }

    /// One step in time; what it made of the block goes into the history.
    pub(crate) fn step(
        &mut self,
        world: &World,
        history: &mut History,
        times: &mut Times,
    ) -> libckpt::Result<()> {
        self.steps += 1;
        self.exchange_and_relax(world, times)?;
        for patch in self.patches.of_rows(self.own.clone()) {
            history.fold(hash_of_floats(&self.next[self.points(&patch)]));
            times.worked(patch.columns.len());
        }
        std::mem::swap(&mut self.now, &mut self.next);
        Ok(())
    }

    /// Where a patch of this block lies in its grids.
    fn points(&self, patch: &Patch) -> Range<usize> {
        let row = (patch.row - self.own.start + 1) * self.columns;
        row + patch.columns.start..row + patch.columns.end
    }

    /// Computes `next` from `now` and the neighbours' rows.
    fn exchange_and_relax(&mut self, world: &World, times: &mut Times) -> libckpt::Result<()> {
        let (rows, columns, first_row) = (self.rows, self.columns, self.own.start);
        let (patches, power) = (self.patches, self.power());
        let next = &mut self.next;
        // The patches of some rows; `above` is the first row above them that the grid given holds.
        let mut relax = |grid: &[f64], above: usize, rows: Range<usize>| {
            for patch in patches.of_rows(first_row + rows.start..first_row + rows.end) {
                let row = patch.row - first_row;
                let to = (row + 1) * columns;
                let out = &mut next[to + patch.columns.start..to + patch.columns.end];
                relax_patch(&grid[(row - above) * columns..], columns, &patch, out);
                if let Some(power) = power {
                    let warmer = power.of(&patch);
                    out.iter_mut().for_each(|point| *point += warmer);
                }
                times.worked(out.len());
            }
        };
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
                    relax(own, 1, 1..rows - 1);
                }
                request::wait_all(receives).map(drop)
            })?;
        }
        // What needs the neighbours' rows.
        if rows > 0 {
            relax(&self.now, 0, 0..1);
        }
        if rows > 1 {
            relax(&self.now, 0, rows - 1..rows);
        }
        Ok(())
    }

    /// What warms the patches in this step, if there are held ones between them.
    fn power(&self) -> Option<Power> {
        (!self.changing.is_all()).then_some(Power { step: self.steps })
    }

    /// Pages of this rank's grids, and how many of them change from one step but one to the next.
    pub(crate) fn pages(&self) -> [u64; 2] {
        let pages =
            |points: Range<usize>| points.start / PAGE_POINTS..points.end.div_ceil(PAGE_POINTS);
        let whole = pages(0..self.now.len()).len();
        let ghosts = [
            self.above.then_some(0),
            self.below.then_some((self.rows + 1) * self.columns),
        ];
        let [above, below] =
            ghosts.map(|ghost| ghost.map(|start| pages(start..start + self.columns)));
        let patches = self
            .patches
            .of_rows(self.own.clone())
            .map(|patch| pages(self.points(&patch)));
        let (mut changing, mut seen) = (0, 0);
        for range in above.into_iter().chain(patches).chain(below) {
            changing += range.end - range.start.max(seen).min(range.end);
            seen = seen.max(range.end);
        }
        // Both grids have them.
        [whole, changing].map(|pages| 2 * pages as u64)
    }

    /// Adds all of the block to the history, also what is held.
    pub(crate) fn fold(&self, history: &mut History) {
        history.fold_floats(&self.now);
        history.fold_floats(&self.next[self.columns..(self.rows + 1) * self.columns]);
    }

    /// The sum of all temperatures.
    pub(crate) fn warmth(&self) -> f64 {
        self.now[self.columns..(self.rows + 1) * self.columns]
            .iter()
            .sum()
    }
}

/// A power that changes from step to step and from patch to patch.
#[derive(Clone, Copy)]
struct Power {
    step: u64,
}

impl Power {
    fn of(self, patch: &Patch) -> f64 {
        let word = mix(self.step.rotate_left(32) ^ patch.number as u64);
        POWER * ((word >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// Relaxes a patch of the second row of `grid` into `out`. The points left and right of a row are the edge, at 0.
fn relax_patch(grid: &[f64], columns: usize, patch: &Patch, out: &mut [f64]) {
    let (above, rest) = grid.split_at(columns);
    let (row, rest) = rest.split_at(columns);
    let below = &rest[..columns];
    let Range { start, end } = patch.columns;
    let left = if start == 0 { 0.0 } else { row[start - 1] };
    let right = if end == columns { 0.0 } else { row[end] };
    relax_row(
        left,
        [&above[start..end], &row[start..end], &below[start..end]],
        right,
        out,
    );
}

/// Relaxes points side by side: those above, themselves and those below are given, and one at either end.
fn relax_row(left: f64, [above, row, below]: [&[f64]; 3], right: f64, out: &mut [f64]) {
    let columns = row.len();
    let at = |left: f64, point: f64, right: f64, above: f64, below: f64| {
        point + RATE * ((left + right) + (above + below) - 4.0 * point)
    };
    if columns == 1 {
        out[0] = at(left, row[0], right, above[0], below[0]);
        return;
    }
    let last = columns - 1;
    out[0] = at(left, row[0], row[1], above[0], below[0]);
    out[last] = at(row[last - 1], row[last], right, above[last], below[last]);
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

    const AS_USUAL: [Share; 2] = [Share::ALL, Share::WARM];

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
        let whole = Block::new(rows, columns, AS_USUAL, 0, 1);
        assert!(whole.warmth() > 0.0);
        for rank in 0..3 {
            let own = rows_of(rank, 3, rows);
            let block = Block::new(rows, columns, AS_USUAL, rank, 3);
            assert_eq!(block.above, rank > 0);
            assert_eq!(block.below, rank < 2);
            let of_whole = &whole.now[(own.start + 1) * columns..(own.end + 1) * columns];
            assert_eq!(&block.now[columns..(own.len() + 1) * columns], of_whole);
        }
    }

    #[test]
    fn a_rank_without_rows_has_no_neighbours() {
        let block = Block::new(2, 5, AS_USUAL, 3, 4);
        assert_eq!((block.rows, block.above, block.below), (0, false, false));
        let last = Block::new(2, 5, AS_USUAL, 1, 4);
        assert_eq!((last.rows, last.above, last.below), (1, true, false));
    }

    #[test]
    fn a_warm_point_warms_its_four_neighbours() {
        let columns = 5;
        let mut grid = vec![0.0; 5 * columns];
        grid[2 * columns + 2] = 1.0;
        let mut out = vec![9.0; 3 * columns];
        for (patch, out) in Patches::new(columns, Share::ALL)
            .of_rows(1..4)
            .zip(out.chunks_mut(columns))
        {
            relax_patch(&grid[(patch.row - 1) * columns..], columns, &patch, out);
        }
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
        relax_row(0.0, [&[1.0], &[2.0], &[3.0]], 0.0, &mut out);
        assert_eq!(out, [2.0 + RATE * (4.0 - 8.0)]);
        let mut out = [0.0; 2];
        relax_row(0.0, [&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0]], 0.0, &mut out);
        assert_eq!(
            out,
            [
                3.0 + RATE * (4.0 + 6.0 - 12.0),
                4.0 + RATE * (3.0 + 8.0 - 16.0)
            ]
        );
    }

    #[test]
    fn a_patch_inside_a_row_has_neighbours_in_it() {
        let row: Vec<f64> = (0..1200).map(|column| f64::from(column % 7)).collect();
        let grid = [row.clone(), row.clone(), row].concat();
        let relaxed = |share: &str| {
            let mut out = vec![0.0; 1200];
            for patch in Patches::new(1200, share.parse().unwrap()).of_rows(0..1) {
                relax_patch(&grid, 1200, &patch, &mut out[patch.columns.clone()]);
            }
            out
        };
        // In patches, the last of which is left out, or as a whole.
        let (whole, patches) = (relaxed("1"), relaxed("0.6"));
        assert_eq!(patches[..1024], whole[..1024]);
        assert!(patches[1024..].iter().all(|&point| point == 0.0));
    }

    #[test]
    fn pages_that_change_are_counted_once_in_each_grid() {
        // A page each row; 100 rows and the two of the neighbours.
        let block = |share: &str, rank| {
            Block::new(
                300,
                PAGE_POINTS,
                [share.parse().unwrap(), Share::WARM],
                rank,
                3,
            )
            .pages()
        };
        assert_eq!(block("1", 0), [204, 202]);
        assert_eq!(block("1", 1), [204, 204]);
        assert_eq!(block("0.1", 1), [204, 2 * (10 + 2)]);
        // Rows that share pages: every tenth of them changes, so every page but the last, of the edge.
        let narrow = Block::new(300, 51, ["0.1".parse().unwrap(), Share::WARM], 0, 1);
        assert_eq!(narrow.pages(), [62, 60]);
    }
}
