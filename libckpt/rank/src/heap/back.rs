//! The back end for small blocks: the `dlmalloc` crate over memory of the slot.
//!
//! Its memory is one segment at the start of the heap that grows like a process's break. Should that
//! part of the address space ever be full, it takes segments among the large runs.

use std::ops::Range;

use dlmalloc::{Allocator, Dlmalloc};

use super::class::{BLOCK_ALIGN, class_bytes, class_of};
use super::pages::{self, PAGE_BYTES, page_up};
use super::runs::{ENTRY_BYTES, Runs, UNIT_BYTES};
use super::{PACKED_ALIGN_MAX, is_front, is_large, may_be_run};

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
    fn discard_warm(&mut self) {
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

/// What became of a block that was to be made longer or shorter.
pub(super) enum Reallocated {
    /// This is the block now.
    Done(*mut u8),
    /// This is a new block, to which the contents are to be copied before the old one is freed.
    CopyTo(*mut u8),
    /// Nothing was changed.
    NoRoom,
}

/// What the heap's lock protects.
#[repr(C)]
pub(super) struct Back {
    small: Dlmalloc<Segments>,
    pub(super) space: Space,
    /// Bytes of small blocks that are out of the back end's hands.
    small_bytes: usize,
}

impl Back {
    /// A back end that will lie at `at`, over `space`.
    pub(super) fn new(at: *mut Back, space: Space) -> Self {
        // SAFETY: only an address is computed.
        let beside = unsafe { &raw mut (*at).space };
        Self {
            small: Dlmalloc::new_with_allocator(Segments { space: beside }),
            space,
            small_bytes: 0,
        }
    }

    /// A block of any kind, null if there is no room, and whether it reads as zeros.
    pub(super) fn allocate_any(&mut self, bytes: usize, align: usize) -> (*mut u8, bool) {
        if !is_large(bytes, align) {
            let block = self.allocate(packed_bytes(bytes, align), align);
            if !block.is_null() || !may_be_run(bytes, align) {
                return (block, false);
            }
            // The back end is full; the other half of the slot may not be.
        }
        match self.space.runs.allocate(bytes, align) {
            Some((address, zeros)) => (address as *mut u8, zeros),
            None if align <= PACKED_ALIGN_MAX => {
                (self.allocate(packed_bytes(bytes, align), align), false)
            }
            None => (std::ptr::null_mut(), false),
        }
    }

    /// Frees a block of any kind.
    ///
    /// # Safety
    /// It was allocated here with this size and alignment, and is not used any more.
    pub(super) unsafe fn free_any(&mut self, block: *mut u8, bytes: usize, align: usize) {
        // SAFETY: by the contract above.
        unsafe {
            if may_be_run(bytes, align) && self.space.runs.has_run_at(block.addr()) {
                self.space.runs.free(block.addr());
            } else {
                self.free(block, packed_bytes(bytes, align));
            }
        }
    }

    /// Makes a block longer or shorter, as far as that does not take a copy.
    ///
    /// # Safety
    /// It was allocated here with this size and alignment, and nobody uses it meanwhile.
    pub(super) unsafe fn reallocate_any(
        &mut self,
        block: *mut u8,
        old_bytes: usize,
        align: usize,
        bytes: usize,
    ) -> Reallocated {
        let was_run = may_be_run(old_bytes, align) && self.space.runs.has_run_at(block.addr());
        let new = if was_run && may_be_run(bytes, align) {
            // SAFETY: a run of ours, by the contract above.
            match unsafe { self.space.runs.reallocate(block.addr(), bytes, align) } {
                Some(address) => return Reallocated::Done(address as *mut u8),
                None => return Reallocated::NoRoom,
            }
        } else if !was_run && bytes > old_bytes && may_be_run(bytes, align) {
            match self.space.runs.allocate_growing(bytes, align) {
                Some(address) => address as *mut u8,
                None => self.allocate_any(bytes, align).0,
            }
        } else if !was_run && align <= BLOCK_ALIGN {
            let old_bytes = packed_bytes(old_bytes, align);
            let bytes = packed_bytes(bytes, align);
            // SAFETY: a block of ours, by the contract above.
            let block = unsafe { self.reallocate(block, old_bytes, bytes) };
            return if block.is_null() {
                Reallocated::NoRoom
            } else {
                Reallocated::Done(block)
            };
        } else {
            self.allocate_any(bytes, align).0
        };
        if new.is_null() {
            Reallocated::NoRoom
        } else {
            Reallocated::CopyTo(new)
        }
    }

    /// A packed block; null if there is no room.
    pub(super) fn allocate(&mut self, bytes: usize, align: usize) -> *mut u8 {
        // SAFETY: any size and alignment will do.
        let block = unsafe {
            if align <= BLOCK_ALIGN {
                self.small.c_malloc(bytes)
            } else {
                self.small.c_memalign(align, bytes)
            }
        };
        if !block.is_null() {
            self.small_bytes += bytes;
        }
        block
    }

    /// Frees a packed block.
    ///
    /// # Safety
    /// It was allocated by [`Back::allocate`] with this size, and is not used any more.
    pub(super) unsafe fn free(&mut self, block: *mut u8, bytes: usize) {
        self.small_bytes -= bytes;
        // Not `free`, which panics, and a panic allocates, when the size is not what it was.
        // SAFETY: by the contract above.
        unsafe { self.small.c_free(block) };
    }

    /// Makes a packed block longer or shorter; null, with nothing changed, if there is no room.
    ///
    /// # Safety
    /// As for [`Back::free`], and its alignment is at most [`BLOCK_ALIGN`].
    unsafe fn reallocate(&mut self, block: *mut u8, old_bytes: usize, bytes: usize) -> *mut u8 {
        // SAFETY: by the contract above.
        let block = unsafe { self.small.c_realloc(block, bytes) };
        if !block.is_null() {
            self.small_bytes = self.small_bytes - old_bytes + bytes;
        }
        block
    }

    /// Gives back all memory in which nothing lives.
    pub(super) fn trim(&mut self) {
        // SAFETY: it only touches what is free.
        unsafe { self.small.trim(0) };
        self.space.discard_warm();
    }

    /// Bytes of small blocks that are out of the back end's hands.
    pub(super) fn small_bytes(&self) -> usize {
        self.small_bytes
    }
}

/// The size that the back end knows a packed block by: blocks of the front go by their class.
fn packed_bytes(bytes: usize, align: usize) -> usize {
    if is_front(bytes, align) {
        class_bytes(class_of(bytes))
    } else {
        bytes
    }
}

/// Where the parts of a heap lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// The table of the runs.
    pub(super) table: usize,
    /// The back end's memory.
    pub(super) small: usize,
    /// The first unit of the runs.
    pub(super) origin: usize,
    /// Number of units.
    pub(super) units: u32,
    /// From here on huge pages pay off.
    pub(super) huge: usize,
    /// End of the heap.
    pub(super) end: usize,
}

/// The back end's share of the address space: one in so many. It can take more among the runs.
const SMALL_SHARE: usize = 8;

/// Memory at the start of the heap in small pages, so that a rank with little data costs little.
const SMALL_PAGES_BYTES: usize = 2 << 20;

impl Parts {
    /// The parts of a heap in `bytes` bytes at `base`.
    pub(super) fn of(base: usize, bytes: usize) -> Self {
        let table = page_up(base);
        let end = (base + bytes) & !(PAGE_BYTES - 1);
        let most = (end - table) / UNIT_BYTES;
        let small = page_up(table + most * ENTRY_BYTES);
        let origin = (small + (end - small) / SMALL_SHARE)
            .next_multiple_of(UNIT_BYTES)
            .min(end);
        let units = (end - origin) / UNIT_BYTES;
        Self {
            table,
            small,
            origin,
            units: u32::try_from(units).unwrap_or(u32::MAX - 1),
            huge: (small + SMALL_PAGES_BYTES)
                .next_multiple_of(UNIT_BYTES)
                .min(end),
            end,
        }
    }
}
