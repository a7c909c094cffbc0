//! The heap of a rank: an allocator whose every byte lies in the rank's slot.
//!
//! A rank's memory is copied, byte for byte, into another process at the same addresses, where the rank
//! goes on allocating and freeing. So the heap keeps all of its own data in the slot, too, and no address
//! of anything outside.
//!
//! There are three layers; size, alignment and address of a block tell which one it is from:
//!
//! - the *front* (`front`): a free list per size class for blocks of up to 32 KiB, used by the owner
//!   alone, without lock or atomics. Most operations end here.
//! - the *back end* (`back`, `space`): the `dlmalloc` crate, which packs blocks of up to 8 MiB densely and
//!   fills the front's lists in batches.
//! - the *runs* (`runs`): large blocks, and those that have grown to 1 MiB and may go on growing, in whole
//!   units of 2 MiB of address space, with room to grow in place; moved by `mremap` where that is not
//!   enough.
//!
//! The back end and the runs are behind a spin lock (`lock`), because a rank's other threads may allocate
//! in its slot at the same time. Frees from other contexts go through a lock-free list (`remote`).
//!
//! What the rest of the library counts on:
//!
//! - An image holds the header and [`Heap::live_ranges`], nothing else. What is outside is free memory, and
//!   reads as zeros after a restore. So the heap may forget that a free range is zeros, but never believe it
//!   wrongly.
//! - Touching fresh memory is the dearest part of a large block: 1.7 µs for a page of 4 KiB, ten times that
//!   where the host of a virtual machine has to find the memory first. So freed memory is kept: up to 64 MiB
//!   of runs and 16 MiB above the back end's break, and as much again as a quarter of what is live. And all
//!   but the first 2 MiB of a heap asks for huge pages, 200 µs for 2 MiB, a quarter per byte. They cost the
//!   unused end of each run's last one (6 % of memory for runs of 8 to 24 MiB), which is why smaller blocks
//!   are packed.
//! - Ranges whose pages were moved or mapped anew lose what the kernel tracked about them;
//!   [`Heap::remapped_since`] tells which.

mod back;
mod class;
mod front;
mod lock;
mod pages;
mod parts;
mod remote;
mod runs;
mod space;

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::ops::Range;

use self::back::{Back, Reallocated};
use self::class::{BLOCK_ALIGN, FRONT_BYTES_MAX, class_bytes, class_of};
use self::front::{FreeBlock, Front};
use self::lock::Lock;
use self::parts::Parts;
use self::remote::RemoteFrees;
use self::runs::Runs;
use self::space::Space;

/// Blocks of at least this size, in bytes, get pages of their own. Smaller ones are packed: a run fills its
/// last huge page alone.
pub const LARGE_BYTES_MIN: usize = 8 << 20;

/// A block that grows to this size, in bytes, gets pages of its own, and room to grow on.
pub const GROWN_BYTES_MIN: usize = 1 << 20;

/// Blocks of a larger alignment, in bytes, get pages of their own.
const PACKED_ALIGN_MAX: usize = 1 << 20;

/// The smallest heap, in bytes.
pub const HEAP_BYTES_MIN: usize = 4 << 20;

/// The heap of a rank, placed in the slot's header.
///
/// The plain operations are for the owner: the context that runs the rank, one thread at a time. Those
/// named `_shared` are for the rank's other threads, at the same time. [`Heap::deallocate_remote`] is for
/// everybody.
#[repr(C)]
pub struct Heap {
    front: UnsafeCell<Front>,
    remote: RemoteFrees,
    back: Lock<Back>,
}

// SAFETY: the front is for the owner alone, which the contracts of its users say; the rest is locked or
// atomic.
unsafe impl Sync for Heap {}

/// What a heap holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapStatistics {
    /// Blocks in use (rounded up to their size class, or to pages).
    pub live_bytes: usize,
    /// Of these, large ones.
    pub large_bytes: usize,
    /// Memory taken from the slot, used or kept for use.
    pub mapped_bytes: usize,
    /// Small free blocks kept by the front.
    pub front_bytes: usize,
    /// Memory kept although nothing lives in it; no image holds it.
    pub warm_bytes: usize,
    /// How often pages were moved or mapped anew: see [`Heap::remapped_since`].
    pub remapped_count: u64,
}

/// Whether a new block becomes a run.
fn is_large(bytes: usize, align: usize) -> bool {
    bytes >= LARGE_BYTES_MIN || align > PACKED_ALIGN_MAX
}

