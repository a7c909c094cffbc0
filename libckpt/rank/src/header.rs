//! The header of a slot: everything about a rank that is neither on its stack nor in its heap.
//!
//! It is part of the image. Nothing in it may point outside of the slot, other than into the program.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;

use protocol::ids::Rank;
use protocol::slots::SlotLayout;

use crate::coroutine::{RankCoroutine, RankYielder};
use crate::heap::Heap;
use crate::layout::HEADER_BYTES;
use crate::rank_local::RankLocals;

/// First bytes of every slot: "ckptslot".
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"ckptslot");

/// Version of [`SlotHeader`]'s layout and of the regions.
pub(crate) const VERSION: u32 = 1;

/// How many words a rank keeps for the library, see [`Slot::note`](crate::Slot::note).
pub const NOTES: usize = 16;

/// What a rank does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// The slot has no coroutine yet.
    Empty = 0,
    /// Stopped in [`suspend`](crate::suspend), or not resumed yet.
    Suspended = 1,
    /// On its stack now.
    Running = 2,
    /// Its entry returned.
    Finished = 3,
    /// Its entry panicked.
    Panicked = 4,
}

impl State {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Empty,
            Self::Suspended,
            Self::Running,
            Self::Finished,
            Self::Panicked,
        ]
        .into_iter()
        .find(|&state| state as u32 == number)
    }
}

/// The header, at the slot's first address.
///
/// It is only ever reached through a raw pointer: while a rank runs, its own code and the code that
/// resumed it both use it. Plain fields change through `Cell`, all on the thread that resumes ranks;
/// other threads use the heap's locked functions, `rank` and `layout` only.
#[repr(C)]
pub(crate) struct SlotHeader {
    pub magic: u64,
    pub version: u32,
    pub header_bytes: u32,
    rank: u32,
    state: Cell<u32>,
    ranks: u32,
    /// The rank was stopped while it unwound from a panic.
    pub panicking: Cell<bool>,
    slot_bytes: u64,
    stack_bytes: u64,
    /// Everything on the stack lies at or above this address while the rank is suspended.
    pub stack_used_from: Cell<u64>,
    /// How the rank's code suspends itself; it lies on the rank's stack.
    pub yielder: Cell<*const RankYielder>,
    /// Floating-point modes of the rank (MXCSR), which are the thread's and not the stack's.
    pub floating_point_modes: Cell<u32>,
    pub notes: [Cell<u64>; NOTES],
    pub locals: RankLocals,
    pub coroutine: UnsafeCell<MaybeUninit<RankCoroutine>>,
    pub heap: Heap,
}

const _: () = assert!(size_of::<SlotHeader>() <= HEADER_BYTES as usize);

impl SlotHeader {
    /// Whose slot this is.
    #[inline]
    pub fn rank(&self) -> Rank {
        Rank(self.rank)
    }

    /// What the rank does. An image with a number that is no state is refused before this is used.
    #[inline]
    pub fn state(&self) -> State {
        State::from_number(self.state.get()).unwrap_or(State::Empty)
    }

    /// Notes what the rank does.
    #[inline]
    pub fn set_state(&self, state: State) {
        self.state.set(state as u32);
    }

    /// Is this the layout that the slot was made with?
    pub fn has_layout(&self, layout: &SlotLayout) -> bool {
        (self.ranks, self.slot_bytes, self.stack_bytes)
            == (layout.ranks(), layout.slot_bytes(), layout.stack_bytes())
    }

    /// Writes the plain fields of a new slot. The heap and the coroutine are left to their own.
    ///
    /// # Safety
    /// `header` is the start of a slot that was just mapped, zeroed, and nobody else knows it.
    pub unsafe fn initialise(header: *mut Self, rank: Rank, layout: &SlotLayout) {
        // SAFETY: by the contract above. Zeroed memory is valid for every field that is not written:
        // numbers, cells of numbers and null pointers, an empty table of rank-local values.
        unsafe {
            (*header).magic = MAGIC;
            (*header).version = VERSION;
            (*header).header_bytes = size_of::<Self>() as u32;
            (*header).rank = rank.0;
            (*header).ranks = layout.ranks();
            (*header).slot_bytes = layout.slot_bytes();
            (*header).stack_bytes = layout.stack_bytes();
            (*header).state.set(State::Empty as u32);
        }
    }
}
