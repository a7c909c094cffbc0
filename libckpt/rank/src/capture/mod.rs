//! From suspended ranks to their pages in memory of the process: the part of a checkpoint that the solver feels.
//!
//! - `cut`: the cut of all ranks of a process ([`Capturer`]).
//! - `regions`: which parts of a heap are tracked, and which are saved whole.
//! - `aside`: pages that are copied in the cut.
//! - `geometry`: addresses, pages, regions and units.
//! - `catch_up`: how a region comes to be tracked between two cuts.
//! - `follow`: what a rank writes while it is copied for a move.
//! - `guard`: copy on write, for pages that are saved while the ranks go on.
//! - `pool`: the memory that pages are saved into, kept from one checkpoint to the next, within a budget.
//! - `pagemap`: the kernel's interface, beside `crate::uffd`; `probe`: whether it does what it says.
//!
//! An image is the header, the used part of the stack, and what the heap says is live; of these, the
//! pages that exist and are not all zero. Everything else reads as zeros after a restore.

mod aside;
mod catch_up;
mod cut;
mod follow;
mod geometry;
pub(crate) mod guard;
mod pagemap;
mod pool;
mod probe;
mod regions;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use protocol::control::Felt;
use protocol::ids::Rank;

pub use catch_up::{CatchUp, LivePages};
pub use cut::{Capturer, Observation, Options, RankCut};
pub use follow::{FollowError, Look, Since};
pub use pool::{BLOCK_BYTES, BLOCK_PAGES, Block, Pool};
pub use regions::REGION_PAGES;

#[cfg(test)]
pub(crate) use {pagemap::present, pool::map};

use crate::header::{SlotHeader, State};
use crate::incoming::is_incoming;
use crate::layout::PAGE_BYTES;
use crate::slot::Slot;
use crate::threads;

/// Why a rank can't be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Threads that the rank started are alive.
    #[error(
        "{rank} can't be captured while threads of its program are alive: {}; their stacks are no part \
         of an image, so let them end before the next communication call",
        names.join(", ")
    )]
    LiveThreads {
        /// The rank.
        rank: Rank,
        /// The threads' names.
        names: Vec<String>,
    },
    /// The rank is stopped in a destructor during a panic, or a panic ended it.
    #[error("{rank} can't be captured while it is panicking")]
    Panicking {
        /// The rank.
        rank: Rank,
    },
    /// The rank was not started, or runs.
    #[error("{rank} can't be captured: it is neither stopped in a communication call nor finished")]
    NotStopped {
        /// The rank.
        rank: Rank,
    },
    /// Pages of it are still to come from the process where it was.
    #[error("{rank} can't be captured: it has just come, and not all of its pages are here")]
    Incoming {
        /// The rank.
        rank: Rank,
    },
    /// The threads of the process can't be listed.
    #[error("the threads of the process can't be listed (/proc/self/task: {source})")]
    Threads {
        /// What the system says.
        source: io::Error,
    },
    /// Memory for copies can't be had at all.
    #[error(
        "memory for the copy of an image can't be had ({source}); run fewer ranks per process or raise the \
         memory limit"
    )]
    Memory {
        /// What the system says.
        source: io::Error,
    },
}

/// What a cut hands on, while it lasts and after it, from several threads.
#[derive(Debug)]
pub enum Saved {
    /// Pages of a rank.
    Block {
        /// By index among the slots of the cut.
        rank: usize,
        /// The pages.
        block: Block,
    },
    /// Pages could not be saved: the snapshot is to be given up. [`Saved::All`] comes nevertheless.
    Failed(String),
    /// All pages of all ranks have been handed on.
    All(Felt),
}

/// Takes what is saved; must not block for long, and must not touch a slot.
pub type Sink = Arc<dyn Fn(Saved) + Send + Sync>;

/// The addresses that an image is made of, in whole pages.
pub(crate) struct LiveRanges {
    /// Header and stack: small, and always written to.
    unwatched: Vec<Range<usize>>,
    /// What the heap says is live, ascending.
    heap: Vec<Range<usize>>,
}

impl LiveRanges {
    /// The end of the last one.
    pub(crate) fn end(&self) -> usize {
        let last = self.heap.last().or(self.unwatched.last());
        last.map_or(0, |range| range.end)
    }
}

impl Slot {
    fn check_state(&self) -> Result<(), CaptureError> {
        let rank = self.rank();
        if is_incoming(rank) {
            return Err(CaptureError::Incoming { rank });
        }
        if self.is_panicking() {
            return Err(CaptureError::Panicking { rank });
        }
        match self.header().state() {
            State::Suspended | State::Finished => Ok(()),
            State::Empty | State::Running | State::Panicked => {
                Err(CaptureError::NotStopped { rank })
            }
        }
    }

    /// The pages that the image of a stopped rank is made of, by their numbers, for whoever copies them while it stays
    /// stopped. All others are zeros.
    ///
    /// # Errors
    /// The rank is in a state that an image can't hold.
    pub fn image(&self) -> Result<Vec<Range<u64>>, CaptureError> {
        crate::context::in_process(|| {
            self.check_state()?;
            // SAFETY: the rank, the heap's owner, is stopped, and this is its thread.
            unsafe { self.header().heap.drain_remote() };
            let live = self.live_ranges();
            let mut present = pagemap::present(&live.unwatched);
            present.extend(pagemap::present(&live.heap));
            let pages = present.iter().map(|range| geometry::pages(self, range));
            Ok(pages.collect())
        })
    }

    /// The header comes first: blocks that other threads free meanwhile are then either on the list that its
    /// copy holds, or just not freed.
    pub(crate) fn live_ranges(&self) -> LiveRanges {
        let base = self.base();
        let header_end = base + size_of::<SlotHeader>().next_multiple_of(PAGE_BYTES);
        let mut unwatched = Vec::new();
        unwatched.push(base..header_end);
        if self.header().state() == State::Suspended {
            let stack = &self.regions().stack;
            let used_from = (self.header().stack_used_from.get() as usize) & !(PAGE_BYTES - 1);
            unwatched.push(used_from.max(base + stack.start as usize)..base + stack.end as usize);
        }
        let mut heap = Vec::new();
        self.header().heap.live_ranges(|range| heap.push(range));
        heap.sort_unstable_by_key(|range| range.start);
        LiveRanges { unwatched, heap }
    }
}

/// Refuses where a thread is alive that is not the library's.
fn check_threads(rank: Rank) -> Result<(), CaptureError> {
    let names = threads::foreign_threads().map_err(|source| CaptureError::Threads { source })?;
    if names.is_empty() {
        Ok(())
    } else {
        Err(CaptureError::LiveThreads { rank, names })
    }
}
