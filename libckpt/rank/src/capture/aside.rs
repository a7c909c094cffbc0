//! Copying aside: pages that are saved while the rank stands still.

use protocol::dirty::PageSet;

use super::pool::{Block, Need, Pool};
use super::{CaptureError, Saved, Sink};
use crate::layout::PAGE_BYTES;
use crate::slot::Slot;

/// Copies pages of one rank into blocks while it stands still.
pub(super) struct Aside<'a> {
    pool: &'a Pool,
    sink: &'a Sink,
    rank: usize,
    slot: &'a Slot,
    block: Option<Block>,
}

impl<'a> Aside<'a> {
    pub(super) fn new(pool: &'a Pool, sink: &'a Sink, rank: usize, slot: &'a Slot) -> Self {
        Self {
            pool,
            sink,
            rank,
            slot,
            block: None,
        }
    }

    pub(super) fn copy_all(&mut self, saved: &PageSet) -> Result<(), CaptureError> {
        for range in saved.ranges() {
            let mut next = range.start;
            while next < range.end {
                let block = match &mut self.block {
                    Some(block) => block,
                    None => {
                        let block = self
                            .pool
                            .take(Need::Rank)
                            .map_err(|source| CaptureError::Memory { source })?;
                        self.block.insert(block)
                    }
                };
                let count = block.room().min((range.end - next) as usize);
                let address = self.slot.base() + next as usize * PAGE_BYTES;
                // SAFETY: pages of the slot that exist, whose owner is stopped. (Another thread may link a block
                // into the list of freed ones, by words that nobody else reads meanwhile.)
                unsafe {
                    block.push_pages(next, std::ptr::with_exposed_provenance(address), count);
                }
                next += count as u64;
                if block.is_full() {
                    self.finish();
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        if let Some(block) = self.block.take()
            && !block.pages().is_empty()
        {
            (self.sink)(Saved::Block {
                rank: self.rank,
                block,
            });
        }
    }
}
