//! Scatter: down a binomial tree where the blocks are small, straight from the root where they are large.

use super::gather::TREE_BYTES_MAX;
use super::round::{Kind, Round};
use super::tree::Binomial;
use crate::comm::communicator::Communicator;
use crate::comm::request;
use crate::error::Result;

/// `sent` is the root's.
pub(super) fn scatter(
    communicator: &Communicator,
    root: usize,
    sent: Option<&[u8]>,
    received: &mut [u8],
) -> Result<()> {
    // The same on every rank: blocks are equal.
    if received.len() * communicator.size() <= TREE_BYTES_MAX {
        return scatter_by_tree(communicator, root, sent, received);
    }
    let blocks = sent.map(|sent| sent.chunks_exact(received.len()).collect());
    scatter_varcount(communicator, root, blocks, received)
}

/// A rank gets its subtree's blocks, in the order of places, in one message, and passes them down.
fn scatter_by_tree(
    communicator: &Communicator,
    root: usize,
    sent: Option<&[u8]>,
    received: &mut [u8],
) -> Result<()> {
    let round = Round::start(communicator, Kind::Scatter);
    let tree = Binomial::new(round.rank(), root, round.size());
    let block_bytes = received.len();
    let mut blocks = vec![0; tree.subtree() * block_bytes];
    if let Some(parent) = tree.parent() {
        round.receive(parent, &mut blocks)?;
    } else if let Some(sent) = sent {
        // Places begin at the root, ranks at 0.
        let (from_zero, from_root) = sent.split_at(root * block_bytes);
        blocks[..from_root.len()].copy_from_slice(from_root);
        blocks[from_root.len()..].copy_from_slice(from_zero);
    }
    for child in tree.children() {
        let start = child.offset * block_bytes;
        round.send(child.rank, &blocks[start..][..child.subtree * block_bytes])?;
    }
    received.copy_from_slice(&blocks[..block_bytes]);
    Ok(())
}

/// `blocks` are the root's, one for each rank. An empty block needs no message.
pub(super) fn scatter_varcount(
    communicator: &Communicator,
    root: usize,
    blocks: Option<Vec<&[u8]>>,
    received: &mut [u8],
) -> Result<()> {
    let round = Round::start(communicator, Kind::Scatter);
    let Some(blocks) = blocks else {
        return if received.is_empty() {
            Ok(())
        } else {
            round.receive(root, received)
        };
    };
    super::expect(
        "bytes of the root's own block",
        blocks[root].len(),
        received.len(),
    )?;
    request::scope(|scope| {
        for (rank, block) in blocks.into_iter().enumerate() {
            if rank == root {
                received.copy_from_slice(block);
            } else if !block.is_empty() {
                // Completed at the end of the scope.
                let _ = round.start_send(scope, rank, block)?;
            }
        }
        Ok(())
    })
}
