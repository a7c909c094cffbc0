//! Barrier: dissemination (Hensgen, Finkel, Manber 1988), `ceil(log2 p)` steps for any number of ranks.

use super::round::{Kind, Round};
use crate::comm::communicator::Communicator;
use crate::error::Result;

/// In step `k` a rank tells the one `2^k` above that it, and all it has heard of, are here.
pub(super) fn barrier(communicator: &Communicator) -> Result<()> {
    let round = Round::start(communicator, Kind::Barrier);
    let mut distance = 1;
    while distance < round.size() {
        round.exchange(round.above(distance), &[], round.below(distance), &mut [])?;
        distance *= 2;
    }
    Ok(())
}
