//! Large blocks: runs of whole pages in the slot's address space.
//!
//! Address space is cut into units of 2 MiB, the size of a huge page, and units are gathered into spans
//! (`table`): live runs, free spans that are clean (never touched, or given back: they read as zeros) and
//! free spans that are warm (their memory is kept). Free spans are found by size (`bins`).
//!
//! - A block that is asked for goes to the smallest span that holds it, warm ones first. A block that
//!   *grows* and cannot do so where it is goes to a place with room behind it, many times its size: the
//!   slot's address space costs nothing, and from then on the block grows where it is.
//! - Moving a run moves its pages (`mremap`), not its bytes, for as long as few runs have been moved
//!   (`moved`).
//! - Touching fresh memory is what large blocks cost, so freed runs stay warm, up to a bound: a `Vec` that
//!   is made and dropped in every time step gets the same pages again and again.

mod bins;
mod moved;
mod remapped;
mod spans;
mod table;

use std::ops::Range;

use self::moved::MovedRuns;
use self::remapped::RemappedLog;
use self::spans::Spans;
use self::table::{Entry, State, Table};
use super::pages::{self, HUGE_BYTES, Moved, page_up};

/// Size of a unit, in bytes.
pub(super) const UNIT_BYTES: usize = HUGE_BYTES;

/// Size of the table per unit, in bytes.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();

/// Free memory that is always kept, in units; a share of the live memory comes on top of it.
const WARM_UNITS: u32 = 32;

/// The share of the live memory that may be kept free: one in so many.
const WARM_SHARE: u32 = 4;

/// Runs shorter than this are copied when they have to move: below, copying costs about what moving does.
const MOVE_UNITS_MIN: u32 = 4;

/// The large blocks of a heap.
#[repr(C)]
pub(super) struct Runs {
    spans: Spans,
    live_units: u32,
    live_bytes: usize,
    moved: MovedRuns,
    remapped: RemappedLog,
}

impl Runs {
    /// All units free and clean.
    ///
    /// # Safety
    /// The units are mapped, writable, read as zeros and belong to these runs alone; the table, too, and
    /// it has an entry for each unit.
    pub(super) unsafe fn new(origin: usize, units: u32, table: *mut u8) -> Self {
        // SAFETY: the caller gives the table away.
        let table = unsafe { Table::new(table.cast(), units) };
        Self {
            spans: Spans::new(origin, table),
            live_units: 0,
            live_bytes: 0,
            moved: MovedRuns::new(),
            remapped: RemappedLog::new(),
        }
    }

    /// A run of `bytes`, aligned to `align`, and whether it reads as zeros. `None` if there is no room.
    pub(super) fn allocate(&mut self, bytes: usize, align: usize) -> Option<(usize, bool)> {
        let (first, zeros) = self.spans.take_best(units_of(bytes)?, align)?;
        self.make_live(first, bytes, State::Live);
        Some((self.spans.address(first), zeros))
    }

    /// A run for a block that was smaller before and may grow again: with room behind it.
    pub(super) fn allocate_growing(&mut self, bytes: usize, align: usize) -> Option<usize> {
        let units = units_of(bytes)?;
        let first = self.spans.take_roomy(units, align)?;
        self.make_live(first, bytes, State::Growing);
        Some(self.spans.address(first))
    }

    /// A segment for the back end.
    pub(super) fn allocate_segment(&mut self, bytes: usize) -> Option<Range<usize>> {
        let units = units_of(bytes)?;
        let (first, _) = self.spans.take_best(units, UNIT_BYTES)?;
        self.spans.table.write_all(first, units, State::Segment);
        self.live_units += units;
        Some(self.spans.range(first, units))
    }

    /// Frees neighbouring segments.
    ///
    /// # Safety
    /// The range is made of whole segments, in which nothing lives any more.
    pub(super) unsafe fn free_segments(&mut self, range: Range<usize>) {
        let mut address = range.start;
        while address < range.end {
            let first = self.spans.unit_at(address);
            let units = self.spans.table.head(first).units;
            address += units as usize * UNIT_BYTES;
            self.live_units -= units;
            // SAFETY: by the contract above.
            unsafe { self.release(first, units) };
        }
    }

    /// Whether a block of the heap is a run, not one that the back end made.
    pub(super) fn has_run_at(&self, address: usize) -> bool {
        address >= self.spans.address(0)
            && self
                .spans
                .table
                .head(self.spans.unit_at(address))
                .state
                .is_run()
    }

