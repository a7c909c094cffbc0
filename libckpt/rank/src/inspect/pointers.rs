//! A conservative scan: which words of an image look like addresses of memory that is not captured?
//!
//! Only the heap is scanned. A stack holds, in places that the compiler no longer uses, remains of calls
//! into the library, so that it would always be suspected. A freed block may hold remains too: a finding
//! is a place to look, and no proof.

use std::fs;
use std::ops::Range;

use protocol::slots::{END, ORIGIN};

use crate::hosted;
use crate::identity;
use crate::layout::PAGE_BYTES;
use crate::slot::Slot;

/// A word that looks like an address outside of its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Where the word is.
    pub at: usize,
    /// What it says.
    pub value: usize,
    /// What lies at that address.
    pub target: String,
}

/// What is looked for in the pages of one rank.
#[derive(Debug)]
pub struct Scanner {
    /// First address of the slot.
    base: usize,
    own: Range<usize>,
    /// How far up in its slot a rank may have something.
    reach: usize,
    slots: Range<usize>,
    foreign: Vec<(Range<usize>, String)>,
    heap: Range<u64>,
}

impl Scanner {
    /// For a rank that is stopped.
    #[must_use]
    pub fn new(slot: &Slot) -> Self {
        let base = slot.base();
        let end = slot.live_ranges().end();
        let slots = usize::try_from(ORIGIN).unwrap_or(0)..usize::try_from(END).unwrap_or(0);
        Self {
            base,
            own: base..base + slot.mapped_bytes(),
            // Data of any kind may fall somewhere into the vast range of all slots. A pointer into another one
            // would point to where ranks have something: not much further up than this rank has.
            reach: (end - base) * 2,
            foreign: foreign_ranges(&slots),
            slots,
            heap: slot.heap_pages(),
        }
    }

    /// Scans one page, by its number and bytes.
    pub fn scan(&self, page: u64, bytes: &[u8], mut each: impl FnMut(Suspect)) {
        if !self.heap.contains(&page) {
            return;
        }
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let value = usize::from_ne_bytes(*word);
            // Most words are small numbers or floating-point values, outside of both ranges.
            if value < self.slots.start || value >> 47 != 0 || self.own.contains(&value) {
                continue;
            }
            if let Some(target) = self.target(value) {
                each(Suspect {
                    at: self.base + page as usize * PAGE_BYTES + index * 8,
                    value,
                    target: target.to_owned(),
                });
            }
        }
    }

    fn target(&self, value: usize) -> Option<&str> {
        if self.slots.contains(&value) {
            let offset = (value - self.slots.start) % self.own.len();
            return (offset < self.reach && hosted::rank_of(value).is_some())
                .then_some("the slot of another rank");
        }
        let at = self
            .foreign
            .partition_point(|(range, _)| range.end <= value);
        self.foreign
            .get(at)
            .filter(|(range, _)| range.contains(&value))
            .map(|(_, name)| name.as_str())
    }
}

/// Writable mappings of the process that are neither slots nor data of the program and its libraries (that
/// data is at the same address in every process).
fn foreign_ranges(slots: &Range<usize>) -> Vec<(Range<usize>, String)> {
    let mapped = identity::mapped_ranges();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let range =
                usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
            let writable = fields.next()?.starts_with("rw");
            let name = fields.nth(3).unwrap_or("anonymous memory of the process");
            let data = mapped
                .iter()
                .any(|object| object.start <= range.start && range.start < object.end);
            let slot = slots.contains(&range.start);
            (writable && !data && !slot).then(|| (range, name.to_owned()))
        })
        .collect()
}
