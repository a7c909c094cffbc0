//! Gather: up a binomial tree where the blocks are small, straight to the root where they are large.

use super::round::{Kind, Round};
use super::tree::Binomial;
use crate::comm::communicator::Communicator;
use crate::comm::request;
use crate::error::Result;

/// Up to this many bytes in all, fewer messages at the root are worth more than copies on the way.
pub(super) const TREE_BYTES_MAX: usize = 32 << 10;

/// `received` is the root's.
pub(super) fn gather(
    communicator: &Communicator,
    root: usize,
    sent: &[u8],
    received: Option<&mut [u8]>,
) -> Result<()> {
    // The same on every rank: blocks are equal.
    if sent.len() * communicator.size() <= TREE_BYTES_MAX {
        return gather_by_tree(communicator, root, sent, received);
    }
    let blocks = received.map(|received| received.chunks_exact_mut(sent.len()).collect());
    gather_varcount(communicator, root, sent, blocks)
}

/// A rank collects its subtree's blocks, in the order of places, and passes them up in one message.
fn gather_by_tree(
    communicator: &Communicator,
    root: usize,
    sent: &[u8],
    received: Option<&mut [u8]>,
) -> Result<()> {
    let round = Round::start(communicator, Kind::Gather);
    let tree = Binomial::new(round.rank(), root, round.size());
    let block_bytes = sent.len();
    let mut collected = vec![0; tree.subtree() * block_bytes];
    collected[..block_bytes].copy_from_slice(sent);
    // Small subtrees first: they are complete first.
    for child in tree.children().rev() {
        let start = child.offset * block_bytes;
        let into = &mut collected[start..][..child.subtree * block_bytes];
        round.receive(child.rank, into)?;
    }
    if let Some(parent) = tree.parent() {
        return round.send(parent, &collected);
    }
    if let Some(received) = received {
        // Places begin at the root, ranks at 0.
        let (from_root, from_zero) = collected.split_at((round.size() - root) * block_bytes);
        received[root * block_bytes..].copy_from_slice(from_root);
        received[..root * block_bytes].copy_from_slice(from_zero);
    }
    Ok(())
}

/// `blocks` are the root's, one for each rank. An empty block needs no message.
pub(super) fn gather_varcount(
    communicator: &Communicator,
    root: usize,
    sent: &[u8],
    blocks: Option<Vec<&mut [u8]>>,
) -> Result<()> {
    let round = Round::start(communicator, Kind::Gather);
    let Some(blocks) = blocks else {
        return if sent.is_empty() {
            Ok(())
        } else {
            round.send(root, sent)
        };
    };
    super::expect(
        "bytes of the root's own block",
        sent.len(),
        blocks[root].len(),
    )?;
    request::scope(|scope| {
        let mut receives = Vec::with_capacity(blocks.len());
        for (rank, block) in blocks.into_iter().enumerate() {
            if rank == root {
                block.copy_from_slice(sent);
            } else if !block.is_empty() {
                receives.push(round.start_receive(scope, rank, block)?);
            }
        }
        receives
            .into_iter()
            .try_for_each(super::round::Receive::wait)
    })
}