    /// Frees a run.
    ///
    /// # Safety
    /// It was handed out by these runs and is not used any more.
    pub(super) unsafe fn free(&mut self, address: usize) {
        let first = self.spans.unit_at(address);
        let units = self.unmake_live(first);
        // SAFETY: freed just now.
        unsafe { self.release(first, units) };
    }

    /// Makes a run longer or shorter; its bytes stay what they are, at the same address or another.
    /// `None`, with nothing changed, if there is no room.
    ///
    /// # Safety
    /// It was handed out by these runs, and nobody uses it meanwhile.
    pub(super) unsafe fn reallocate(
        &mut self,
        address: usize,
        bytes: usize,
        align: usize,
    ) -> Option<usize> {
        let first = self.spans.unit_at(address);
        let old = *self.spans.table.head(first);
        let units = units_of(bytes)?;
        if units <= old.units {
            self.unmake_live(first);
            self.spans.table.write(first, units, old.state);
            self.make_live(first, bytes, old.state);
            if units < old.units {
                // SAFETY: the end of the run was given up just now.
                unsafe { self.release_end(first, units, old.units - units) };
            }
            return Some(address);
        }
        if self.spans.grow_in_place(first, units) {
            self.live_bytes -= old.bytes;
            self.live_units -= old.units;
            self.make_live(first, bytes, State::Growing);
            return Some(address);
        }
        let to = self.spans.take_roomy(units, align)?;
        // SAFETY: the new place was free, and the caller leaves the old one alone.
        if !unsafe { self.carry(first, to, old) } {
            return None;
        }
        self.make_live(to, bytes, State::Growing);
        Some(self.spans.address(to))
    }

    /// The ranges that an image must hold: the used part of the table, live runs and segments.
    pub(super) fn live_ranges(&self, mut each: impl FnMut(Range<usize>)) {
        let page = |unit| self.spans.table.address(unit) & !(pages::PAGE_BYTES - 1);
        let mut table = 0..0;
        self.spans.for_each_span(|first, entry| {
            for unit in [first, first + entry.units - 1] {
                // Entries do not cross pages: their size divides a page's.
                let page = page(unit);
                if page >= table.end {
                    if page > table.end && !table.is_empty() {
                        each(table.clone());
                        table.start = page;
                    } else if table.is_empty() {
                        table.start = page;
                    }
                    table.end = page + pages::PAGE_BYTES;
                }
            }
        });
        if !table.is_empty() {
            each(table);
        }
        self.spans.for_each_span(|first, entry| match entry.state {
            State::Live | State::Growing => {
                let start = self.spans.address(first);
                each(start..start + entry.bytes);
            }
            State::Segment => each(self.spans.range(first, entry.units)),
            _ => {}
        });
    }

    /// Bytes of live runs.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Bytes of address space under live runs and segments.
    pub(super) fn live_mapped_bytes(&self) -> usize {
        self.live_units as usize * UNIT_BYTES
    }

    /// Bytes kept warm.
    pub(super) fn warm_bytes(&self) -> usize {
        self.spans.warm_units() as usize * UNIT_BYTES
    }

    /// What was moved or mapped anew.
    pub(super) fn remapped(&self) -> &RemappedLog {
        &self.remapped
    }

    /// Gives all kept memory back.
    pub(super) fn discard_warm(&mut self) {
        self.spans.discard_warm();
    }

    /// To be called where these runs came with an image: every mapping is new, and free spans are zeros.
    pub(super) fn restored(&mut self) {
        self.moved.clear();
        self.spans.forget_warm();
    }

    fn make_live(&mut self, first: u32, bytes: usize, state: State) {
        let entry = self.spans.table.head_mut(first);
        entry.state = state;
        entry.bytes = page_up(bytes);
        self.live_bytes += entry.bytes;
        self.live_units += entry.units;
    }

    fn unmake_live(&mut self, first: u32) -> u32 {
        let entry = self.spans.table.head(first);
        assert!(entry.state.is_run(), "freed twice, or never allocated");
        self.live_bytes -= entry.bytes;
        self.live_units -= entry.units;
        entry.units
    }

