//! The global allocator: by context for what is allocated, by address for what is freed (design 3.2).

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use crate::context::{CONTEXT, Mark};
use crate::header::SlotHeader;
use crate::hosted;
use crate::threads;

/// The global allocator of a program whose ranks are captured. `libckpt` sets it:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: libckpt_rank::Allocator = libckpt_rank::Allocator;
/// # fn main() {}
/// ```
///
/// In rank context a block comes from the rank's heap, elsewhere from the system allocator
/// ([`context`](crate::context) tells who is where). A block is freed and grown where it came from: by
/// the rank itself at once, by other threads of the rank under the heap's lock, by anybody else through
/// a list that the rank empties later.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

// SAFETY: each block comes from one of two allocators that keep the contract, a heap or the system's,
// and its address tells which one it goes back to. The heap's owner functions are used in rank context
// only, which one thread is in at a time for a given slot.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let header = rank_header();
        if header.is_null() {
            return allocate_elsewhere(layout, false);
        }
        // SAFETY: in rank context the slot is mapped and this thread owns its heap.
        unsafe { (*header).heap.allocate(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let header = rank_header();
        if header.is_null() {
            return allocate_elsewhere(layout, true);
        }
        // SAFETY: as in `alloc`.
        unsafe { (*header).heap.allocate_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let header = rank_header();
        // SAFETY: as in `alloc`; a block inside the slot came from its heap.
        unsafe {
            if is_in_slot(block, header) {
                (*header).heap.deallocate(block, layout);
            } else {
                deallocate_elsewhere(block, layout);
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let header = rank_header();
        // SAFETY: as in `dealloc`.
        unsafe {
            if is_in_slot(block, header) {
                (*header).heap.reallocate(block, layout, bytes)
            } else {
                reallocate_elsewhere(block, layout, bytes)
            }
        }
    }
}

#[inline(always)]
fn rank_header() -> *mut SlotHeader {
    CONTEXT.with(|context| context.rank.get())
}

/// Does a block lie in the slot with this header (which may be null: then it does not)?
#[inline(always)]
fn is_in_slot(block: *mut u8, header: *mut SlotHeader) -> bool {
    !header.is_null() && (block.addr().wrapping_sub(header.addr()) as u64) < hosted::slot_bytes()
}

/// The slot that this thread allocates in although it does not run the rank; null for none.
#[inline]
fn shared_header() -> *mut SlotHeader {
    CONTEXT.with(|context| match context.mark.get() {
        Mark::Process => ptr::null_mut(),
        Mark::Unmarked if threads::are_starting() => ptr::null_mut(),
        Mark::Unmarked => hosted::sole(),
        Mark::Member => context.member.get(),
        Mark::Probe => {
            context.mark.set(Mark::Unmarked);
            ptr::null_mut()
        }
    })
}

/// Allocates outside of rank context.
#[inline]
fn allocate_elsewhere(layout: Layout, zeroed: bool) -> *mut u8 {
    let header = shared_header();
    // SAFETY: a slot that is told by `shared_header` is mapped; its shared functions are for any thread.
    // The layout is not of size 0, by the contract of `GlobalAlloc`.
    unsafe {
        match (header.is_null(), zeroed) {
            (true, false) => System.alloc(layout),
            (true, true) => System.alloc_zeroed(layout),
            (false, false) => (*header).heap.allocate_shared(layout),
            (false, true) => (*header).heap.allocate_zeroed_shared(layout),
        }
    }
}

/// Frees a block that is not the running rank's.
#[inline]
unsafe fn deallocate_elsewhere(block: *mut u8, layout: Layout) {
    let Some(rank) = hosted::rank_of(block.addr()) else {
        // SAFETY: the block came from the system allocator; no slot holds it.
        unsafe { System.dealloc(block, layout) };
        return;
    };
    // The slot may be gone, and its memory with it: nothing is left to free.
    if let Some(home) = hosted::header(rank) {
        // SAFETY: the block came from the heap of the slot that it lies in, which is mapped.
        unsafe {
            if shared_header() == home {
                (*home).heap.deallocate_shared(block, layout);
            } else {
                (*home).heap.deallocate_remote(block, layout);
            }
        }
    }
}

/// Grows or shrinks a block that is not the running rank's. It stays where it came from: in the slot,
/// or in process memory.
#[inline]
unsafe fn reallocate_elsewhere(block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
    match hosted::header_of(block.addr()) {
        // SAFETY: the block came from the system allocator; no slot holds it.
        None => unsafe { System.realloc(block, layout, bytes) },
        // SAFETY: the block came from the heap of the slot that it lies in, which is mapped, and the
        // shared function is for any thread.
        Some(home) => unsafe { (*home).heap.reallocate_shared(block, layout, bytes) },
    }
}
