//! The memory of a heap: the break under which the back end lives, and the runs above.

use std::ops::Range;

use dlmalloc::Allocator;

use super::pages::{self, PAGE_BYTES, page_up};
use super::runs::Runs;

/// Memory above the break that is always kept, in bytes; a share of what is below comes on top of it.
const WARM_BYTES: usize = 16 << 20;

/// The share of the memory below the break that may be kept above it: one in so many.
const WARM_SHARE: usize = 4;

/// Smallest segment taken among the large runs, in bytes.
const SEGMENT_BYTES_MIN: usize = 8 << 20;

/// Flag of segments taken among the large runs: they are not joined with the break's.
const SEGMENT_FLAG: u32 = 1;

/// Where the back end's memory ends, and how much of it was touched.
#[repr(C)]
struct Break {
    start: usize,
    top: usize,
    /// What is above was never touched, or given back.
    touched: usize,
    limit: usize,
}

/// The memory of a heap: what both the back end and the large runs are made of.
#[repr(C)]
pub(super) struct Space {
    small: Break,
    pub(super) runs: Runs,
}

impl Space {
    /// Memory from `small` for the back end, and runs.
    pub(super) fn new(small: Range<usize>, runs: Runs) -> Self {
        Self {
            small: Break {
                start: small.start,
                top: small.start,
                touched: small.start,
                limit: small.end,
            },
            runs,
        }
    }

    /// The ranges that an image must hold.
    pub(super) fn live_ranges(&self, mut each: impl FnMut(Range<usize>)) {
        let small = self.small.start..page_up(self.small.top);
        if !small.is_empty() {
            each(small);
        }
        self.runs.live_ranges(each);
    }

    /// Bytes of memory that the back end has taken or keeps, and that runs have taken or keep.
    pub(super) fn mapped_bytes(&self) -> usize {
        self.small.touched - self.small.start
            + self.runs.live_mapped_bytes()
            + self.runs.warm_bytes()
    }

    /// Bytes of memory kept although nothing lives there.
    pub(super) fn warm_bytes(&self) -> usize {
        self.small.touched - self.small.top + self.runs.warm_bytes()
    }

    /// Gives back all memory kept although nothing lives there.
    pub(super) fn discard_warm(&mut self) {
        self.discard_above(self.small.top);
        self.runs.discard_warm();
    }

    /// To be called where this came with an image: what is not in an image is zeros.
    pub(super) fn restored(&mut self) {
        self.small.touched = self.small.top;
        self.runs.restored();
    }

    fn extend(&mut self, bytes: usize) -> (*mut u8, usize, u32) {
        let small = &mut self.small;
        if bytes <= small.limit - small.top {
            let at = small.top;
            small.top += bytes;
            small.touched = small.touched.max(small.top);
            return (at as *mut u8, bytes, 0);
        }
        match self
            .runs
            .allocate_segment(bytes.max(SEGMENT_BYTES_MIN))
            // A small slot may have room for the request only.
            .or_else(|| self.runs.allocate_segment(bytes))
        {
            Some(segment) => (segment.start as *mut u8, segment.len(), SEGMENT_FLAG << 1),
            None => (std::ptr::null_mut(), 0, 0),
        }
    }

    /// Shortens the segment at `base`, if it ends at the break.
    fn shorten(&mut self, base: usize, old_bytes: usize, bytes: usize) -> bool {
        let small = &mut self.small;
        if base + old_bytes != small.top {
            return false;
        }
        small.top = base + bytes;
        let keep = WARM_BYTES + (small.top - small.start) / WARM_SHARE;
        if small.touched - small.top > 2 * keep {
            self.discard_above(self.small.top + keep);
        }
        true
    }

    /// Takes a whole segment back, or several that the back end has joined.
    ///
    /// # Safety
    /// Nothing lives in them.
    unsafe fn give_back(&mut self, base: usize, bytes: usize) -> bool {
        if base < self.small.limit {
            // Under the break may be more than one: it was raised again after other segments had been
            // taken. The first one stays.
            return base > self.small.start && self.shorten(base, bytes, 0);
        }
        // SAFETY: by the contract above.
        unsafe { self.runs.free_segments(base..base + bytes) };
        true
    }

    fn discard_above(&mut self, kept: usize) {
        let kept = page_up(kept);
        let touched = page_up(self.small.touched);
        if kept < touched {
            // SAFETY: pages of the heap above the back end's break.
            unsafe { pages::discard(kept..touched) };
            self.small.touched = kept;
        }
    }
}

/// What `dlmalloc` takes its memory from.
#[repr(C)]
pub(super) struct Segments {
    /// Beside the back end, in the slot's header.
    space: *mut Space,
}

impl Segments {
    /// Segments of the space that will lie at `space` for as long as they are used.
    pub(super) const fn of(space: *mut Space) -> Self {
        Self { space }
    }
}

// SAFETY: used under the heap's lock only.
unsafe impl Send for Segments {}

// SAFETY: segments are memory of the heap that nothing else uses, for as long as the heap exists.
unsafe impl Allocator for Segments {
    fn alloc(&self, bytes: usize) -> (*mut u8, usize, u32) {
        // SAFETY: the space lies beside the back end and is borrowed by nobody while that runs.
        unsafe { (*self.space).extend(bytes) }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        std::ptr::null_mut()
    }

    fn free_part(&self, base: *mut u8, old_bytes: usize, bytes: usize) -> bool {
        // SAFETY: as in `alloc`.
        unsafe { (*self.space).shorten(base.addr(), old_bytes, bytes) }
    }

    fn free(&self, base: *mut u8, bytes: usize) -> bool {
        // SAFETY: as in `alloc`; the back end has nothing in these segments any more.
        unsafe { (*self.space).give_back(base.addr(), bytes) }
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES
    }
}