    /// Makes units free that were live a moment ago.
    ///
    /// # Safety
    /// Nothing lives in them.
    unsafe fn release(&mut self, first: u32, units: u32) {
        if self.moved.pieces(first).any() {
            // Where it cannot be mapped anew, its place in the list of moved runs stays taken.
            // SAFETY: nothing lives there.
            if unsafe { self.renew(first, units) } {
                self.moved.forget(first);
            }
            return;
        }
        let bound = WARM_UNITS + self.live_units / WARM_SHARE;
        if units > bound {
            // Keeping it would drive out everything else, and then itself.
            // SAFETY: nothing lives there.
            unsafe { pages::discard(self.spans.range(first, units)) };
            self.spans.insert_free(first, units, State::Clean);
            return;
        }
        // First the older ones: joined with a neighbour, they would be as young as this one.
        self.spans.discard_warm_above(bound - units);
        self.spans.insert_free(first, units, State::Warm);
    }

    /// Makes the end of a live run free, `units` units from its new end on.
    ///
    /// # Safety
    /// Nothing lives in them.
    unsafe fn release_end(&mut self, first: u32, kept: u32, units: u32) {
        if self.moved.pieces(first).any() {
            // SAFETY: nothing lives there.
            if unsafe { self.renew(first + kept, units) } {
                self.moved.cut(first, kept);
            }
        } else {
            // SAFETY: as the caller says.
            unsafe { self.release(first + kept, units) };
        }
    }

    /// Maps units anew that belonged to a moved run, and makes them free. Returns whether their mapping
    /// is one with its neighbours again.
    ///
    /// # Safety
    /// Nothing lives there.
    unsafe fn renew(&mut self, first: u32, units: u32) -> bool {
        let range = self.spans.range(first, units);
        // SAFETY: nothing lives there.
        let renewed = unsafe { pages::renew(range.clone()) };
        if renewed {
            self.remapped.note(range);
        } else {
            // SAFETY: nothing lives there.
            unsafe { pages::discard(range) };
        }
        self.spans.insert_free(first, units, State::Clean);
        renewed
    }

    /// Carries the contents of a live run to another place and frees the old one.
    /// Returns false if the new place was lost on the way; the old run is as it was then.
    ///
    /// # Safety
    /// The new place was taken just now, is at least as long, and nobody uses either.
    unsafe fn carry(&mut self, from: u32, to: u32, old: Entry) -> bool {
        let pieces = self.moved.pieces(from);
        if old.units < MOVE_UNITS_MIN || !self.moved.has_room(pieces, old.units) {
            // SAFETY: two spans apart, the new one at least as long.
            unsafe { copy(self.spans.address(from), self.spans.address(to), old.bytes) };
            self.unmake_live(from);
            // SAFETY: its contents are elsewhere now.
            unsafe { self.release(from, old.units) };
            return true;
        }
        let mut done = 0;
        let mut all_moved = true;
        for piece in pieces.covering(old.units) {
            let source = self.spans.range(from + done, piece);
            let target = self.spans.range(to + done, piece);
            // SAFETY: whole units, apart, and nothing lives at the new place yet.
            match unsafe { pages::move_pages(source.start, target.start, source.len()) } {
                Moved::Yes => {
                    self.remapped.note(source);
                    self.remapped.note(target);
                }
                Moved::No => {
                    all_moved = false;
                    // SAFETY: as above.
                    unsafe { copy(source.start, target.start, source.len()) };
                }
                Moved::PlaceLost => {
                    // SAFETY: as above; the pieces before go back where they were.
                    unsafe { self.take_back(from, to, done) };
                    return false;
                }
            }
            done += piece;
        }
        self.unmake_live(from);
        let was_moved = pieces.any();
        if was_moved {
            // The old place still consists of several mappings.
            self.moved.note(from, to, old.units);
            // SAFETY: its contents are elsewhere now.
            unsafe { self.renew(from, old.units) };
        } else {
            self.moved.note(from, to, old.units);
            if all_moved {
                self.spans.insert_free(from, old.units, State::Clean);
            } else {
                // SAFETY: its contents are elsewhere now.
                unsafe { self.release(from, old.units) };
            }
        }
        true
    }

    /// Undoes a move that could not be finished: the first `done` units go back, and the new place is
    /// given up for good.
    ///
    /// # Safety
    /// They are mapped at the new place and hold the run's contents.
    unsafe fn take_back(&mut self, from: u32, to: u32, done: u32) {
        // SAFETY: two spans apart; the old one is mapped.
        unsafe {
            copy(
                self.spans.address(to),
                self.spans.address(from),
                done as usize * UNIT_BYTES,
            );
        }
        self.spans.table.head_mut(to).state = State::Lost;
    }
}

/// Units for a block.
fn units_of(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()
}

/// Copies a run.
///
/// # Safety
/// Both places are mapped and apart.
unsafe fn copy(from: usize, to: usize, bytes: usize) {
    // SAFETY: by the contract above.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
}
