//! Memory in which a huge page is made ready before it goes, as it is, to where it belongs.

use std::io;
use std::ptr;

use super::UNIT_BYTES;

/// Room for one huge page. It reads as zeros after its page has gone.
#[derive(Debug)]
pub(super) struct Staging {
    mapping: *mut u8,
    unit: *mut u8,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Staging {}

const MAPPED_BYTES: usize = 2 * UNIT_BYTES;

impl Staging {
    /// # Errors
    /// There is no address space.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                MAPPED_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping: *mut u8 = mapping.cast();
        let unit = mapping.wrapping_add(mapping.align_offset(UNIT_BYTES));
        // SAFETY: part of the mapping just made: it is twice as long as its alignment.
        unsafe { libc::madvise(unit.cast(), UNIT_BYTES, libc::MADV_HUGEPAGE) };
        Ok(Self { mapping, unit })
    }

    /// Has its page there, with what was written to it or zeros.
    pub(super) fn touch(&mut self) {
        // SAFETY: mapped and ours. Volatile, as a write of what is there has to be done.
        unsafe { self.unit.write_volatile(self.unit.read_volatile()) };
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, ours, and valid as any bytes.
        unsafe { std::slice::from_raw_parts_mut(self.unit, UNIT_BYTES) }
    }

    /// Where it is, for whoever takes its page over.
    pub(super) fn place(&mut self) -> *mut u8 {
        self.unit
    }

    /// Makes zeros of what was written and did not go.
    pub(super) fn clear(&mut self) {
        // SAFETY: private anonymous memory of ours.
        unsafe { libc::madvise(self.unit.cast(), UNIT_BYTES, libc::MADV_DONTNEED) };
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has its address any more.
        unsafe { libc::munmap(self.mapping.cast(), MAPPED_BYTES) };
    }
}
