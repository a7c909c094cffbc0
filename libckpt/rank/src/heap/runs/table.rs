//! The table of spans: one entry per unit of address space, kept in the slot.
//!
//! A span's first entry describes it and its last one repeats the length, so that both neighbours of a
//! span are found without a search. The entries between hold nothing. The table is as long as the
//! address space needs, and only its touched pages cost memory.

/// No unit.
pub(super) const NONE: u32 = u32::MAX;

/// What a span is used for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Free, reads as zeros, costs no memory.
    Clean = 1,
    /// Free, its memory kept.
    Warm = 2,
    /// Holds a block of the solver's.
    Live = 3,
    /// Holds a block of the solver's that has grown, and may grow on into the free span behind it.
    Growing = 4,
    /// Holds a segment of the back end.
    Segment = 5,
    /// Never to be used again: its mapping was lost.
    Lost = 6,
}

impl State {
    /// Whether the span may be handed out.
    pub(super) fn is_free(self) -> bool {
        matches!(self, State::Clean | State::Warm)
    }

    /// Whether a block of the solver's is in it.
    pub(super) fn is_run(self) -> bool {
        matches!(self, State::Live | State::Growing)
    }
}

/// The entry of a unit.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Length of the span, in units; in its first and its last entry.
    pub(super) units: u32,
    /// In the first entry.
    pub(super) state: State,
    /// Neighbours in the list of free spans of like size.
    pub(super) list: Links,
    /// Neighbours in the list of warm spans by age.
    pub(super) age: Links,
    /// Bytes in use from the start of the span, whole pages; of live spans.
    pub(super) bytes: usize,
}

/// A place in a doubly linked list of spans.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Links {
    pub(super) before: u32,
    pub(super) after: u32,
}

impl Links {
    pub(super) const NONE: Links = Links {
        before: NONE,
        after: NONE,
    };
}

/// The entries.
#[repr(C)]
pub(super) struct Table {
    entries: *mut Entry,
    units: u32,
}

impl Table {
    /// A table for `units` units at an address.
    ///
    /// # Safety
    /// There is room for as many entries, writable, for as long as the table is used, and nothing else
    /// uses it.
    pub(super) const unsafe fn new(entries: *mut Entry, units: u32) -> Self {
        Self { entries, units }
    }

    /// Number of units.
    pub(super) fn units(&self) -> u32 {
        self.units
    }

    /// Address of an entry.
    pub(super) fn address(&self, unit: u32) -> usize {
        self.entries.addr() + unit as usize * size_of::<Entry>()
    }

    /// The entry of the first unit of a span, or of any unit of one that [`Table::write_all`] made.
    #[inline]
    pub(super) fn head(&self, first: u32) -> &Entry {
        assert!(first < self.units);
        // SAFETY: inside the table; the first entry of a span was written by `write`.
        unsafe { &*self.entries.add(first as usize) }
    }

    /// The entry of the first unit of a span, to be changed.
    #[inline]
    pub(super) fn head_mut(&mut self, first: u32) -> &mut Entry {
        assert!(first < self.units);
        // SAFETY: inside the table; the first entry of a span was written by `write`.
        unsafe { &mut *self.entries.add(first as usize) }
    }

    /// Makes `units` units from `first` a span, on no list.
    pub(super) fn write(&mut self, first: u32, units: u32, state: State) {
        assert!(units > 0 && first < self.units && units <= self.units - first);
        let entry = Entry {
            units,
            state,
            list: Links::NONE,
            age: Links::NONE,
            bytes: 0,
        };
        // SAFETY: both entries are inside the table. They are written whole: what was there before may
        // be anything.
        unsafe {
            self.entries.add((first + units - 1) as usize).write(entry);
            self.entries.add(first as usize).write(entry);
        }
    }

    /// [`Table::write`], with the state in every entry, so that any unit tells it.
    pub(super) fn write_all(&mut self, first: u32, units: u32, state: State) {
        for unit in first..first + units {
            self.write(unit, 1, state);
        }
        self.write(first, units, state);
    }

    /// First unit of the span that ends where this one starts.
    pub(super) fn before(&self, first: u32) -> Option<u32> {
        let last = first.checked_sub(1)?;
        // SAFETY: inside the table, and the last entry of a span, hence written by `write`.
        let units = unsafe { (*self.entries.add(last as usize)).units };
        Some(first - units)
    }

    /// First unit of the span that starts where this one ends.
    pub(super) fn after(&self, first: u32) -> Option<u32> {
        let next = first + self.head(first).units;
        (next < self.units).then_some(next)
    }
}
