//! Broadcast: a binomial tree below the root; large buffers go down it in segments.

use super::round::{Kind, Round};
use super::tree::Binomial;
use crate::comm::communicator::Communicator;
use crate::comm::request;
use crate::error::Result;

/// A longer buffer is cut into segments of this size, so that a rank passes one on while the next one
/// comes.
const SEGMENT_BYTES: usize = 512 << 10;

pub(super) fn broadcast(communicator: &Communicator, root: usize, buffer: &mut [u8]) -> Result<()> {
    let round = Round::start(communicator, Kind::Broadcast);
    let tree = Binomial::new(round.rank(), root, round.size());
    let parent = tree.parent();
    let children: Vec<usize> = tree.children().map(|child| child.rank).collect();
    // An empty buffer is one empty segment: ranks that disagree about the length must find out.
    let segment_bytes = if buffer.is_empty() { 1 } else { SEGMENT_BYTES };
    let mut segments: Vec<&mut [u8]> = if buffer.is_empty() {
        vec![buffer]
    } else {
        buffer.chunks_mut(segment_bytes).collect()
    };
    request::scope(|scope| {
        for segment in segments.drain(..) {
            if let Some(parent) = parent {
                round.receive(parent, segment)?;
            }
            let segment: &[u8] = segment;
            for &child in &children {
                // Completed at the end of the scope: the segments go to all children at once.
                let _ = round.start_send(scope, child, segment)?;
            }
        }
        Ok(())
    })
}
