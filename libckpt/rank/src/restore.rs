//! From the pages of an image to a slot whose rank goes on where it was.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::ids::Rank;
use protocol::slots::SlotLayout;

use crate::context::in_process;
use crate::header::{self, SlotHeader, State};
use crate::heap::Heap;
use crate::hosted;
use crate::layout::{PAGE_BYTES, Regions};
use crate::slot::{Mapping, Slot, SlotError};
use crate::touch::touch;

/// Why an image can't be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The slot can't be mapped.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A page number that no image of this layout has.
    #[error(
        "the image of {rank} holds pages {first} to {last}, which are no part of a rank's memory"
    )]
    OutOfRange {
        /// The rank.
        rank: Rank,
        /// First page.
        first: u64,
        /// Last page.
        last: u64,
    },
    /// A page that came twice.
    #[error("the image of {rank} holds page {page} twice")]
    Twice {
        /// The rank.
        rank: Rank,
        /// The page.
        page: u64,
    },
    /// Bytes that are no whole page.
    #[error("the image of {rank} holds a page of {bytes} bytes instead of {PAGE_BYTES}")]
    PageLength {
        /// The rank.
        rank: Rank,
        /// Bytes given.
        bytes: usize,
    },
    /// The header does not fit.
    #[error("the image of {rank} has a header that {what}; it is of another job or version")]
    Header {
        /// The rank.
        rank: Rank,
        /// What is wrong with it.
        what: String,
    },
}

/// A slot that is being filled with an image, by any number of threads.
pub struct RestoringSlot {
    mapping: Mapping,
    layout: SlotLayout,
    regions: Regions,
    rank: Rank,
    /// A bit per page of the slot: was it handed out?
    claimed: Box<[AtomicU64]>,
}

// SAFETY: the slot's memory is written only through windows, of which no two overlap; no rank runs in
// it before `finish`.
unsafe impl Send for RestoringSlot {}
// SAFETY: as above.
unsafe impl Sync for RestoringSlot {}

impl RestoringSlot {
    /// Maps the slot, empty.
    ///
    /// # Errors
    /// As [`Slot::create`].
    pub fn create(layout: SlotLayout, rank: Rank) -> Result<Self, RestoreError> {
        let mapping = Mapping::create(&layout, rank)?;
        let regions = Regions::of(&layout);
        let heap = &regions.heap;
        // SAFETY: the heap's part of the mapping just made.
        unsafe {
            Heap::prepare(
                mapping.start().add(heap.start as usize),
                (heap.end - heap.start) as usize,
            );
        }
        let words = (layout.slot_bytes() / PAGE_BYTES as u64 / 64) as usize;
        Ok(Self {
            mapping,
            layout,
            regions,
            rank,
            claimed: in_process(|| zeroed_words(words)),
        })
    }

