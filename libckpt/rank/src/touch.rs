//! Memory that is there before it is needed: the system makes a page at the first access, which takes longer than
//! filling it.
//!
//! Page by page, by an access to each. `MADV_POPULATE_WRITE` of madvise(2) would do it in one call, but holds the
//! lock of the whole address space while the system clears memory, milliseconds for a huge page, and whoever maps,
//! unmaps or protects memory waits behind it: a rank that is about to move, too. Calls for small parts help little,
//! as the next one has the lock before those that wait for it are awake. An access takes the lock of its mapping
//! alone (Linux 6.4, Documentation/mm/process_addrs.rst). Where a control group has no more memory, either way ends
//! the process (Linux 4.19).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::layout::PAGE_BYTES;

/// Has whole pages there, with what they hold: zeros, or what was written to them.
///
/// # Safety
/// So many pages are mapped from `first` on, readable and writable, and no page fault of theirs waits for this
/// thread. Nobody else accesses them meanwhile.
pub(crate) unsafe fn touch(first: *mut u8, pages: usize) {
    for page in 0..pages {
        // SAFETY: as the caller says; any byte is one of an `AtomicU8`.
        let byte = unsafe { AtomicU8::from_ptr(first.add(page * PAGE_BYTES)) };
        // A write access whatever the byte is, of what it is: a read before it would be a fault of its own, for
        // the shared page of zeros.
        let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{map, present};

    #[test]
    fn pages_are_there_afterwards_and_hold_what_they_held() {
        const PAGES: usize = 2048;
        // Left to the end of the test process.
        let first = map(PAGES * PAGE_BYTES).unwrap() as *mut u8;
        let part = |from: usize, to: usize| {
            first.addr() + from * PAGE_BYTES..first.addr() + to * PAGE_BYTES
        };
        let there = || present(&[part(0, PAGES)]);
        // SAFETY: inside the mapping.
        unsafe {
            *first.add(7 * PAGE_BYTES) = 77;
            assert_eq!(there(), [part(7, 8)]);
            touch(first.add(PAGE_BYTES), PAGES - 2);
        }
        assert_eq!(there(), [part(1, PAGES - 1)]);
        // SAFETY: inside the mapping.
        let bytes = unsafe { std::slice::from_raw_parts(first, PAGES * PAGE_BYTES) };
        let set: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        assert_eq!(set, [7 * PAGE_BYTES]);
        assert_eq!(bytes[7 * PAGE_BYTES], 77);
    }
}
