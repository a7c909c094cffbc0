//! All-gather: by doubling (Bruck et al. 1997) where all is small, around a ring where it is large.

use super::round::{Kind, Round};
use crate::comm::communicator::Communicator;
use crate::error::Result;

/// Up to this many bytes in all, fewer messages are worth one more copy.
const DOUBLING_BYTES_MAX: usize = 64 << 10;

/// `blocks` are one for each rank, of the same lengths on every rank.
pub(super) fn all_gather(
    communicator: &Communicator,
    sent: &[u8],
    blocks: &mut [&mut [u8]],
) -> Result<()> {
    super::expect(
        "bytes of the rank's own block",
        sent.len(),
        blocks[communicator.rank()].len(),
    )?;
    blocks[communicator.rank()].copy_from_slice(sent);
    let round = Round::start(communicator, Kind::AllGather);
    // The same on every rank.
    if blocks.iter().map(|block| block.len()).sum::<usize>() <= DOUBLING_BYTES_MAX {
        by_doubling(&round, blocks)
    } else {
        by_ring(&round, blocks)
    }
}

/// A rank that has the blocks of `n` ranks, from itself upwards in the ring, sends them to the one `n` below
/// and gets as many from the one `n` above.
fn by_doubling(round: &Round<'_>, blocks: &mut [&mut [u8]]) -> Result<()> {
    let size = round.size();
    // Where the block of the rank so many above begins among those collected; one more for the end.
    let mut starts = Vec::with_capacity(size + 1);
    starts.push(0);
    for steps in 0..size {
        starts.push(starts[steps] + blocks[round.above(steps)].len());
    }
    let mut collected = vec![0; starts[size]];
    collected[..starts[1]].copy_from_slice(blocks[round.rank()]);
    let mut have = 1;
    while have < size {
        let more = have.min(size - have);
        let (known, unknown) = collected.split_at_mut(starts[have]);
        round.exchange(
            round.below(have),
            &known[..starts[more]],
            round.above(have),
            &mut unknown[..starts[have + more] - starts[have]],
        )?;
        have += more;
    }
    for steps in 1..size {
        blocks[round.above(steps)].copy_from_slice(&collected[starts[steps]..starts[steps + 1]]);
    }
    Ok(())
}

/// In each step a rank passes upwards the block that it got in the step before.
fn by_ring(round: &Round<'_>, blocks: &mut [&mut [u8]]) -> Result<()> {
    for step in 1..round.size() {
        let [passed_on, next] = blocks
            .get_disjoint_mut([round.below(step - 1), round.below(step)])
            .expect("two ranks of a ring differ");
        round.exchange(round.above(1), passed_on, round.below(1), next)?;
    }
    Ok(())
}