    /// Whose slot it is.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// First address of the slot.
    pub(crate) fn base(&self) -> usize {
        self.mapping.start().addr()
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The memory of `count` pages from `first` on (counted from the slot's start), zeroed, to be
    /// filled. Every page is handed out once.
    ///
    /// # Errors
    /// The pages are not all part of a rank's memory, or one was handed out before.
    // The pages are claimed for good, so that no two results share memory.
    #[allow(clippy::mut_from_ref)]
    pub fn window(&self, first: u64, count: usize) -> Result<&mut [u8], RestoreError> {
        let range = self.byte_range(first, count)?;
        for page in first..first + count as u64 {
            self.claim(page)?;
        }
        // SAFETY: inside the mapping and outside of its guards; nobody else was or will be given these
        // pages, and the mapping lives as long as the borrow of `self`.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(
                self.mapping.start().add(range.start as usize),
                (range.end - range.start) as usize,
            )
        })
    }

    /// Lets pages be handed out once more, with what they hold: they will be filled anew. Ranges of pages that no rank has
    /// are passed over.
    pub fn again(&mut self, pages: &[Range<u64>]) {
        let all = self.claimed.len() as u64 * 64;
        for range in pages {
            for page in range.start..range.end.min(all) {
                *self.claimed[(page / 64) as usize].get_mut() &= !(1 << (page % 64));
            }
        }
    }

    /// Has the memory of pages there before it is filled, which takes the system longer than filling it; each is as zeros, or
    /// as it was filled. Ranges of pages that no rank has are passed over.
    pub fn make_room(&mut self, pages: &[Range<u64>]) {
        for range in pages {
            let count = range.end.saturating_sub(range.start) as usize;
            let Ok(bytes) = self.byte_range(range.start, count) else {
                continue;
            };
            let at = self.mapping.start().wrapping_add(bytes.start as usize);
            // SAFETY: inside the mapping and outside of its guards, and nobody has a window: this borrow is the only one.
            unsafe { touch(at, count) };
        }
    }

    /// Makes pages zeros that were filled, and lets them be handed out once more.
    ///
    /// # Errors
    /// The pages are not all part of a rank's memory.
    pub fn clear(&mut self, pages: &[Range<u64>]) -> Result<(), RestoreError> {
        for range in pages {
            let count = range.end.saturating_sub(range.start) as usize;
            let bytes = self.byte_range(range.start, count)?;
            let at = self.mapping.start().wrapping_add(bytes.start as usize);
            let bytes = (bytes.end - bytes.start) as usize;
            // SAFETY: inside the mapping, which is private, anonymous and ours, and nobody has a window: this borrow is the only one.
            let answer = unsafe { libc::madvise(at.cast(), bytes, libc::MADV_DONTNEED) };
            if answer != 0 {
                // Locked pages can't be given back.
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(at, 0, bytes) };
            }
        }
        self.again(pages);
        Ok(())
    }

    /// Whether the header that was placed is that of this rank, layout and version: then [`RestoringSlot::finish`] does not
    /// fail. For threads that fill a slot and are not the one that resumes ranks.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self) -> Result<(), RestoreError> {
        // SAFETY: the header's region is mapped, and any bytes are a valid header as far as it is read
        // here: numbers.
        let header = unsafe { &*self.mapping.start().cast::<SlotHeader>() };
        let base = self.mapping.start().addr() as u64;
        check_header(header, self.rank, &self.layout, &self.regions, base).map_err(|what| {
            in_process(|| RestoreError::Header {
                rank: self.rank,
                what,
            })
        })
    }

    /// Fills a page.
    ///
    /// # Errors
    /// As [`RestoringSlot::window`], or it is not a page's length.
    pub fn place(&self, page: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        if bytes.len() != PAGE_BYTES {
            return Err(RestoreError::PageLength {
                rank: self.rank,
                bytes: bytes.len(),
            });
        }
        self.window(page, 1)?.copy_from_slice(bytes);
        Ok(())
    }

    /// The slot, once all pages are placed. To be called on the thread that resumes ranks.
    ///
    /// `as_stored` is called while the memory of the rank is, but for the header, to the last bit what the image
    /// holds: the moment from which on writes have to be tracked, for already making the heap fit for use writes
    /// to its tables.
    ///
    /// # Errors
    /// The header is not that of this rank, layout and version.
    pub fn finish(self, as_stored: impl FnOnce(&Slot)) -> Result<Slot, RestoreError> {
        self.check()?;
        let Self {
            mapping,
            layout,
            rank,
            ..
        } = self;
        // SAFETY: the header's region is mapped, and it was checked.
        let header = unsafe { &*mapping.start().cast::<SlotHeader>() };
        // SAFETY: the heap is that of the image, and nobody uses it yet.
        unsafe { header.heap.unlock() };
        let slot = Slot::from_mapping(mapping, &layout);
        in_process(|| hosted::add(rank));
        as_stored(&slot);
        // SAFETY: the heap is that of the image, what the image did not hold is zero, and nobody uses it
        // yet.
        unsafe { slot.header().heap.restored() };
        Ok(slot)
    }

    /// The offsets of a run of pages, if images hold them.
    fn byte_range(&self, first: u64, count: usize) -> Result<Range<u64>, RestoreError> {
        let end = first.checked_add(count as u64);
        let range = end.and_then(|end| self.regions.image_bytes(&(first..end)));
        range.ok_or(RestoreError::OutOfRange {
            rank: self.rank,
            first,
            last: first.saturating_add((count as u64).saturating_sub(1)),
        })
    }

    /// Takes a page for good.
    fn claim(&self, page: u64) -> Result<(), RestoreError> {
        let bit = 1 << (page % 64);
        let before = self.claimed[(page / 64) as usize].fetch_or(bit, Ordering::Relaxed);
        if before & bit == 0 {
            Ok(())
        } else {
            Err(RestoreError::Twice {
                rank: self.rank,
                page,
            })
        }
    }
}

impl fmt::Debug for RestoringSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoringSlot")
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}

/// Zeros that cost nothing until they are touched: the table is large and mostly never used.
fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    let words = Box::<[AtomicU64]>::new_zeroed_slice(count);
    // SAFETY: an atomic number is valid as zeros.
    unsafe { words.assume_init() }
}

fn check_header(
    found: &SlotHeader,
    rank: Rank,
    layout: &SlotLayout,
    regions: &Regions,
    base: u64,
) -> Result<(), String> {
    let expected_bytes = size_of::<SlotHeader>() as u32;
    if found.magic != header::MAGIC {
        return Err("is missing".to_owned());
    }
    if found.version != header::VERSION || found.header_bytes != expected_bytes {
        return Err(format!(
            "has version {} and {} bytes, where {} and {expected_bytes} are understood",
            found.version,
            found.header_bytes,
            header::VERSION
        ));
    }
    if found.rank() != rank {
        return Err(format!("is that of {}", found.rank()));
    }
    if !found.has_layout(layout) {
        return Err(
            "is for slots or stacks of another size, or another number of ranks".to_owned(),
        );
    }
    let stack = base + regions.stack.start..base + regions.stack.end;
    match found.state() {
        State::Finished => Ok(()),
        State::Suspended if stack.contains(&found.stack_used_from.get()) => Ok(()),
        State::Suspended => Err("has its stack pointer outside of its stack".to_owned()),
        State::Empty | State::Running | State::Panicked => {
            Err("is not that of a stopped rank".to_owned())
        }
    }
}
