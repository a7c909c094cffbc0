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
mod table;

use std::ops::Range;

use self::bins::Bins;
use self::moved::MovedRuns;
use self::table::{Entry, Links, NONE, State, Table};
use super::pages::{self, HUGE_BYTES, Moved, page_up};

/// Size of a unit, in bytes.
pub(super) const UNIT_BYTES: usize = HUGE_BYTES;

/// Size of the table per unit, in bytes.
pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();

/// Free memory that is always kept, in units; a share of the live memory comes on top of it.
const WARM_UNITS: u32 = 32;

/// The share of the live memory that may be kept free: one in so many.
const WARM_SHARE: u32 = 4;

/// A block that grows is given room for growing by this factor.
const ROOM_FACTOR: u32 = 32;

/// Room of a block that grows, in units, at least.
const ROOM_UNITS_MIN: u32 = 512;

/// Runs shorter than this are copied when they have to move: below, copying costs about what moving does.
const MOVE_UNITS_MIN: u32 = 4;

/// Ranges of pages that were moved or mapped anew, remembered.
const REMAPPED_MAX: usize = 64;

/// The large blocks of a heap.
#[repr(C)]
pub(super) struct Runs {
    table: Table,
    /// Address of unit 0.
    origin: usize,
    clean: Bins,
    warm: Bins,
    oldest: u32,
    newest: u32,
    warm_units: u32,
    live_units: u32,
    live_bytes: usize,
    moved: MovedRuns,
    remapped: [[usize; 2]; REMAPPED_MAX],
    remapped_count: u64,
}

impl Runs {
    /// All units free and clean.
    ///
    /// # Safety
    /// The units are mapped, writable, read as zeros and belong to these runs alone; the table, too, and
    /// it has an entry for each unit.
    pub(super) unsafe fn new(origin: usize, units: u32, table: *mut u8) -> Self {
        let mut runs = Self {
            // SAFETY: the caller gives the table away.
            table: unsafe { Table::new(table.cast(), units) },
            origin,
            clean: Bins::new(),
            warm: Bins::new(),
            oldest: NONE,
            newest: NONE,
            warm_units: 0,
            live_units: 0,
            live_bytes: 0,
            moved: MovedRuns::new(),
            remapped: [[0; 2]; REMAPPED_MAX],
            remapped_count: 0,
        };
        if units > 0 {
            runs.insert_free(0, units, State::Clean);
        }
        runs
    }

    /// A run of `bytes`, aligned to `align`, and whether it reads as zeros. `None` if there is no room.
    pub(super) fn allocate(&mut self, bytes: usize, align: usize) -> Option<(usize, bool)> {
        let (first, zeros) = self.take_best(units_of(bytes)?, align)?;
        self.make_live(first, bytes, State::Live);
        Some((self.address(first), zeros))
    }

    /// A run for a block that was smaller before and may grow again: with room behind it.
    pub(super) fn allocate_growing(&mut self, bytes: usize, align: usize) -> Option<usize> {
        let units = units_of(bytes)?;
        let first = self.take_roomy(units, align)?;
        self.make_live(first, bytes, State::Growing);
        Some(self.address(first))
    }

    /// A segment for the back end.
    pub(super) fn allocate_segment(&mut self, bytes: usize) -> Option<Range<usize>> {
        let units = units_of(bytes)?;
        let (first, _) = self.take_best(units, UNIT_BYTES)?;
        self.table.write_all(first, units, State::Segment);
        self.live_units += units;
        Some(self.range(first, units))
    }

    /// Frees neighbouring segments.
    ///
    /// # Safety
    /// The range is made of whole segments, in which nothing lives any more.
    pub(super) unsafe fn free_segments(&mut self, range: Range<usize>) {
        let mut address = range.start;
        while address < range.end {
            let first = self.unit_at(address);
            let units = self.table.head(first).units;
            address += units as usize * UNIT_BYTES;
            self.live_units -= units;
            // SAFETY: by the contract above.
            unsafe { self.release(first, units) };
        }
    }

