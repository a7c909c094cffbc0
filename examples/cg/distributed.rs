//! A matrix and its vectors in blocks of rows over the ranks.

use std::ops::Range;

use libckpt::Result;
use libckpt::prelude::*;

use crate::sparse::Sparse;

/// The rows of a rank: as equal as can be, the first ranks have one more.
pub(crate) fn rows_of(rank: usize, ranks: usize, rows: usize) -> Range<usize> {
    let (each, more) = (rows / ranks, rows % ranks);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

/// A rank's rows of a matrix, and what it has to exchange with whom before it can multiply them.
///
/// A vector to multiply has the rank's own elements first, then the ghosts: elements of other ranks that its
/// rows need, in the order of the columns.
#[derive(Debug)]
pub(crate) struct Distributed {
    /// Columns are numbered as in a vector with ghosts.
    matrix: Sparse,
    own: Range<usize>,
    /// Elements to send, by their places in the vector: receiver and places.
    sends: Vec<(usize, Vec<usize>)>,
    /// Ghosts to receive, in the order of the vector: sender and count.
    receives: Vec<(usize, usize)>,
    /// Rows without ghosts, and rows with.
    inner: Vec<usize>,
    outer: Vec<usize>,
    /// What was sent last, kept for its memory.
    outgoing: Vec<Vec<f64>>,
}

impl Distributed {
    /// Gives every rank its rows of rank 0's matrix. Collective.
    pub(crate) fn scatter(world: &World, matrix: Option<&Sparse>) -> Result<Self> {
        let zero = world.process_at_rank(0);
        let mut rows = matrix.map_or(0, Sparse::rows);
        zero.broadcast_into(&mut rows)?;
        let row_counts: Vec<usize> = (0..world.size())
            .map(|rank| rows_of(rank, world.size(), rows).len())
            .collect();
        let mut lengths = vec![0; row_counts[world.rank()]];
        let local = match matrix {
            Some(matrix) => {
                let all_lengths = matrix.lengths();
                zero.scatter_varcount_into_root(
                    &Partition::packed(&all_lengths, &row_counts)?,
                    &mut lengths,
                )?;
                let counts: Vec<usize> = (0..world.size())
                    .map(|rank| all_lengths[rows_of(rank, world.size(), rows)].iter().sum())
                    .collect();
                let (mut columns, mut values) = (vec![0; counts[0]], vec![0.0; counts[0]]);
                zero.scatter_varcount_into_root(
                    &Partition::packed(matrix.columns(), &counts)?,
                    &mut columns,
                )?;
                zero.scatter_varcount_into_root(
                    &Partition::packed(matrix.values(), &counts)?,
                    &mut values,
                )?;
                Sparse::from_parts(&lengths, columns, values)
            }
            None => {
                zero.scatter_varcount_into(&mut lengths)?;
                let count = lengths.iter().sum();
                let (mut columns, mut values) = (vec![0; count], vec![0.0; count]);
                zero.scatter_varcount_into(&mut columns)?;
                zero.scatter_varcount_into(&mut values)?;
                Sparse::from_parts(&lengths, columns, values)
            }
        };
        Self::new(world, local, rows)
    }

    /// Out of a rank's own rows, with columns numbered as in the whole matrix. Collective.
    pub(crate) fn new(world: &World, mut matrix: Sparse, rows: usize) -> Result<Self> {
        let own = rows_of(world.rank(), world.size(), rows);
        let mut ghosts: Vec<usize> = matrix
            .columns()
            .iter()
            .copied()
            .filter(|column| !own.contains(column))
            .collect();
        ghosts.sort_unstable();
        ghosts.dedup();
        let is_outer = |row: &usize| matrix.row(*row).any(|(column, _)| !own.contains(&column));
        let (outer, inner) = (0..matrix.rows()).partition(is_outer);

        // Tell every owner which of its elements are needed here.
        let wanted_counts: Vec<usize> = (0..world.size())
            .map(|rank| {
                let rows = rows_of(rank, world.size(), rows);
                ghosts.partition_point(|&ghost| ghost < rows.end)
                    - ghosts.partition_point(|&ghost| ghost < rows.start)
            })
            .collect();
        let mut asked_counts = vec![0; world.size()];
        world.all_to_all_into(&wanted_counts, &mut asked_counts)?;
        let mut asked = vec![0; asked_counts.iter().sum()];
        world.all_to_all_varcount_into(
            &Partition::packed(&ghosts, &wanted_counts)?,
            &mut PartitionMut::packed(&mut asked, &asked_counts)?,
        )?;

        for column in matrix.columns_mut() {
            *column = if own.contains(column) {
                *column - own.start
            } else {
                own.len() + ghosts.partition_point(|ghost| ghost < column)
            };
        }
        let mut asked = asked.into_iter();
        let sends: Vec<(usize, Vec<usize>)> = asked_counts
            .into_iter()
            .enumerate()
            .map(|(rank, count)| {
                (
                    rank,
                    asked
                        .by_ref()
                        .take(count)
                        .map(|row| row - own.start)
                        .collect(),
                )
            })
            .filter(|(_, places): &(usize, Vec<usize>)| !places.is_empty())
            .collect();
        let receives = wanted_counts
            .into_iter()
            .enumerate()
            .filter(|&(_, count)| count > 0)
            .collect();
        let outgoing = sends
            .iter()
            .map(|(_, places)| vec![0.0; places.len()])
            .collect();
        Ok(Self {
            matrix,
            own,
            sends,
            receives,
            inner,
            outer,
            outgoing,
        })
    }

    /// The rank's own rows, as numbered in the whole matrix.
    pub(crate) fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Number of entries in the rank's own rows.
    pub(crate) fn len(&self) -> usize {
        self.matrix.len()
    }

    /// A vector with ghosts, all 0.
    pub(crate) fn vector(&self) -> Vec<f64> {
        let ghosts: usize = self.receives.iter().map(|(_, count)| count).sum();
        vec![0.0; self.own.len() + ghosts]
    }

    /// The diagonal of the rank's own rows.
    pub(crate) fn diagonal(&self) -> Vec<f64> {
        (0..self.own.len())
            .map(|row| self.matrix.at_unordered(row, row))
            .collect()
    }

    /// `product = matrix * vector`; brings the ghosts of `vector` up to date. Collective.
    pub(crate) fn multiply(
        &mut self,
        world: &World,
        vector: &mut [f64],
        product: &mut [f64],
    ) -> Result<()> {
        let Self {
            matrix,
            own,
            sends,
            receives,
            inner,
            outer,
            outgoing,
        } = self;
        {
            let (own, mut ghosts) = vector.split_at_mut(own.len());
            let own = &*own;
            for ((_, places), outgoing) in sends.iter().zip(outgoing.iter_mut()) {
                for (element, &place) in outgoing.iter_mut().zip(places) {
                    *element = own[place];
                }
            }
            request::scope(|scope| {
                let mut under_way = Vec::with_capacity(receives.len());
                for &(rank, count) in &*receives {
                    let (from_rank, rest) = std::mem::take(&mut ghosts).split_at_mut(count);
                    ghosts = rest;
                    let source = world.process_at_rank(rank);
                    under_way.push(source.immediate_receive_into(scope, from_rank)?);
                }
                for ((rank, _), outgoing) in sends.iter().zip(&*outgoing) {
                    // Waited for at the end of the scope.
                    drop(
                        world
                            .process_at_rank(*rank)
                            .immediate_send(scope, outgoing)?,
                    );
                }
                for &row in &*inner {
                    product[row] = matrix.row_times(row, own);
                }
                request::wait_all(under_way).map(drop)
            })?;
        }
        for &row in &*outer {
            product[row] = matrix.row_times(row, vector);
        }
        Ok(())
    }
}
