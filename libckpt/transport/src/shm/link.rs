//! What the two ends of a link tell each other besides packets.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mapping::InSharedMemory;

const DORMANT: u32 = 0;
const WATCHED: u32 = 1;

/// The words of one link outside its ring, on two cache lines by how often they change.
#[repr(C, align(64))]
pub(super) struct LinkControl {
    /// How far the receiver has read. Written by the receiver with every packet; the sender reads it
    /// only when the ring seems full.
    head: AtomicU64,
    away: Rare,
}

/// Words that change rarely, so that reading them costs nothing most of the time.
#[repr(C, align(64))]
struct Rare {
    /// Whether the receiver looks at this ring by itself. Written by the receiver.
    attention: AtomicU32,
    /// Whether the sender waits for room. Set by the sender, cleared by the receiver.
    wants_room: AtomicU32,
}

// SAFETY: atomics only, for which every bit pattern is a value.
unsafe impl InSharedMemory for LinkControl {}

impl LinkControl {
    /// How far the receiver has read: what lies before is the sender's again.
    #[inline]
    pub(super) fn head(&self) -> u64 {
        self.head.load(Ordering::SeqCst)
    }

    /// By the receiver: everything before `head` is read.
    #[inline]
    pub(super) fn set_head(&self, head: u64) {
        self.head.store(head, Ordering::Release);
    }

    /// By the receiver: `head` once more, ordered before a look at [`take_wants_room`](Self::take_wants_room).
    #[inline]
    pub(super) fn report_head(&self, head: u64) {
        self.head.store(head, Ordering::SeqCst);
    }

    /// By the receiver: from now on it looks at this ring by itself, or not.
    pub(super) fn watch(&self, watched: bool) {
        let attention = if watched { WATCHED } else { DORMANT };
        self.away.attention.store(attention, Ordering::SeqCst);
    }

    /// By the sender, after a packet: whether the receiver looks here by itself.
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.away.attention.load(Ordering::SeqCst) == WATCHED
    }

    /// By the sender: tell me when there is room. To be followed by another look at [`head`](Self::head).
    pub(super) fn want_room(&self) {
        self.away.wants_room.store(1, Ordering::SeqCst);
    }

    /// By the receiver: whether the sender waits for room; if so, it is taken to be told.
    #[inline]
    pub(super) fn take_wants_room(&self) -> bool {
        self.away.wants_room.load(Ordering::SeqCst) != 0
            && self.away.wants_room.swap(0, Ordering::SeqCst) != 0
    }
}
