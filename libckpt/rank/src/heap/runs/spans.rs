//! The spans of the address space: which are free, how one is chosen, how they are split and joined.

use std::ops::Range;

use super::super::pages;
use super::UNIT_BYTES;
use super::bins::Bins;
use super::table::{Entry, Links, NONE, State, Table};

/// A block that grows is given room for growing by this factor.
const ROOM_FACTOR: u32 = 32;

/// Room of a block that grows, in units, at least.
const ROOM_UNITS_MIN: u32 = 512;

/// All spans, and the free ones by size and by age.
#[repr(C)]
pub(super) struct Spans {
    pub(super) table: Table,
    /// Address of unit 0.
    origin: usize,
    clean: Bins,
    warm: Bins,
    oldest: u32,
    newest: u32,
    warm_units: u32,
}

impl Spans {
    /// All units free and clean.
    pub(super) fn new(origin: usize, table: Table) -> Self {
        let units = table.units();
        let mut spans = Self {
            table,
            origin,
            clean: Bins::new(),
            warm: Bins::new(),
            oldest: NONE,
            newest: NONE,
            warm_units: 0,
        };
        if units > 0 {
            spans.insert_free(0, units, State::Clean);
        }
        spans
    }

    /// Units kept warm.
    pub(super) fn warm_units(&self) -> u32 {
        self.warm_units
    }

    /// Gives the memory of all warm spans back.
    pub(super) fn discard_warm(&mut self) {
        while self.oldest != NONE {
            self.discard_oldest();
        }
    }

    /// Gives the memory of the oldest warm spans back until at most `units` units are warm.
    pub(super) fn discard_warm_above(&mut self, units: u32) {
        while self.warm_units > units {
            self.discard_oldest();
        }
    }

    /// Takes all warm spans for clean ones: their memory is gone.
    pub(super) fn forget_warm(&mut self) {
        while self.oldest != NONE {
            let first = self.oldest;
            let units = self.remove_free(first);
            self.insert_free(first, units, State::Clean);
        }
    }

    fn discard_oldest(&mut self) {
        let first = self.oldest;
        let units = self.remove_free(first);
        // SAFETY: a free span.
        unsafe { pages::discard(self.range(first, units)) };
        self.insert_free(first, units, State::Clean);
    }

    /// Adds a free span, joined with its free neighbours of the same kind.
    pub(super) fn insert_free(&mut self, mut first: u32, mut units: u32, state: State) {
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
    pub(super) fn take_best(&mut self, units: u32, align: usize) -> Option<(u32, bool)> {
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
    pub(super) fn take_roomy(&mut self, units: u32, align: usize) -> Option<u32> {
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
    pub(super) fn grow_in_place(&mut self, first: u32, units: u32) -> bool {
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

    pub(super) fn for_each_span(&self, mut each: impl FnMut(u32, &Entry)) {
        let mut next = (self.table.units() > 0).then_some(0);
        while let Some(first) = next {
            each(first, self.table.head(first));
            next = self.table.after(first);
        }
    }

    pub(super) fn address(&self, unit: u32) -> usize {
        self.origin + unit as usize * UNIT_BYTES
    }

    pub(super) fn range(&self, first: u32, units: u32) -> Range<usize> {
        self.address(first)..self.address(first + units)
    }

    pub(super) fn unit_at(&self, address: usize) -> u32 {
        ((address - self.origin) / UNIT_BYTES) as u32
    }
}

/// Units that may be lost in front of a block for its alignment.
fn extra_units(align: usize) -> Option<u32> {
    u32::try_from((align / UNIT_BYTES).saturating_sub(1)).ok()
}
