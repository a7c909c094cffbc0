//! Blocks of a heap that were freed in another context, waiting for the owner.
//!
//! A free by a thread that is not the rank's goes by address to the heap that the block came from. It
//! must not touch the free lists, which have no lock, nor wait for the owner: it pushes the block on a
//! list whose links are the freed blocks themselves. The owner takes the whole list at once.

use std::alloc::Layout;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Written into a block that waits.
#[repr(C)]
struct Waiting {
    next: *mut Waiting,
    layout: usize,
}

/// Bits of [`Waiting::layout`] that hold the logarithm of the alignment.
const ALIGN_BITS: u32 = 6;

/// The list of blocks that wait.
#[repr(C)]
pub(super) struct RemoteFrees {
    newest: AtomicPtr<Waiting>,
}

impl RemoteFrees {
    /// Nothing waits.
    pub(super) const fn new() -> Self {
        Self {
            newest: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Adds a block.
    ///
    /// # Safety
    /// `block` was allocated with `layout` in this heap and is not used any more.
    pub(super) unsafe fn push(&self, block: *mut u8, layout: Layout) {
        let waiting = block.cast::<Waiting>();
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            // SAFETY: every block of the heap has room for two words and is aligned for them; nobody
            // uses this one any more.
            unsafe {
                waiting.write(Waiting {
                    next: newest,
                    layout: layout.size() << ALIGN_BITS | layout.align().ilog2() as usize,
                });
            }
            // Release: whoever takes the list sees the words just written, and all that was written to
            // the block before it was freed.
            match self.newest.compare_exchange_weak(
                newest,
                waiting,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => newest = now,
            }
        }
    }

    /// Whether a block waits.
    #[inline]
    pub(super) fn any(&self) -> bool {
        !self.newest.load(Ordering::Relaxed).is_null()
    }

    /// Takes all blocks and hands each to `free`.
    pub(super) fn drain(&self, mut free: impl FnMut(*mut u8, Layout)) {
        let mut next = self.newest.swap(std::ptr::null_mut(), Ordering::Acquire);
        while !next.is_null() {
            // SAFETY: pushed by `push`, and taken off the list by us alone.
            let waiting = unsafe { next.read() };
            let align = 1 << (waiting.layout & ((1 << ALIGN_BITS) - 1));
            // SAFETY: these are the size and alignment of a `Layout`.
            let layout =
                unsafe { Layout::from_size_align_unchecked(waiting.layout >> ALIGN_BITS, align) };
            free(next.cast(), layout);
            next = waiting.next;
        }
    }

    /// Forgets the blocks that wait: they stay allocated for ever.
    pub(super) fn forget(&self) {
        self.newest.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
}
