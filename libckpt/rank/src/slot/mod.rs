//! A rank's slot in this process: made, started, resumed, unmapped.
//!
//! - `map`: the address range and what is said when it can't be had.
//!
//! Capturing a slot is in `capture`, filling one from an image in `restore`.

mod map;

use std::fmt;
use std::marker::PhantomData;

use protocol::ids::Rank;
use protocol::slots::SlotLayout;

pub(crate) use map::Mapping;
pub use map::SlotError;

use crate::context::{self, in_process};
use crate::coroutine::{self, Resumed};
use crate::header::{NOTES, SlotHeader, State};
use crate::heap::Heap;
use crate::hosted;
use crate::layout::Regions;

/// A rank that is hosted in this process: its address range, with the stack, the heap and the coroutine
/// in it.
///
/// All slots of a process belong to one thread, the one that made them: it resumes and captures them.
/// Dropping a slot gives its memory back without running destructors on the rank's stack.
pub struct Slot {
    header: *mut SlotHeader,
    regions: Regions,
    mapping: Mapping,
    /// A slot stays on its thread: a rank's code may hold addresses of thread-locals in registers.
    _not_send: PhantomData<*mut ()>,
}

impl Slot {
    /// Maps the slot of a rank and prepares its header and heap. The rank has nothing to run yet.
    ///
    /// # Errors
    /// The address range can't be had: taken, over a limit, or refused by the kernel; or the process
    /// already has slots of another layout.
    pub fn create(layout: SlotLayout, rank: Rank) -> Result<Self, SlotError> {
        let slot = Self::from_mapping(Mapping::create(&layout, rank)?, &layout);
        let (heap_start, heap_bytes) = slot.heap_range();
        // SAFETY: the mapping is new: zeroed, and known to nobody else. The heap's range is a part of
        // it that nothing else uses.
        unsafe {
            SlotHeader::initialise(slot.header, rank, &layout);
            Heap::prepare(heap_start, heap_bytes);
            Heap::initialise(&raw mut (*slot.header).heap, heap_start, heap_bytes);
        }
        in_process(|| hosted::add(rank));
        Ok(slot)
    }

    /// A slot around a mapping whose header and heap are, or will be, valid before its first use.
    pub(crate) fn from_mapping(mapping: Mapping, layout: &SlotLayout) -> Self {
        Self {
            header: mapping.start().cast(),
            regions: Regions::of(layout),
            mapping,
            _not_send: PhantomData,
        }
    }

    /// Gives the rank what it runs; it runs when the slot is resumed.
    ///
    /// `entry` is `Copy` so that it can't bring memory of the process along: only numbers, function
    /// pointers and the like. What the rank needs it makes itself, in its own memory.
    ///
    /// # Panics
    /// When the slot was started before.
    pub fn start(&mut self, entry: impl FnOnce() + Copy + 'static) {
        assert_eq!(
            self.header().state(),
            State::Empty,
            "{} was started twice",
            self.rank()
        );
        context::in_slot(self.header, || {
            // SAFETY: the slot is mapped, its heap is initialised, its state is Empty, and this is its
            // context.
            unsafe { coroutine::start(self.header, &self.regions, entry) }
        });
    }

    /// Runs the rank until it calls [`suspend`](crate::suspend) or ends.
    ///
    /// # Panics
    /// When the slot was not started or its rank has ended, or when a rank calls it.
    #[inline]
    pub fn resume(&mut self) -> Resumed {
        assert!(
            self.header().state() == State::Suspended && context::current_rank().is_none(),
            "{} can't be resumed: it is {:?}, or a rank runs already",
            self.rank(),
            self.header().state()
        );
        // SAFETY: the state is Suspended, no rank runs on this thread, and a Slot can't leave the
        // thread that made it.
        unsafe { coroutine::resume(self.header) }
    }

    /// Whose slot this is.
    #[inline]
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.header().rank()
    }

    /// Has the rank's entry returned?
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.header().state() == State::Finished
    }

    /// Was the rank given something to run?
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.header().state() != State::Empty
    }

    /// Is the rank stopped in the middle of a panic (a destructor that communicates), or ended by one?
    /// It can't be captured then.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.header().panicking.get() || self.header().state() == State::Panicked
    }

    /// First address of the slot.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base() as u64
    }

    /// A word that the library keeps with the rank, part of its image; 0 at first.
    ///
    /// # Panics
    /// When `index` is not below [`NOTES`].
    #[must_use]
    pub fn note(&self, index: usize) -> u64 {
        self.header().notes[index].get()
    }

    /// Sets a word that the library keeps with the rank.
    ///
    /// # Panics
    /// When `index` is not below [`NOTES`].
    pub fn set_note(&mut self, index: usize, value: u64) {
        self.header().notes[index].set(value);
    }

    /// Runs `f` on this stack with allocations going to the rank's heap: for results that are put
    /// into its memory while it is suspended. `f` must not suspend.
    pub fn in_memory<R>(&mut self, f: impl FnOnce() -> R) -> R {
        context::in_slot(self.header, f)
    }

    /// Address space of the slot, in bytes.
    pub(crate) fn mapped_bytes(&self) -> usize {
        hosted::slot_bytes() as usize
    }

    /// Numbers of the heap's pages.
    pub(crate) fn heap_pages(&self) -> std::ops::Range<u64> {
        let heap = &self.regions.heap;
        heap.start / crate::layout::PAGE_BYTES as u64..heap.end / crate::layout::PAGE_BYTES as u64
    }

    /// Start and length of the heap's part of the slot.
    pub(crate) fn heap_range(&self) -> (*mut u8, usize) {
        let heap = &self.regions.heap;
        (
            self.mapping.start().wrapping_add(heap.start as usize),
            (heap.end - heap.start) as usize,
        )
    }

    pub(crate) fn header(&self) -> &SlotHeader {
        // SAFETY: mapped and initialised for as long as `self` lives. While the rank runs, it changes
        // its header through cells only, on this same thread.
        unsafe { &*self.header }
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// First address of the slot.
    pub(crate) fn base(&self) -> usize {
        self.header as usize
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        in_process(|| hosted::remove(self.rank()));
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("rank", &self.rank())
            .field("address", &format_args!("{:#x}", self.address()))
            .field("state", &self.header().state())
            .finish_non_exhaustive()
    }
}

/// A word that the library keeps with the rank that runs on this thread; 0 at first.
///
/// # Panics
/// When no rank runs on this thread, or `index` is not below [`NOTES`].
#[must_use]
pub fn note(index: usize) -> u64 {
    running_notes()[index].get()
}

/// Sets a word that the library keeps with the rank that runs on this thread.
///
/// # Panics
/// As [`note`].
pub fn set_note(index: usize, value: u64) {
    running_notes()[index].set(value);
}

fn running_notes() -> &'static [std::cell::Cell<u64>; NOTES] {
    let header = context::CONTEXT.with(|context| context.running.get());
    assert!(
        !header.is_null(),
        "a rank's note was used where no rank runs"
    );
    // SAFETY: the slot is mapped while its rank runs; the reference is used by the two callers above
    // at once and not kept.
    unsafe { &(*header).notes }
}
