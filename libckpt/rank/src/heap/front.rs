//! The front: a free list per size class, for the owner alone.
//!
//! An allocation takes the block at the head of its class's list, a free puts it back: a few
//! instructions, no lock, no atomic. An empty list is filled with a batch from the back end, and a list
//! that has grown too long gives half of it back, so that the lock is taken once for many blocks. The
//! batch starts at one and doubles each time the class runs dry: a class that is hardly used keeps
//! nothing.

use super::class::{CLASSES, class_bytes};

/// Bytes of free blocks that a class may keep.
const KEPT_BYTES: usize = 64 << 10;

/// Bytes fetched from the back end at once, at most.
const BATCH_BYTES: usize = 16 << 10;

/// Blocks fetched from the back end at once, at most.
const BATCH_BLOCKS: usize = 128;

/// A free block, linked to the next one of its class.
#[repr(C)]
pub(super) struct FreeBlock {
    pub(super) next: *mut FreeBlock,
}

/// The free blocks of one class.
#[repr(C)]
#[derive(Clone, Copy)]
struct List {
    head: *mut FreeBlock,
    /// Blocks that may still be put back before some go to the back end.
    room: u32,
    /// Blocks to fetch when the list is next found empty.
    batch: u32,
}

/// The free lists.
#[repr(C)]
pub(super) struct Front {
    lists: [List; CLASSES],
}

/// Blocks that a class's list may hold.
const fn capacity(class: usize) -> u32 {
    let blocks = KEPT_BYTES / class_bytes(class);
    if blocks < 8 { 8 } else { blocks as u32 }
}

/// Largest batch of a class.
const fn batch_max(class: usize) -> u32 {
    let blocks = BATCH_BYTES / class_bytes(class);
    if blocks < 1 {
        1
    } else if blocks > BATCH_BLOCKS {
        BATCH_BLOCKS as u32
    } else {
        blocks as u32
    }
}

impl Front {
    /// Empty lists.
    pub(super) const fn new() -> Self {
        let mut lists = [List {
            head: std::ptr::null_mut(),
            room: 0,
            batch: 1,
        }; CLASSES];
        let mut class = 0;
        while class < CLASSES {
            lists[class].room = capacity(class);
            class += 1;
        }
        Self { lists }
    }

    /// Takes a block; null if the list is empty.
    #[inline]
    pub(super) fn pop(&mut self, class: usize) -> *mut u8 {
        let list = &mut self.lists[class];
        let block = list.head;
        if !block.is_null() {
            // SAFETY: blocks on the list are free and hold their link.
            list.head = unsafe { (*block).next };
            list.room += 1;
        }
        block.cast()
    }

    /// Puts a block back. Returns false, with nothing done, if the list is full.
    ///
    /// # Safety
    /// `block` is a block of that class which nobody uses any more.
    #[inline]
    pub(super) unsafe fn push(&mut self, class: usize, block: *mut u8) -> bool {
        let list = &mut self.lists[class];
        if list.room == 0 {
            return false;
        }
        let block = block.cast::<FreeBlock>();
        // SAFETY: the block is free, and large enough for a link.
        unsafe { (*block).next = list.head };
        list.head = block;
        list.room -= 1;
        true
    }

    /// Puts a chain of `blocks` blocks, from `head` to `last`, on an empty list that has room for them.
    ///
    /// # Safety
    /// They are blocks of that class which nobody uses, each linked to the next.
    pub(super) unsafe fn put_chain(
        &mut self,
        class: usize,
        head: *mut FreeBlock,
        last: *mut FreeBlock,
        blocks: u32,
    ) {
        let list = &mut self.lists[class];
        debug_assert!(list.head.is_null() && list.room >= blocks);
        // SAFETY: the block is free, and large enough for a link.
        unsafe { (*last).next = std::ptr::null_mut() };
        list.head = head;
        list.room -= blocks;
    }

    /// How many blocks to fetch now that the list is empty; more the next time.
    pub(super) fn next_batch(&mut self, class: usize) -> u32 {
        let list = &mut self.lists[class];
        let batch = list.batch;
        list.batch = (batch * 2).min(batch_max(class));
        batch
    }

    /// Takes the older half of a list, or all of it, for the back end.
    pub(super) fn take(&mut self, class: usize, all: bool) -> *mut FreeBlock {
        let list = &mut self.lists[class];
        let held = capacity(class) - list.room;
        let keep = if all { 0 } else { held / 2 };
        list.room += held - keep;
        if keep == 0 {
            return std::mem::replace(&mut list.head, std::ptr::null_mut());
        }
        let mut last = list.head;
        for _ in 1..keep {
            // SAFETY: the list holds more than `keep` blocks.
            last = unsafe { (*last).next };
        }
        // SAFETY: as above.
        unsafe { std::mem::replace(&mut (*last).next, std::ptr::null_mut()) }
    }

    /// Bytes of the blocks on all lists.
    pub(super) fn kept_bytes(&self) -> usize {
        (0..CLASSES)
            .map(|class| (capacity(class) - self.lists[class].room) as usize * class_bytes(class))
            .sum()
    }
}
