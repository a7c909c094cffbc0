//! Reductions, all in one order: see the [parent module](super).
//!
//! Three ways through the same tree: up to one rank (`reduce`), everywhere at once by recursive doubling
//! (`all_reduce` of little), and by halves that are put together again (`all_reduce` of much: Rabenseifner
//! 2004, but with neighbours first, which keeps ranks in order).

use zerocopy::IntoBytes;

use super::round::{Kind, Round};
use super::tree::Folded;
use crate::comm::communicator::Communicator;
use crate::comm::datatype::Equivalence;
use crate::comm::operation::Operation;
use crate::error::Result;

/// From this many bytes on, an `all_reduce` sends halves: fewer bytes for more messages.
const HALVING_BYTES_MIN: usize = 32 << 10;

/// Joins `values` of all ranks into `values` of every rank.
pub(super) fn all_reduce<T: Equivalence, O: Operation<T>>(
    communicator: &Communicator,
    values: &mut [T],
    operation: &O,
) -> Result<()> {
    let round = Round::start(communicator, Kind::AllReduce);
    let folded = Folded::new(round.size());
    let mut theirs = Vec::new();
    if let Some(partner) = folded.partner(round.rank()) {
        if round.rank() > partner {
            // The upper rank of a pair leaves the work to the lower one.
            round.send(partner, values.as_bytes())?;
            return round.receive(partner, values.as_mut_bytes());
        }
        theirs = vec![T::new_zeroed(); values.len()];
        round.receive(partner, theirs.as_mut_bytes())?;
        operation.fold_above(values, &theirs);
    }
    if size_of_val(values) < HALVING_BYTES_MIN || values.len() < folded.leaves() {
        theirs.resize(values.len(), T::new_zeroed());
        by_doubling(&round, folded, values, &mut theirs, operation)?;
    } else {
        theirs.resize(values.len().div_ceil(2), T::new_zeroed());
        by_halving(&round, folded, values, &mut theirs, operation)?;
    }
    match folded.partner(round.rank()) {
        Some(partner) => round.send(partner, values.as_bytes()),
        None => Ok(()),
    }
}

/// In each step two neighbouring blocks of leaves, of 1, 2, 4 …, exchange what they have joined.
fn by_doubling<T: Equivalence, O: Operation<T>>(
    round: &Round<'_>,
    folded: Folded,
    values: &mut [T],
    theirs: &mut [T],
    operation: &O,
) -> Result<()> {
    let leaf = folded.leaf(round.rank());
    let mut block = 1;
    while block < folded.leaves() {
        let peer = folded.lower_rank(leaf ^ block);
        round.exchange(peer, values.as_bytes(), peer, theirs.as_mut_bytes())?;
        join(operation, leaf & block != 0, values, theirs);
        block *= 2;
    }
    Ok(())
}

/// Like [`by_doubling`], but in each step each side goes on with one half of the elements; then the halves
/// are collected on the way back.
fn by_halving<T: Equivalence, O: Operation<T>>(
    round: &Round<'_>,
    folded: Folded,
    values: &mut [T],
    theirs: &mut [T],
    operation: &O,
) -> Result<()> {
    let leaf = folded.leaf(round.rank());
    // The elements this rank had before each step.
    let mut before = Vec::new();
    let mut mine = 0..values.len();
    let mut block = 1;
    while block < folded.leaves() {
        let peer = folded.lower_rank(leaf ^ block);
        let middle = mine.start + mine.len() / 2;
        let (kept, given) = if leaf & block == 0 {
            (mine.start..middle, middle..mine.end)
        } else {
            (middle..mine.end, mine.start..middle)
        };
        let theirs = &mut theirs[..kept.len()];
        round.exchange(peer, values[given].as_bytes(), peer, theirs.as_mut_bytes())?;
        join(
            operation,
            leaf & block != 0,
            &mut values[kept.clone()],
            theirs,
        );
        before.push(std::mem::replace(&mut mine, kept));
        block *= 2;
    }
    while let Some(whole) = before.pop() {
        block /= 2;
        let peer = folded.lower_rank(leaf ^ block);
        let (lower, upper) = values[whole.clone()].split_at_mut(whole.len() / 2);
        let (kept, given) = if leaf & block == 0 {
            (lower, upper)
        } else {
            (upper, lower)
        };
        round.exchange(peer, kept.as_bytes(), peer, given.as_mut_bytes())?;
    }
    Ok(())
}

/// Joins with what came from the other side, lower ranks on the left.
fn join<T: Equivalence, O: Operation<T>>(
    operation: &O,
    theirs_is_lower: bool,
    values: &mut [T],
    theirs: &[T],
) {
    if theirs_is_lower {
        operation.fold_below(theirs, values);
    } else {
        operation.fold_above(values, theirs);
    }
}

/// Joins the values of all ranks at the root, whose `received` is there.
///
/// Of each pair of leaf blocks one rank goes on: in the root's block the root, else the one whose leaf
/// differs from the root's in no lower bit. So the tree ends at the root, and joins as always.
pub(super) fn reduce<T: Equivalence, O: Operation<T>>(
    communicator: &Communicator,
    root: usize,
    sent: &[T],
    received: Option<&mut [T]>,
    operation: &O,
) -> Result<()> {
    let round = Round::start(communicator, Kind::Reduce);
    let rank = round.rank();
    let folded = Folded::new(round.size());
    let (leaf, root_leaf) = (folded.leaf(rank), folded.leaf(root));
    let keeper = |leaf| {
        if leaf == root_leaf {
            root
        } else {
            folded.lower_rank(leaf)
        }
    };
    let mut joined: Option<Vec<T>> = None;
    let mut theirs = Vec::new();
    let mut receive_and_join = |from, theirs_is_lower, joined: &mut Option<Vec<T>>| {
        theirs.resize(sent.len(), T::new_zeroed());
        round.receive(from, theirs.as_mut_slice().as_mut_bytes())?;
        let values = joined.get_or_insert_with(|| sent.to_vec());
        join(operation, theirs_is_lower, values, &theirs);
        Ok::<(), crate::Error>(())
    };
    if let Some(partner) = folded.partner(rank) {
        if keeper(leaf) != rank {
            return round.send(partner, sent.as_bytes());
        }
        receive_and_join(partner, partner < rank, &mut joined)?;
    }
    let distance = leaf ^ root_leaf;
    let mut block = 1;
    while block < folded.leaves() {
        let peer = keeper(leaf ^ block);
        if distance & block != 0 {
            return round.send(peer, joined.as_deref().unwrap_or(sent).as_bytes());
        }
        receive_and_join(peer, leaf & block != 0, &mut joined)?;
        block *= 2;
    }
    if let Some(received) = received {
        received.copy_from_slice(joined.as_deref().unwrap_or(sent));
    }
    Ok(())
}
