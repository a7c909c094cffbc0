//! The system calls on a heap's pages: each one keeps the range mapped, readable and writable.
//!
//! A cut may still have to save what is in the pages that they take away, which it is told before. Of a rank that has just come
//! some may not be here; whoever brings them hears of those that are given back from the kernel.

use std::ops::Range;

use crate::capture::guard::before_change;
use crate::incoming::before_move;

/// Size of a page, in bytes.
pub(super) const PAGE_BYTES: usize = 4096;

/// Size of a huge page, in bytes.
pub(super) const HUGE_BYTES: usize = 2 << 20;

/// Rounds up to a whole number of pages.
pub(super) const fn page_up(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_BYTES)
}

/// Asks for huge pages in a range. A kernel without them says no, and the range keeps small ones.
///
/// # Safety
/// The range is mapped and belongs to the heap.
pub(super) unsafe fn advise_huge(range: Range<usize>) {
    // SAFETY: advice about a range of ours; it changes no contents.
    unsafe {
        libc::madvise(range.start as *mut _, range.len(), libc::MADV_HUGEPAGE);
    }
}

/// Gives the memory of a range back; it reads as zeros afterwards.
///
/// # Safety
/// The range is page-aligned, mapped, belongs to the heap, and nothing lives in it.
pub(super) unsafe fn discard(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    before_change(&range);
    // SAFETY: nothing lives in the range, by the contract above.
    let answer = unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) };
    if answer != 0 {
        // Locked pages cannot be given back. The promise that they are zeros still has to hold.
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(range.start as *mut u8, 0, range.len()) };
    }
}

/// Puts a new mapping over a range, so that it becomes one with its neighbours again after its pages
/// had been moved in from elsewhere. Returns whether that worked; the range reads as zeros if so.
///
/// # Safety
/// The range is page-aligned, lies in the heap's part of its slot, and nothing lives in it.
pub(super) unsafe fn renew(range: Range<usize>) -> bool {
    before_change(&range);
    // SAFETY: nothing lives in the range, by the contract above, and it is ours to map over.
    let at = unsafe {
        libc::mmap(
            range.start as *mut _,
            range.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: mapped just now.
    unsafe { advise_huge(range) };
    true
}

/// What became of a move of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// The pages are at the new place, and the old one is mapped and reads as zeros.
    Yes,
    /// The pages are where they were. The new place reads as zeros.
    No,
    /// The pages are where they were. The new place is no longer mapped and must not be used.
    PlaceLost,
}

/// Moves pages to another place without copying them (`mremap`).
///
/// # Safety
/// Both ranges are page-aligned, of `bytes` bytes, apart, and lie in the heap; nothing lives in the
/// new place.
pub(super) unsafe fn move_pages(from: usize, to: usize, bytes: usize) -> Moved {
    before_move(&(from..from + bytes));
    before_change(&(from..from + bytes));
    before_change(&(to..to + bytes));
    // SAFETY: the old mapping stays (MREMAP_DONTUNMAP), so no address of the slot is ever free for
    // somebody else's mapping; nothing lives at the new place.
    let at = unsafe {
        libc::mremap(
            from as *mut _,
            bytes,
            bytes,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP,
            to as *mut libc::c_void,
        )
    };
    if at != libc::MAP_FAILED {
        return Moved::Yes;
    }
    // The kernel may have unmapped the new place before it failed.
    // SAFETY: nothing lives at the new place.
    if unsafe { renew(to..to + bytes) } {
        Moved::No
    } else {
        Moved::PlaceLost
    }
}
