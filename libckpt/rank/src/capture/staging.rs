//! Memory that images are copied into. Touching fresh memory costs several times what copying costs,
//! so it is kept and used again.

use std::io;
use std::ptr;

use crate::layout::PAGE_BYTES;

/// Capacities are a multiple of this, in bytes: a huge page. Touching a new one takes far less time than
/// touching its 512 small pages.
const GRAIN_BYTES: usize = 2 << 20;

/// The same for images so small that most of a huge page would be touched for nothing.
const SMALL_GRAIN_BYTES: usize = 64 << 10;

/// The copy of a rank's image: page numbers, counted from the start of the slot, and their bytes.
///
/// One `Staging` holds one image. It may be sent to the thread that compresses and writes the image, and
/// back for the next checkpoint.
pub struct Staging {
    start: *mut u8,
    capacity_bytes: usize,
    pages: Vec<u64>,
}

// SAFETY: the mapping is owned, and reached only through `self`.
unsafe impl Send for Staging {}
// SAFETY: a shared `Staging` is only read.
unsafe impl Sync for Staging {}

impl Default for Staging {
    fn default() -> Self {
        Self::new()
    }
}

impl Staging {
    /// Empty, without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            start: ptr::null_mut(),
            capacity_bytes: 0,
            pages: Vec::new(),
        }
    }

    /// Makes room for `bytes` of pages, and touches what is new of it: better now than while a rank
    /// waits. What is held stays.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        if bytes <= self.capacity_bytes {
            return Ok(());
        }
        // A little more than asked, so that an image that grows slowly does not ask each time.
        let wanted = bytes + bytes / 8;
        let wanted = if wanted < GRAIN_BYTES / 2 {
            wanted.next_multiple_of(SMALL_GRAIN_BYTES)
        } else {
            wanted.next_multiple_of(GRAIN_BYTES)
        };
        let old = self.capacity_bytes;
        // SAFETY: a new anonymous mapping, or the owned one moved to where it fits; nothing else refers
        // to either.
        let at = unsafe {
            if self.start.is_null() {
                libc::mmap(
                    ptr::null_mut(),
                    wanted,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            } else {
                libc::mremap(self.start.cast(), old, wanted, libc::MREMAP_MAYMOVE)
            }
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.start = at.cast();
        self.capacity_bytes = wanted;
        // SAFETY: advice about the mapping just made.
        unsafe {
            libc::madvise(at, wanted, libc::MADV_HUGEPAGE);
            libc::madvise(
                self.start.add(old).cast(),
                wanted - old,
                libc::MADV_POPULATE_WRITE,
            );
        }
        Ok(())
    }

    /// The numbers of the pages held, in the order of their bytes.
    #[must_use]
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// The bytes of all pages held, [`PAGE_BYTES`] for each number.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        if self.pages.is_empty() {
            return &[];
        }
        // SAFETY: so many pages of the mapping have been written.
        unsafe { std::slice::from_raw_parts(self.start, self.pages.len() * PAGE_BYTES) }
    }

    /// The memory it keeps, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Drops the pages and keeps the memory.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        *self = Self::new();
    }

    /// Copies those of a run of pages that are not all zero; tells how many. There must be room.
    pub(super) fn push_pages(&mut self, first: u64, source: &[u8]) -> usize {
        let (source, rest) = source.as_chunks::<PAGE_BYTES>();
        debug_assert!(rest.is_empty());
        let before = self.pages.len();
        let mut next = 0;
        while next < source.len() {
            if is_zero(&source[next]) {
                next += 1;
                continue;
            }
            let start = next;
            while next < source.len() && !is_zero(&source[next]) {
                next += 1;
            }
            let run = &source[start..next];
            let used = self.pages.len() * PAGE_BYTES;
            assert!(used + run.len() * PAGE_BYTES <= self.capacity_bytes);
            // SAFETY: inside the mapping, as asserted; the source is other memory.
            unsafe {
                ptr::copy_nonoverlapping(
                    run.as_ptr().cast(),
                    self.start.add(used),
                    run.len() * PAGE_BYTES,
                );
            }
            self.pages.extend(first + start as u64..first + next as u64);
        }
        self.pages.len() - before
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: mapped by `reserve` and owned since.
            unsafe { libc::munmap(self.start.cast(), self.capacity_bytes) };
        }
    }
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging")
            .field("pages", &self.pages.len())
            .field("capacity_bytes", &self.capacity_bytes)
            .finish()
    }
}

/// Is a page all zero? Most that are not show it in their first words.
#[inline]
fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    let (words, _) = page.as_chunks::<64>();
    words
        .iter()
        .all(|word| word.iter().fold(0, |all, &byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_left_out_and_the_others_keep_their_numbers() {
        let mut source = vec![0_u8; 6 * PAGE_BYTES];
        source[PAGE_BYTES] = 1;
        source[3 * PAGE_BYTES - 1] = 2;
        source[5 * PAGE_BYTES + 77] = 3;
        let mut staging = Staging::new();
        staging.reserve(source.len()).unwrap();
        assert_eq!(staging.push_pages(100, &source), 3);
        assert_eq!(staging.pages(), [101, 102, 105]);
        let bytes = staging.bytes();
        assert_eq!(bytes.len(), 3 * PAGE_BYTES);
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[2 * PAGE_BYTES - 1], 2);
        assert_eq!(bytes[2 * PAGE_BYTES + 77], 3);
    }

    #[test]
    fn growing_keeps_what_is_held_and_clearing_keeps_the_memory() {
        let mut staging = Staging::new();
        staging.reserve(PAGE_BYTES).unwrap();
        staging.push_pages(7, &[5; PAGE_BYTES]);
        let bytes = staging.capacity_bytes();
        staging.reserve(bytes + 1).unwrap();
        assert!(staging.capacity_bytes() > bytes);
        assert_eq!(staging.bytes(), [5; PAGE_BYTES]);
        staging.clear();
        assert!(staging.bytes().is_empty());
        assert!(staging.capacity_bytes() > bytes);
    }
}