    /// Whether a block of the heap is a run, not one that the back end made.
    pub(super) fn has_run_at(&self, address: usize) -> bool {
        address >= self.origin && self.table.head(self.unit_at(address)).state.is_run()
    }

    /// Frees a run.
    ///
    /// # Safety
    /// It was handed out by these runs and is not used any more.
    pub(super) unsafe fn free(&mut self, address: usize) {
        let first = self.unit_at(address);
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
        let first = self.unit_at(address);
        let old = *self.table.head(first);
        let units = units_of(bytes)?;
        if units <= old.units {
            self.unmake_live(first);
            self.table.write(first, units, old.state);
            self.make_live(first, bytes, old.state);
            if units < old.units {
                // SAFETY: the end of the run was given up just now.
                unsafe { self.release_end(first, units, old.units - units) };
            }
            return Some(address);
        }
        if self.grow_in_place(first, units) {
            self.live_bytes -= old.bytes;
            self.live_units -= old.units;
            self.make_live(first, bytes, State::Growing);
            return Some(address);
        }
        let to = self.take_roomy(units, align)?;
        // SAFETY: the new place was free, and the caller leaves the old one alone.
        if !unsafe { self.carry(first, to, old) } {
            return None;
        }
        self.make_live(to, bytes, State::Growing);
        Some(self.address(to))
    }

