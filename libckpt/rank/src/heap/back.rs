//! What the heap's lock protects: the back end for packed blocks, and the runs.
//!
//! The back end is the `dlmalloc` crate over memory of the slot (`space`). Three kept allocators were
//! measured behind the same front: `dlmalloc` 0.2, `talc` 5.1 and `rlsf` 0.2. In
//! time they are alike, as most operations never reach them. In memory they are not: after two million
//! replacements of blocks whose sizes drift, 141 MiB of live blocks took 170 MiB with `dlmalloc`, 240 MiB
//! with `rlsf` and 254 MiB with `talc`, and memory is what images are made of. `dlmalloc` also grows and
//! shrinks its memory like a break, keeps no addresses but of its own memory, and is what the standard
//! library uses on targets without an allocator of their own.

use dlmalloc::Dlmalloc;

use super::class::{BLOCK_ALIGN, class_bytes, class_of};
use super::space::{Segments, Space};
use super::{PACKED_ALIGN_MAX, is_front, is_large, may_be_run};

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
            small: Dlmalloc::new_with_allocator(Segments::of(beside)),
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
