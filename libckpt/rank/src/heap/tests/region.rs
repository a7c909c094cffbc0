//! A heap of its own mapping for a test.

use std::alloc::Layout;
use std::ops::Range;

use crate::heap::{Heap, pages};

/// A heap in a new mapping, which ends with it.
pub(super) struct Region {
    base: usize,
    bytes: usize,
}

/// Ranges by their addresses.
pub(super) type Image = Vec<(usize, Vec<u8>)>;

/// Room for the heap's structure in front of its memory.
const HEADER_BYTES: usize = 64 << 10;

impl Region {
    /// A heap of `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let region = Self::with_small_pages(bytes);
        // SAFETY: the heap's memory.
        unsafe { Heap::prepare(region.memory(), bytes) };
        region
    }

    /// A heap that touches no more memory than the test does.
    pub(super) fn with_small_pages(bytes: usize) -> Self {
        // SAFETY: a new mapping wherever there is room.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                HEADER_BYTES + bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        let region = Self {
            base: base.addr(),
            bytes,
        };
        assert!(size_of::<Heap>() <= HEADER_BYTES);
        // SAFETY: mapped just now, and used by nobody else.
        unsafe { Heap::initialise(region.at(), region.memory(), bytes) };
        region
    }

    /// The heap.
    pub(super) fn heap(&self) -> &Heap {
        // SAFETY: initialised, and there for as long as the region.
        unsafe { &*self.at() }
    }

    /// The addresses of the heap's memory.
    pub(super) fn addresses(&self) -> Range<usize> {
        self.memory().addr()..self.memory().addr() + self.bytes
    }

    /// The bytes that an image holds, header aside.
    pub(super) fn image(&self) -> Image {
        let mut image = vec![];
        self.heap().live_ranges(|range| {
            assert!(self.addresses().start <= range.start && range.end <= self.addresses().end);
            assert_eq!((range.start % 4096, range.end % 4096), (0, 0));
            // SAFETY: memory of the heap.
            let bytes = unsafe { bytes_at(range.start, range.len()) }.to_vec();
            image.push((range.start, bytes));
        });
        image
    }

    /// Wipes everything, and puts only the header, as it is now, and an image back.
    pub(super) fn wipe_and_restore(&self, image: Image) {
        // SAFETY: no other thread uses this heap; the header is put back below.
        let header = unsafe { bytes_at(self.base, HEADER_BYTES) }.to_vec();
        // SAFETY: the mapping is this region's, and what it held is known.
        unsafe {
            assert!(pages::renew(
                self.base..self.base + HEADER_BYTES + self.bytes
            ));
            std::ptr::copy_nonoverlapping(header.as_ptr(), self.base as *mut u8, HEADER_BYTES);
            for (at, bytes) in image {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
            }
            self.heap().restored();
        }
    }

    fn at(&self) -> *mut Heap {
        self.base as *mut Heap
    }

    fn memory(&self) -> *mut u8 {
        (self.base + HEADER_BYTES) as *mut u8
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; nobody uses the heap any more.
        unsafe { libc::munmap(self.base as *mut _, HEADER_BYTES + self.bytes) };
    }
}

/// The bytes somewhere in a region.
///
/// # Safety
/// They are mapped, and nobody writes to them meanwhile.
unsafe fn bytes_at<'a>(at: usize, bytes: usize) -> &'a [u8] {
    // SAFETY: by the contract above.
    unsafe { std::slice::from_raw_parts(at as *const u8, bytes) }
}

/// A layout.
pub(super) fn layout(bytes: usize, align: usize) -> Layout {
    Layout::from_size_align(bytes, align).unwrap()
}