/// Whether a block may be a run: its address tells.
fn may_be_run(bytes: usize, align: usize) -> bool {
    bytes >= GROWN_BYTES_MIN || align > PACKED_ALIGN_MAX
}

fn is_front(bytes: usize, align: usize) -> bool {
    bytes <= FRONT_BYTES_MAX && align <= BLOCK_ALIGN
}

/// Where the parts of a heap lie that are filled in ways of their own when it comes page by page.
pub(crate) struct Places {
    /// End of the tables that every operation may look at.
    pub(crate) tables_end: usize,
    /// Where huge pages are asked for.
    pub(crate) huge: Range<usize>,
}

/// The places of a heap in so many bytes.
pub(crate) fn places(base: usize, bytes: usize) -> Places {
    let parts = Parts::of(base, bytes);
    Places {
        tables_end: parts.small,
        huge: parts.huge..parts.end,
    }
}

impl Heap {
    /// Asks for huge pages where they pay off. To be called in every process that maps the slot, before
    /// the heap is initialised or restored.
    ///
    /// # Safety
    /// The heap's memory is mapped and belongs to it.
    pub unsafe fn prepare(base: *mut u8, bytes: usize) {
        let parts = Parts::of(base.addr(), bytes);
        // SAFETY: part of the heap's memory.
        unsafe { pages::advise_huge(parts.huge..parts.end) };
    }

    /// Makes a new heap at `at`, of the memory from `base` on.
    ///
    /// # Safety
    /// `at` is writable and stays where it is; the memory is mapped, writable, of at least
    /// [`HEAP_BYTES_MIN`], reads as zeros and belongs to the heap alone. Both keep their addresses in
    /// every process.
    pub unsafe fn initialise(at: *mut Heap, base: *mut u8, bytes: usize) {
        let parts = Parts::of(base.addr(), bytes);
        // SAFETY: as the caller says; the parts are apart, and there is an entry for each unit.
        unsafe {
            let runs = Runs::new(parts.origin, parts.units, parts.table as *mut _);
            let space = Space::new(parts.small..parts.origin, runs);
            let back = (*at).back.as_ptr();
            at.write(Heap {
                front: UnsafeCell::new(Front::new()),
                remote: RemoteFrees::new(),
                back: Lock::new(Back::new(back, space)),
            });
        }
    }

    /// To be called once a heap came back with an image, before anything else: nobody waits for the lock. It
    /// writes to this structure only.
    ///
    /// # Safety
    /// Nobody uses the heap.
    pub unsafe fn unlock(&self) {
        self.back.reset();
    }

    /// To be called next: what the image did not hold reads as zeros. Blocks that were freed by another context,
    /// but not yet drained, when the image was taken stay allocated for ever.
    ///
    /// # Safety
    /// The heap's memory is what the image held, and zeros.
    pub unsafe fn restored(&self) {
        self.remote.forget();
        self.back.lock().space.restored();
    }

    /// Allocates a block; null if the slot has no room. `layout` may not be of size 0.
    ///
    /// # Safety
    /// The caller is the owner.
    #[inline]
    pub unsafe fn allocate(&self, layout: Layout) -> *mut u8 {
        let (bytes, align) = (layout.size(), layout.align());
        if is_front(bytes, align) {
            let class = class_of(bytes);
            // SAFETY: the owner alone uses the front.
            let block = unsafe { (*self.front.get()).pop(class) };
            if !block.is_null() {
                return block;
            }
            // SAFETY: the caller is the owner.
            return unsafe { self.refill(class) };
        }
        // SAFETY: the caller is the owner.
        unsafe { self.drain_remote() };
        self.allocate_shared(layout)
    }

