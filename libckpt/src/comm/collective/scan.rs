//! Scans: recursive doubling over blocks of ranks, `ceil(log2 p)` steps. The order of joining depends on the
//! size of the communicator and the rank alone.

use zerocopy::IntoBytes;

use super::round::{Kind, Round};
use crate::comm::communicator::Communicator;
use crate::comm::datatype::Equivalence;
use crate::comm::operation::Operation;
use crate::error::Result;

/// `received` is the join of this rank and all below.
pub(super) fn inclusive<T: Equivalence, O: Operation<T>>(
    communicator: &Communicator,
    sent: &[T],
    received: &mut [T],
    operation: &O,
) -> Result<()> {
    received.copy_from_slice(sent);
    scan(communicator, sent, operation, |lower| {
        operation.fold_below(lower, received)
    })
}

/// `received` is the join of all ranks below; rank 0's is left as it is.
pub(super) fn exclusive<T: Equivalence, O: Operation<T>>(
    communicator: &Communicator,
    sent: &[T],
    received: &mut [T],
    operation: &O,
) -> Result<()> {
    let mut first = true;
    scan(communicator, sent, operation, |lower| {
        if std::mem::take(&mut first) {
            received.copy_from_slice(lower);
        } else {
            operation.fold_below(lower, received);
        }
    })
}

/// Hands `below` the joined values of each block of ranks below this one, the nearest first.
///
/// Before the step of `block`, a rank has joined the values of its block of so many ranks; the last block
/// may lack ranks, or know less than all of its own, but no rank lies above it that would need them.
fn scan<T: Equivalence, O: Operation<T>>(
    communicator: &Communicator,
    sent: &[T],
    operation: &O,
    mut below: impl FnMut(&[T]),
) -> Result<()> {
    let round = Round::start(communicator, Kind::Scan);
    let mut values = sent.to_vec();
    let mut theirs = vec![T::new_zeroed(); sent.len()];
    let mut block = 1;
    while block < round.size() {
        let peer = round.rank() ^ block;
        if peer < round.size() {
            let (values, theirs) = (values.as_mut_slice(), theirs.as_mut_slice());
            round.exchange(peer, values.as_bytes(), peer, theirs.as_mut_bytes())?;
            if peer < round.rank() {
                below(theirs);
                operation.fold_below(theirs, values);
            } else {
                operation.fold_above(values, theirs);
            }
        }
        block *= 2;
    }
    Ok(())
}
