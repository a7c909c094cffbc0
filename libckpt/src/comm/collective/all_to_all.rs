//! All-to-all: every rank sends to every other directly, some at a time.

use super::round::{Kind, Receive, Round};
use crate::comm::communicator::Communicator;
use crate::comm::request;
use crate::error::Result;

/// How many ranks a rank exchanges with at a time: enough to keep all busy, few enough that memory for
/// messages under way stays bounded.
const WINDOW: usize = 16;

/// Both lists have one block for each rank. An empty block needs no message.
pub(super) fn all_to_all(
    communicator: &Communicator,
    sent: &[&[u8]],
    received: &mut [&mut [u8]],
) -> Result<()> {
    let round = Round::start(communicator, Kind::AllToAll);
    let own = round.rank();
    super::expect(
        "bytes of the rank's own block",
        sent[own].len(),
        received[own].len(),
    )?;
    received[own].copy_from_slice(sent[own]);
    // What a rank sends `steps` upwards is received from `steps` below: in the same window on both sides.
    let all_steps: Vec<usize> = (1..round.size()).collect();
    for window in all_steps.chunks(WINDOW) {
        let mut blocks: Vec<Option<&mut [u8]>> = received
            .iter_mut()
            .map(|block| Some(&mut **block))
            .collect();
        request::scope(|scope| {
            let mut receives = Vec::with_capacity(window.len());
            for &steps in window {
                let from = round.below(steps);
                if let Some(block) = blocks[from].take_if(|block| !block.is_empty()) {
                    receives.push(round.start_receive(scope, from, block)?);
                }
            }
            for &steps in window {
                let to = round.above(steps);
                if !sent[to].is_empty() {
                    // Completed at the end of the scope.
                    let _ = round.start_send(scope, to, sent[to])?;
                }
            }
            receives.into_iter().try_for_each(Receive::wait)
        })?;
    }
    Ok(())
}
