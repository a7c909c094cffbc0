//! From a suspended rank to pages in staging memory: the part of a checkpoint that the solver waits for.
//!
//! - `pagemap`: which pages exist at all, so that untouched ones are not read.
//! - `staging`: the memory that pages are copied into, kept from one checkpoint to the next.
//!
//! An image is the header, the used part of the stack, and what the heap says is live; of these, the
//! pages that exist and are not all zero. Everything else reads as zeros after a restore.

mod pagemap;
mod staging;

use std::io;
use std::ops::Range;

use protocol::ids::Rank;

pub use staging::Staging;

use crate::context::in_process;
use crate::header::{SlotHeader, State};
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
    /// The threads of the process can't be listed.
    #[error("the threads of the process can't be listed (/proc/self/task: {source})")]
    Threads {
        /// What the system says.
        source: io::Error,
    },
    /// Staging memory can't be had.
    #[error(
        "{bytes} bytes of memory for the copy of an image can't be had ({source}); run fewer ranks per \
         process or raise the memory limit"
    )]
    Memory {
        /// Bytes needed.
        bytes: usize,
        /// What the system says.
        source: io::Error,
    },
}

/// What a capture took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Pages copied: the image.
    pub pages: u64,
    /// Pages that exist and hold nothing but zeros; left out.
    pub zero_pages: u64,
}

impl Captured {
    /// Bytes of the image.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }
}

impl Slot {
    /// Copies the rank's image into staging memory, whose former contents are dropped. The rank may go
    /// on as soon as this returns.
    ///
    /// # Errors
    /// The rank is in a state that an image can't hold, or there is no memory for the copy.
    pub fn capture(&self, staging: &mut Staging) -> Result<Captured, CaptureError> {
        in_process(|| {
            self.check_state()?;
            check_threads(self.rank())?;
            // SAFETY: the rank, the heap's owner, is stopped, and this is its thread.
            unsafe { self.header().heap.drain_remote() };
            let ranges = self.live_ranges();
            self.copy(&ranges, staging)
        })
    }

    /// How long the image can be at most, in bytes, if it were taken now: for making room before
    /// ([`Staging::reserve`]), while the rank need not wait for it.
    #[must_use]
    pub fn image_bytes_max(&self) -> usize {
        in_process(|| self.live_ranges().iter().map(Range::len).sum())
    }

    fn check_state(&self) -> Result<(), CaptureError> {
        let rank = self.rank();
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

    /// The addresses that the image is made of, in whole pages. The header comes first: blocks that
    /// other threads free meanwhile are then either on the list that its copy holds, or just not freed.
    fn live_ranges(&self) -> Vec<Range<usize>> {
        let base = self.base();
        let header_end = base + size_of::<SlotHeader>().next_multiple_of(PAGE_BYTES);
        let mut ranges = Vec::new();
        ranges.push(base..header_end);
        if self.header().state() == State::Suspended {
            let stack = &self.regions().stack;
            let used_from = (self.header().stack_used_from.get() as usize) & !(PAGE_BYTES - 1);
            ranges.push(used_from.max(base + stack.start as usize)..base + stack.end as usize);
        }
        self.header().heap.live_ranges(|range| ranges.push(range));
        ranges
    }

    fn copy(&self, live: &[Range<usize>], staging: &mut Staging) -> Result<Captured, CaptureError> {
        let present = pagemap::present(live);
        let bytes = present.iter().map(Range::len).sum();
        staging.clear();
        staging
            .reserve(bytes)
            .map_err(|source| CaptureError::Memory { bytes, source })?;
        let base = self.base();
        let mut captured = Captured::default();
        for range in present {
            let pages = range.len() / PAGE_BYTES;
            // SAFETY: the range is mapped and readable, and its owner is stopped. (Another thread may
            // link a block into the list of freed ones, by words that nobody else reads meanwhile.)
            let source = unsafe {
                std::slice::from_raw_parts(
                    std::ptr::with_exposed_provenance(range.start),
                    range.len(),
                )
            };
            let copied = staging.push_pages(((range.start - base) / PAGE_BYTES) as u64, source);
            captured.pages += copied as u64;
            captured.zero_pages += (pages - copied) as u64;
        }
        Ok(captured)
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