    /// Allocates a block of zeros; null if the slot has no room. `layout` may not be of size 0.
    ///
    /// # Safety
    /// The caller is the owner.
    #[inline]
    pub unsafe fn allocate_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout.size(), layout.align()) {
            // SAFETY: the caller is the owner.
            unsafe { self.drain_remote() };
            return self.allocate_zeroed_shared(layout);
        }
        // SAFETY: the caller is the owner.
        let block = unsafe { self.allocate(layout) };
        if !block.is_null() {
            // SAFETY: allocated just now, at least as long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    /// Frees a block.
    ///
    /// # Safety
    /// The caller is the owner. `block` was allocated in this heap with `layout` and is not used any
    /// more.
    #[inline]
    pub unsafe fn deallocate(&self, block: *mut u8, layout: Layout) {
        let (bytes, align) = (layout.size(), layout.align());
        if is_front(bytes, align) {
            let class = class_of(bytes);
            // SAFETY: the owner alone uses the front; the block is free.
            unsafe {
                if !(*self.front.get()).push(class, block) {
                    self.give_back(class, block);
                }
            }
            return;
        }
        // SAFETY: by the contract above.
        unsafe { self.deallocate_shared(block, layout) };
    }

    /// Makes a block longer or shorter; null, with the block as it was, if the slot has no room.
    /// `bytes` may not be 0.
    ///
    /// # Safety
    /// The caller is the owner. `block` was allocated in this heap with `layout`, and if the result is
    /// not null, it is not used any more.
    #[inline]
    pub unsafe fn reallocate(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let (old_bytes, align) = (layout.size(), layout.align());
        if !is_front(old_bytes, align) && !is_front(bytes, align) {
            // SAFETY: by the contract above.
            return unsafe { self.reallocate_shared(block, layout, bytes) };
        }
        if is_front(old_bytes, align)
            && is_front(bytes, align)
            && class_of(old_bytes) == class_of(bytes)
        {
            return block;
        }
        // SAFETY: the new block is apart from the old one, and both are long enough; the alignment was
        // that of a layout, and callers keep the size within its bounds.
        unsafe {
            let new = self.allocate(Layout::from_size_align_unchecked(bytes, align));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, old_bytes.min(bytes));
                self.deallocate(block, layout);
            }
            new
        }
    }

    /// [`Heap::allocate`] for any thread.
    pub fn allocate_shared(&self, layout: Layout) -> *mut u8 {
        let (bytes, align) = (layout.size(), layout.align());
        self.back.lock().allocate_any(bytes, align).0
    }

    /// [`Heap::allocate_zeroed`] for any thread.
    pub fn allocate_zeroed_shared(&self, layout: Layout) -> *mut u8 {
        let (bytes, align) = (layout.size(), layout.align());
        let (block, zeros) = self.back.lock().allocate_any(bytes, align);
        if !block.is_null() && !zeros {
            // SAFETY: allocated just now, at least as long.
            unsafe { block.write_bytes(0, bytes) };
        }
        block
    }

    /// [`Heap::deallocate`] for any thread.
    ///
    /// # Safety
    /// `block` was allocated in this heap with `layout` and is not used any more.
    pub unsafe fn deallocate_shared(&self, block: *mut u8, layout: Layout) {
        let (bytes, align) = (layout.size(), layout.align());
        // SAFETY: by the contract above.
        unsafe { self.back.lock().free_any(block, bytes, align) };
    }

    /// [`Heap::reallocate`] for any thread.
    ///
    /// # Safety
    /// `block` was allocated in this heap with `layout`, and if the result is not null, it is not used
    /// any more.
    pub unsafe fn reallocate_shared(
        &self,
        block: *mut u8,
        layout: Layout,
        bytes: usize,
    ) -> *mut u8 {
        let (old_bytes, align) = (layout.size(), layout.align());
        // SAFETY: by the contract above.
        let in_place = unsafe {
            self.back
                .lock()
                .reallocate_any(block, old_bytes, align, bytes)
        };
        match in_place {
            Reallocated::Done(block) => block,
            Reallocated::NoRoom => std::ptr::null_mut(),
            Reallocated::CopyTo(new) => {
                // Without the lock: it may take a while.
                // SAFETY: the new block is ours alone and long enough; the old one is the caller's.
                unsafe {
                    new.copy_from_nonoverlapping(block, old_bytes.min(bytes));
                    self.deallocate_shared(block, layout);
                }
                new
            }
        }
    }

    /// Frees a block from another context: it is put by until the owner drains what waits.
    ///
    /// # Safety
    /// `block` was allocated in this heap with `layout` and is not used any more.
    pub unsafe fn deallocate_remote(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the contract above.
        unsafe { self.remote.push(block, layout) };
    }

    /// Frees what other contexts have freed. The owner's allocations do it now and then; to be called,
    /// too, before an image is taken, which would otherwise hold these blocks for ever.
    ///
    /// # Safety
    /// The caller is the owner, or the owner is stopped.
    #[inline]
    pub unsafe fn drain_remote(&self) {
        if self.remote.any() {
            self.remote.drain(|block, layout| {
                // SAFETY: handed in by `deallocate_remote`; the caller is the owner.
                unsafe { self.deallocate(block, layout) };
            });
        }
    }

    /// Gives the front's free blocks to the back end and all memory in which nothing lives to the
    /// system.
    ///
    /// # Safety
    /// The caller is the owner, or the owner is stopped.
    pub unsafe fn trim(&self) {
        // SAFETY: the caller is the owner.
        unsafe { self.drain_remote() };
        let mut back = self.back.lock();
        for class in 0..class::CLASSES {
            // SAFETY: the owner alone uses the front.
            unsafe {
                let blocks = (*self.front.get()).take(class, true);
                free_list(&mut back, class, blocks);
            }
        }
        back.trim();
    }

    /// The ranges, whole pages, that an image must hold beside this structure itself. What is outside
    /// reads as zeros after a restore. `each` may not use this heap.
    pub fn live_ranges(&self, each: impl FnMut(Range<usize>)) {
        self.back.lock().space.live_ranges(each);
    }

    /// The ranges whose pages were moved or mapped anew since [`HeapStatistics::remapped_count`] was
    /// `since`: whoever tracks writes to them has to start anew there. Returns false if there were more
    /// than are remembered: then any range of the heap may be among them. `each` may not use this heap.
    pub fn remapped_since(&self, since: u64, each: impl FnMut(Range<usize>)) -> bool {
        self.back.lock().space.runs.remapped().since(since, each)
    }

    /// What the heap holds.
    ///
    /// # Safety
    /// The caller is the owner, or the owner is stopped.
    pub unsafe fn statistics(&self) -> HeapStatistics {
        // SAFETY: the owner alone uses the front.
        let front_bytes = unsafe { (*self.front.get()).kept_bytes() };
        let back = self.back.lock();
        let large_bytes = back.space.runs.live_bytes();
        HeapStatistics {
            live_bytes: back.small_bytes() - front_bytes + large_bytes,
            large_bytes,
            mapped_bytes: back.space.mapped_bytes(),
            front_bytes,
            warm_bytes: back.space.warm_bytes(),
            remapped_count: back.space.runs.remapped().count(),
        }
    }

    /// Fetches a batch of blocks, keeps all but the first, and returns that.
    ///
    /// # Safety
    /// The caller is the owner, and the class's list is empty.
    #[cold]
    #[inline(never)]
    unsafe fn refill(&self, class: usize) -> *mut u8 {
        // SAFETY: the caller is the owner.
        unsafe { self.drain_remote() };
        // SAFETY: the owner alone uses the front.
        let front = unsafe { &mut *self.front.get() };
        let drained = front.pop(class);
        if !drained.is_null() {
            return drained;
        }
        let batch = front.next_batch(class);
        let bytes = class_bytes(class);
        let mut back = self.back.lock();
        let first = back.allocate(bytes, BLOCK_ALIGN);
        if batch < 2 || first.is_null() {
            return first;
        }
        // The others in the order in which the back end gave them, which is mostly that of addresses.
        let mut chain = FreeBlock {
            next: std::ptr::null_mut(),
        };
        let mut last = &raw mut chain;
        let mut blocks = 0;
        while blocks + 1 < batch {
            let block = back.allocate(bytes, BLOCK_ALIGN).cast::<FreeBlock>();
            if block.is_null() {
                break;
            }
            // SAFETY: `last` is the chain's start, or a block allocated just now.
            unsafe { (*last).next = block };
            last = block;
            blocks += 1;
        }
        if blocks > 0 {
            // SAFETY: allocated just now and linked.
            unsafe { front.put_chain(class, chain.next, last, blocks) };
        }
        first
    }

    /// Frees a block of a class whose list is full, and some of the list with it.
    ///
    /// # Safety
    /// The caller is the owner, and the block is of that class and not used any more.
    #[cold]
    #[inline(never)]
    unsafe fn give_back(&self, class: usize, block: *mut u8) {
        // SAFETY: as the caller says.
        unsafe {
            let blocks = (*self.front.get()).take(class, false);
            free_list(&mut self.back.lock(), class, blocks);
            (*self.front.get()).push(class, block);
        }
    }
}

/// Frees a chain of blocks of one class.
///
/// # Safety
/// They are free blocks of the front that it has forgotten.
unsafe fn free_list(back: &mut Back, class: usize, mut blocks: *mut FreeBlock) {
    while !blocks.is_null() {
        // SAFETY: the chain's blocks hold their links.
        unsafe {
            let next = (*blocks).next;
            back.free(blocks.cast(), class_bytes(class));
            blocks = next;
        }
    }
}

#[cfg(test)]
mod tests;
