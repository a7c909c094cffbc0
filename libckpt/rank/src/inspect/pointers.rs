//! A conservative scan: which words of an image look like addresses of memory that is not captured?
//!
//! Only the heap is scanned. A stack holds, in places that the compiler no longer uses, remains of calls
//! into the library, so that it would always be suspected. A freed block may hold remains too: a finding
//! is a place to look, and no proof.

use std::fs;
use std::ops::Range;

use protocol::slots::{END, ORIGIN};

use crate::capture::Staging;
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

/// Scans the heap pages of a captured image.
#[must_use]
pub fn scan(slot: &Slot, staging: &Staging) -> Vec<Suspect> {
    let base = slot.base();
    let own = base..base + slot.mapped_bytes();
    // Data of any kind may fall somewhere into the vast range of all slots. A pointer into another one would
    // point to where ranks have something: not much further up than this rank has.
    let reach = staging
        .pages()
        .iter()
        .max()
        .map_or(0, |page| (*page as usize + 1) * PAGE_BYTES * 2);
    let slots = usize::try_from(ORIGIN).unwrap_or(0)..usize::try_from(END).unwrap_or(0);
    let foreign = foreign_ranges(&slots);
    let heap = slot.heap_pages();
    let mut suspects = Vec::new();
    for (page, bytes) in staging
        .pages()
        .iter()
        .zip(staging.bytes().chunks_exact(PAGE_BYTES))
    {
        if !heap.contains(page) {
            continue;
        }
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let value = usize::from_ne_bytes(word.try_into().expect("8 bytes"));
            // Most words are small numbers or floating-point values, outside of both ranges.
            if value < slots.start || value >> 47 != 0 || own.contains(&value) {
                continue;
            }
            let target = if slots.contains(&value) {
                let offset = (value - slots.start) % own.len();
                (offset < reach && hosted::rank_of(value).is_some())
                    .then_some("the slot of another rank")
            } else {
                let at = foreign.partition_point(|(range, _)| range.end <= value);
                foreign
                    .get(at)
                    .filter(|(range, _)| range.contains(&value))
                    .map(|(_, name)| name.as_str())
            };
            if let Some(target) = target {
                let page = usize::try_from(*page).unwrap_or(0);
                suspects.push(Suspect {
                    at: base + page * PAGE_BYTES + index * 8,
                    value,
                    target: target.to_owned(),
                });
            }
        }
    }
    suspects
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