    /// The ranges that an image must hold: the used part of the table, live runs and segments.
    pub(super) fn live_ranges(&self, mut each: impl FnMut(Range<usize>)) {
        let page = |unit| self.table.address(unit) & !(pages::PAGE_BYTES - 1);
        let mut table = 0..0;
        self.for_each_span(|first, entry| {
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
        self.for_each_span(|first, entry| match entry.state {
            State::Live | State::Growing => {
                let start = self.address(first);
                each(start..start + entry.bytes);
            }
            State::Segment => each(self.range(first, entry.units)),
            _ => {}
        });
    }

    /// Gives all kept memory back.
    pub(super) fn discard_warm(&mut self) {
        while self.oldest != NONE {
            self.discard_oldest();
        }
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
        self.warm_units as usize * UNIT_BYTES
    }

    /// How many ranges have been moved or mapped anew so far.
    pub(super) fn remapped_count(&self) -> u64 {
        self.remapped_count
    }

    /// The ranges moved or mapped anew since the count was `since`; false if not all are remembered.
    pub(super) fn remapped_since(&self, since: u64, mut each: impl FnMut(Range<usize>)) -> bool {
        let remembered = self.remapped_count.saturating_sub(REMAPPED_MAX as u64);
        for index in since.max(remembered)..self.remapped_count {
            let [start, end] = self.remapped[index as usize % REMAPPED_MAX];
            each(start..end);
        }
        since >= remembered
    }

    /// To be called where these runs came with an image: every mapping is new, and free spans are zeros.
    pub(super) fn restored(&mut self) {
        self.moved.clear();
        while self.oldest != NONE {
            let first = self.oldest;
            let units = self.remove_free(first);
            self.insert_free(first, units, State::Clean);
        }
    }

    fn make_live(&mut self, first: u32, bytes: usize, state: State) {
        let entry = self.table.head_mut(first);
        entry.state = state;
        entry.bytes = page_up(bytes);
        self.live_bytes += entry.bytes;
        self.live_units += entry.units;
    }

    fn unmake_live(&mut self, first: u32) -> u32 {
        let entry = self.table.head(first);
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
            unsafe { pages::discard(self.range(first, units)) };
            self.insert_free(first, units, State::Clean);
            return;
        }
        // First the older ones: joined with a neighbour, they would be as young as this one.
        while self.warm_units > bound - units {
            self.discard_oldest();
        }
        self.insert_free(first, units, State::Warm);
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
        let range = self.range(first, units);
        // SAFETY: nothing lives there.
        let renewed = unsafe { pages::renew(range.clone()) };
        if renewed {
            self.note_remapped(range);
        } else {
            // SAFETY: nothing lives there.
            unsafe { pages::discard(range) };
        }
        self.insert_free(first, units, State::Clean);
        renewed
    }

    fn discard_oldest(&mut self) {
        let first = self.oldest;
        let units = self.remove_free(first);
        // SAFETY: a free span.
        unsafe { pages::discard(self.range(first, units)) };
        self.insert_free(first, units, State::Clean);
    }

    /// Adds a free span, joined with its free neighbours of the same kind.
    fn insert_free(&mut self, mut first: u32, mut units: u32, state: State) {
        self.table.write(first, units, state);
        if let Some(before) = self.table.before(first)
            && self.table.head(before).state == state
        {
            units += self.remove_free(before);
            first = before;
        }
        self.table.write(first, units, state);
        if let Some(after) = self.table.after(first)
            && self.table.head(after).state == state
        {
            units += self.remove_free(after);
        }
        self.table.write(first, units, state);
        if state == State::Warm {
            self.warm.insert(&mut self.table, first);
            self.warm_units += units;
            let newest = self.newest;
            self.table.head_mut(first).age = Links {
                before: newest,
                after: NONE,
            };
            if newest == NONE {
                self.oldest = first;
            } else {
                self.table.head_mut(newest).age.after = first;
            }
            self.newest = first;
        } else {
            self.clean.insert(&mut self.table, first);
        }
    }

    /// Takes a free span off its lists; its length.
    fn remove_free(&mut self, first: u32) -> u32 {
        let entry = *self.table.head(first);
        if entry.state == State::Warm {
            self.warm.remove(&mut self.table, first);
            self.warm_units -= entry.units;
            match entry.age.before {
                NONE => self.oldest = entry.age.after,
                before => self.table.head_mut(before).age.after = entry.age.after,
            }
            match entry.age.after {
                NONE => self.newest = entry.age.before,
                after => self.table.head_mut(after).age.before = entry.age.before,
            }
        } else {
            self.clean.remove(&mut self.table, first);
        }
        entry.units
    }

    /// The smallest free span that fits, warm ones first, and whether it reads as zeros.
    fn take_best(&mut self, units: u32, align: usize) -> Option<(u32, bool)> {
        // What is enough wherever the span starts.
        let enough = units.checked_add(extra_units(align)?)?;
        let any = |_| true;
        // Room behind a block that grows is taken last.
        let not_room = |first| {
            self.table
                .before(first)
                .is_none_or(|before| self.table.head(before).state != State::Growing)
        };
        if let Some(first) = self.warm.best(&self.table, enough, any) {
            return Some((self.carve_aligned(first, units, align), false));
        }
        let clean = self
            .clean
            .best(&self.table, enough, not_room)
            .or_else(|| self.clean.best(&self.table, enough, any));
        if let Some(first) = clean {
            return Some((self.carve_aligned(first, units, align), true));
        }
        // Free space may be split up by what is warm.
        self.discard_warm();
        let first = self.clean.best(&self.table, enough, any)?;
        Some((self.carve_aligned(first, units, align), true))
    }

    /// A place with room behind it.
    fn take_roomy(&mut self, units: u32, align: usize) -> Option<u32> {
        if align <= UNIT_BYTES {
            if let Some(first) = self.warm.largest(&self.table)
                && self.table.head(first).units / 2 >= units
            {
                return Some(self.carve(first, 0, units));
            }
            if let Some(first) = self.clean.largest(&self.table)
                && self.table.head(first).units >= units
            {
                // At the end of the gap, so that what is before stays in one piece.
                let gap = self.table.head(first).units;
                let room = units.saturating_mul(ROOM_FACTOR).max(ROOM_UNITS_MIN);
                let room = room.min((gap / 4).max(units));
                return Some(self.carve(first, gap - room, units));
            }
        }
        Some(self.take_best(units, align)?.0)
    }

    fn carve_aligned(&mut self, first: u32, units: u32, align: usize) -> u32 {
        let start = self.address(first);
        let offset = (start.next_multiple_of(align.max(UNIT_BYTES)) - start) / UNIT_BYTES;
        self.carve(first, offset as u32, units)
    }

    /// Takes `units` units out of a free span; what is before and after stays free.
    fn carve(&mut self, first: u32, offset: u32, units: u32) -> u32 {
        let state = self.table.head(first).state;
        let whole = self.remove_free(first);
        let taken = first + offset;
        // Written before the rest is freed, which looks at its neighbours.
        self.table.write(taken, units, State::Live);
        if offset > 0 {
            self.insert_free(first, offset, state);
        }
        if whole > offset + units {
            self.insert_free(taken + units, whole - offset - units, state);
        }
        taken
    }

    /// Makes a live run longer by the free spans behind it; false, with nothing done, if they are too
    /// short.
    fn grow_in_place(&mut self, first: u32, units: u32) -> bool {
        let wanted = units - self.table.head(first).units;
        let mut free = 0;
        let mut last = first;
        while free < wanted {
            match self.table.after(last) {
                Some(next) if self.table.head(next).state.is_free() => {
                    free += self.table.head(next).units;
                    last = next;
                }
                _ => return false,
            }
        }
        let mut next = first + self.table.head(first).units;
        let mut state = State::Clean;
        while next <= last {
            state = self.table.head(next).state;
            next += self.remove_free(next);
        }
        self.table.write(first, units, State::Live);
        if free > wanted {
            self.insert_free(first + units, free - wanted, state);
        }
        true
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
            unsafe { copy(self.address(from), self.address(to), old.bytes) };
            self.unmake_live(from);
            // SAFETY: its contents are elsewhere now.
            unsafe { self.release(from, old.units) };
            return true;
        }
        let mut done = 0;
        let mut all_moved = true;
        for piece in pieces.covering(old.units) {
            let source = self.range(from + done, piece);
            let target = self.range(to + done, piece);
            // SAFETY: whole units, apart, and nothing lives at the new place yet.
            match unsafe { pages::move_pages(source.start, target.start, source.len()) } {
                Moved::Yes => {
                    self.note_remapped(source);
                    self.note_remapped(target);
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
                self.insert_free(from, old.units, State::Clean);
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
                self.address(to),
                self.address(from),
                done as usize * UNIT_BYTES,
            );
        }
        self.table.head_mut(to).state = State::Lost;
    }

    fn note_remapped(&mut self, range: Range<usize>) {
        self.remapped[self.remapped_count as usize % REMAPPED_MAX] = [range.start, range.end];
        self.remapped_count += 1;
    }

    fn for_each_span(&self, mut each: impl FnMut(u32, &Entry)) {
        let mut next = (self.table.units() > 0).then_some(0);
        while let Some(first) = next {
            each(first, self.table.head(first));
            next = self.table.after(first);
        }
    }

    fn address(&self, unit: u32) -> usize {
        self.origin + unit as usize * UNIT_BYTES
    }

    fn range(&self, first: u32, units: u32) -> Range<usize> {
        self.address(first)..self.address(first + units)
    }

    fn unit_at(&self, address: usize) -> u32 {
        ((address - self.origin) / UNIT_BYTES) as u32
    }
}

/// Units for a block.
fn units_of(bytes: usize) -> Option<u32> {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()
}

/// Units that may be lost in front of a block for its alignment.
fn extra_units(align: usize) -> Option<u32> {
    u32::try_from((align / UNIT_BYTES).saturating_sub(1)).ok()
}

/// Copies a run.
///
/// # Safety
/// Both places are mapped and apart.
unsafe fn copy(from: usize, to: usize, bytes: usize) {
    // SAFETY: by the contract above.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
}
